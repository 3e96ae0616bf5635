"""The flags of listeners: whom the gateway lets in, and whom it believes."""

from __future__ import annotations

import socket
from typing import Any

import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect


def status(url: str, origin: str) -> int:
    """Of the handshake of a page of that origin."""
    try:
        with connect(url, origin=origin, proxy=None):  # type: ignore[arg-type]
            return 101
    except InvalidStatus as refused:
        return refused.response.status_code


def answer(port: int, data: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=60) as sock:
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: sock.recv(4096), b""))


PLAIN = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
HEADER = b"PROXY TCP4 203.0.113.9 192.0.2.1 4711 443\r\n"


def test_allowed_origins_are_flags_of_whatever_opens_a_gateway(shell: Any) -> None:
    shell.ok("register", "echo", "my_agent.py", "--auto-start")
    shell.ok("shutdown", "--leave-running")
    flags = ("--allow-origin", "https://a.example", "--allow-origin", "https://b.example")
    for command in (
        ("proxy", "--port", "0"),
        ("daemon", "--proxy-port", "0", "--leave-running"),
        ("api", "--port", "0", "--proxy-port", "0"),
    ):
        with shell.background(*command, *flags) as running:
            url = running.until("gateway at").split()[-1]
            origins = ("https://a.example", "https://b.example", "https://c.example")
            assert [status(url, origin) for origin in origins] == [101, 101, 403], command


@pytest.mark.parametrize("command", [("proxy",), ("api", "--proxy-port", "0")])
def test_a_gateway_beside_a_manager_has_its_own(shell: Any, command: tuple[str, ...]) -> None:
    shell.ok("register", "echo", "my_agent.py", "--auto-start")
    with shell.background(*command, "--port", "0", "--allow-origin", "https://a.example") as running:
        url = running.until("gateway at").split()[-1]
        assert status(url, "https://a.example") == 101
        assert status(url, "https://b.example") == 403


def test_an_api_of_a_running_manager_has_the_managers_and_that_is_said(shell: Any) -> None:
    with shell.background("daemon") as daemon:
        daemon.until("managing")
        with shell.background("api", "--port", "0", "--allow-origin", "https://a.example") as api:
            assert "--allow-origin" in api.until("keeps its own")


def test_the_proxy_protocol_is_asked_for_by_one_listener(shell: Any) -> None:
    assert "--trusted-proxy" in shell.fails("proxy", "--port", "0", "--proxy-protocol")
    trusting = ("--host", "127.0.0.1", "--trusted-proxy", "127.0.0.1")
    with shell.background("daemon", *trusting, "--proxy-port", "0") as daemon:
        plain = int(daemon.until("gateway at").rpartition(":")[2])
        with shell.background("proxy", *trusting, "--port", "0", "--proxy-protocol") as proxy:
            asking = int(proxy.until("gateway at").rpartition(":")[2])
            assert b" 426 " in answer(asking, HEADER + PLAIN)
            assert b"bad_proxy_header" in answer(asking, PLAIN)
            assert b" 426 " in answer(plain, PLAIN)
            assert b" 400 " in answer(plain, HEADER + PLAIN)


@pytest.mark.parametrize(
    "flags",
    [("--allow-origin", "app.example"), ("--trusted-proxy", "somewhere"), ("--trusted-proxy", "1.2.3.4/99")],
)
def test_a_mistake_is_named(here: Any, flags: tuple[str, str]) -> None:
    assert flags[1] in here.fails("proxy", *flags)
