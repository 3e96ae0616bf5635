"""Dialling, where Linux itself makes it strange."""

import socket
from contextlib import closing

import pytest
import trio

from agentmgr.websocket.sockets import connect, connect_socket
from tests.ports import own_port


async def test_a_socket_that_gets_the_port_it_dials_is_refused_and_not_connected_to_itself() -> None:
    port = own_port()
    with socket.socket() as sock:
        sock.setblocking(False)
        sock.bind(("127.0.0.1", port))  # as the kernel may choose, of the range for outgoing connections
        with pytest.raises(ConnectionRefusedError):
            await connect_socket(sock, ("127.0.0.1", port))
    with pytest.raises(ConnectionRefusedError):
        await connect("127.0.0.1", port)


async def test_a_connection_between_two_addresses_with_one_port_is_no_connection_to_itself() -> None:
    port = own_port()
    with socket.create_server(("127.0.0.2", port)) as listener, socket.socket() as sock:
        sock.setblocking(False)
        sock.bind(("127.0.0.1", port))
        with trio.fail_after(60):
            await connect_socket(sock, ("127.0.0.2", port))
        with closing(listener.accept()[0]) as accepted:
            assert accepted.getpeername() == ("127.0.0.1", port)
