"""Why there is no connection with Ray, as far as that is found out without it."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest
import trustme

from agentmgr.cluster.ray_bridge.connection import CannotConnect, _explained, _probe
from tests.ports import own_port


@contextmanager
def listening(context: ssl.SSLContext | None) -> Iterator[str]:
    """A server for one connection: by TLS, or one that hangs up on what it does not know, as gRPC's does."""

    def serve() -> None:
        connection, _ = listener.accept()
        with connection, suppress(OSError):
            if context is not None:
                context.wrap_socket(connection, server_side=True).close()
            else:
                connection.recv(1)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(30)  # where the probe has failed before it came here
        thread = threading.Thread(target=serve)
        thread.start()
        yield f"127.0.0.1:{listener.getsockname()[1]}"
        thread.join()


@pytest.fixture
def server_context() -> ssl.SSLContext:
    ca = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert("localhost").configure_cert(context)
    ca.configure_trust(context)
    context.verify_mode = ssl.CERT_REQUIRED  # as Ray has it
    return context


def test_where_nothing_listens_there_is_no_ray() -> None:
    with pytest.raises(CannotConnect, match=r"no Ray answers at .* `ray start --head`"):
        _probe(f"127.0.0.1:{own_port()}")


def test_tls_on_rays_side_only(server_context: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_USE_TLS", raising=False)
    with (
        listening(server_context) as head,
        pytest.raises(CannotConnect, match="speaks TLS, and this manager"),
    ):
        _probe(head)
    monkeypatch.setenv("RAY_USE_TLS", "1")
    with listening(server_context) as head:
        _probe(head)


def test_tls_on_our_side_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_USE_TLS", "1")
    with listening(None) as head, pytest.raises(CannotConnect, match="does not speak TLS"):
        _probe(head)
    monkeypatch.setenv("RAY_USE_TLS", "0")
    with listening(None) as head:
        _probe(head)


def test_what_ray_says_becomes_what_to_do() -> None:
    said = _explained(RuntimeError("Version mismatch: The cluster was started with:\n Ray: 2.50"), "h:6379")
    assert "--cluster-python" in said
    assert "Ray: 2.50" in said
    lost = _explained(ConnectionError("Failed to connect to Ray cluster at h:6379"), "h:6379")
    assert "RAY_AUTH_MODE=token" in lost
    assert "RAY_USE_TLS=1" in lost
    assert "`ray start --head`" in _explained(ConnectionError("Could not find any running Ray"), "auto")
