"""Which user is at the other end of a connection: real sockets, a real other user where allowed."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from agentmgr.process import peer
from agentmgr.process.peer import peer_uid

STRANGER = 54321


@contextmanager
def connected(
    family: int, host: str, client_family: int | None = None, to: str | None = None
) -> Iterator[tuple[socket.socket, socket.socket]]:
    """The client's end, and the server's."""
    with socket.socket(family) as listener:
        listener.bind((host, 0))
        listener.listen()
        port = listener.getsockname()[1]
        with socket.socket(family if client_family is None else client_family) as client:
            client.connect((to or host, port))
            server, _ = listener.accept()
            with server:
                yield client, server


@pytest.fixture(params=["sock_diag", "proc"])
def source(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "proc":

        def refused(client: peer.Address, server: peer.Address) -> int | None:
            raise OSError("no such protocol")

        monkeypatch.setattr(peer, "_by_sock_diag", refused)
    else:
        monkeypatch.setattr(peer, "_by_proc", lambda client, server: None)
    return str(request.param)


CASES = {
    "IPv4": (socket.AF_INET, "127.0.0.1", None, None),
    "IPv6": (socket.AF_INET6, "::1", None, None),
    "an IPv4 client of a listener for both": (socket.AF_INET6, "::", socket.AF_INET, "127.0.0.1"),
    "an IPv6 socket that dials an IPv4 address": (
        socket.AF_INET,
        "127.0.0.1",
        socket.AF_INET6,
        "::ffff:127.0.0.1",
    ),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.usefixtures("source")
def test_a_loopback_connection_has_the_uid_of_its_client(case: str) -> None:
    with connected(*CASES[case]) as (_, server):
        assert peer_uid(server) == os.getuid()


def test_a_unix_connection_has_the_uid_of_its_client() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert peer_uid(ours) == os.getuid()


@pytest.mark.usefixtures("source")
def test_a_client_that_has_closed_is_nobody_and_not_root() -> None:
    with connected(socket.AF_INET, "127.0.0.1") as (client, server):
        client.close()
        assert peer_uid(server) is None  # the kernel's own answer is 0
        server.close()


def test_another_machine_is_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    with connected(socket.AF_INET, "127.0.0.1") as (_, server):

        class Remote:
            family = socket.AF_INET
            getsockopt, getsockname = server.getsockopt, server.getsockname

            def getpeername(self) -> object:
                return ("192.0.2.7", 4711)

        assert peer_uid(Remote()) is None


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
@pytest.mark.usefixtures("source")
def test_another_user_is_known_as_such(tmp_path: Path) -> None:
    script = f"""
import encodings.idna, os, socket, sys  # later it may not read the standard library
os.setuid({STRANGER})
client = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
client.recv(1)
"""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        child = subprocess.Popen([sys.executable, "-c", script, str(listener.getsockname()[1])])
        server, _ = listener.accept()
        with server:
            assert peer_uid(server) == STRANGER
        assert child.wait(10) == 0
