"""Binding an address."""

import socket

import pytest
import trio

from agentmgr.errors import InvalidRequest, PortNotAvailable
from agentmgr.listening import open_listeners


async def test_a_name_with_several_addresses_gets_one_port() -> None:
    listeners = await open_listeners("localhost", 0)
    ports = {listener.socket.getsockname()[1] for listener in listeners}
    for listener in listeners:
        await listener.aclose()
    assert len(ports) == 1


async def test_a_port_that_is_taken_is_named_and_nothing_stays_open() -> None:
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        port = stranger.getsockname()[1]
        with pytest.raises(PortNotAvailable, match=f"port {port} on localhost is not available"):
            await open_listeners("localhost", port)
    for listener in await open_listeners("localhost", port):  # the other family's socket was closed too
        await trio.aclose_forcefully(listener)


@pytest.mark.parametrize(("host", "port"), [("localhost", 65536), ("localhost", -1), ("203.0.113.1", 0)])
async def test_an_address_that_cannot_be_ours_is_refused(host: str, port: int) -> None:
    with pytest.raises(InvalidRequest):
        await open_listeners(host, port)


async def test_cancelled_while_it_binds_it_leaves_nothing_open(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[trio.socket.SocketType] = []
    make = trio.socket.socket

    def remember(*arguments: int) -> trio.socket.SocketType:
        opened.append(make(*arguments))
        if len(opened) == 2:
            scope.cancel()  # takes effect at the checkpoint in its `bind`
        return opened[-1]

    async def two_addresses(*_: object, **__: object) -> list[object]:
        return [
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 0)),
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.2", 0)),
        ]

    monkeypatch.setattr(trio.socket, "socket", remember)
    monkeypatch.setattr(trio.socket, "getaddrinfo", two_addresses)
    with trio.CancelScope() as scope:
        await open_listeners("localhost", 0)
    assert scope.cancelled_caught
    assert [sock.fileno() for sock in opened] == [-1, -1]
