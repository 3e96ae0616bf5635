"""Binding an address."""

import errno
import logging
import os
import socket

import pytest
import trio

from agentmgr.errors import InvalidRequest, PortNotAvailable
from agentmgr.process.listening import log_shortages_rarely, open_listeners
from tests.ports import own_port


async def two_addresses(*_: object, **__: object) -> list[object]:
    """As `getaddrinfo` finds them."""
    return [
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 0)),
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.2", 0)),
    ]


async def test_a_name_with_several_addresses_gets_one_port() -> None:
    listeners = await open_listeners("localhost", 0)
    ports = {listener.socket.getsockname()[1] for listener in listeners}
    for listener in listeners:
        await listener.aclose()
    assert len(ports) == 1


async def test_a_free_port_is_looked_for_until_each_address_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel knows that a port is free on the first address only."""
    with trio.socket.socket() as any_socket:
        kind = type(any_socket)
    bind, tried = kind.bind, []

    async def taken_at_first(sock: trio.socket.SocketType, address: tuple[str, int]) -> None:
        tried.append(address[1])
        if tried == [0, tried[-1]]:
            raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
        await bind(sock, address)

    monkeypatch.setattr(kind, "bind", taken_at_first)
    monkeypatch.setattr(trio.socket, "getaddrinfo", two_addresses)
    listeners = await open_listeners("localhost", 0)
    assert [port == 0 for port in tried] == [True, False, True, False]
    assert {listener.socket.getsockname()[1] for listener in listeners} == {tried[-1]}
    for listener in listeners:
        await listener.aclose()


async def test_a_port_that_is_taken_is_named_and_nothing_stays_open() -> None:
    port = own_port()
    with socket.create_server(("127.0.0.1", port)):
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

    monkeypatch.setattr(trio.socket, "socket", remember)
    monkeypatch.setattr(trio.socket, "getaddrinfo", two_addresses)
    with trio.CancelScope() as scope:
        await open_listeners("localhost", 0)
    assert scope.cancelled_caught
    assert [sock.fileno() for sock in opened] == [-1, -1]


async def test_of_a_process_without_descriptors_one_line_a_minute_is_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    log_shortages_rarely()
    enough = trio.Event()
    tries = 0

    async def no_descriptor_left(_: trio.SocketListener) -> trio.SocketStream:
        nonlocal tries
        tries += 1
        if tries == 3:
            enough.set()
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(trio.SocketListener, "accept", no_descriptor_left)
    listeners = await open_listeners("127.0.0.1", 0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, trio.aclose_forcefully, listeners)
        await enough.wait()
        nursery.cancel_scope.cancel()
    (line,) = [record for record in caplog.records if record.name == "trio.serve_listeners"]
    assert "EMFILE" in line.getMessage()
    assert (line.levelno, line.exc_info) == (logging.ERROR, None)
