"""The relay by itself, on sockets without a gateway around them."""

from __future__ import annotations

import socket
import threading
from contextlib import ExitStack

import pytest
import trio

from agentmgr.proxy.tunnel import Relay, Tunnel
from agentmgr.websocket.sockets import Wire

MESSAGE = b"\x81\x83\x00\x00\x00\x00abc"


@pytest.mark.parametrize("busy_wait_s", [0.0, 0.001])
async def test_a_relay_that_never_runs_dry_leaves_other_tasks_their_turns(nursery, busy_wait_s) -> None:
    relay = Relay(busy_wait_s=busy_wait_s)
    with ExitStack() as stack:
        nursery.start_soon(relay.run)
        stack.callback(relay.ended.cancel)
        # Two tunnels that hand each other what they get, for ever.
        a, b, c, d = (Wire(stack.enter_context(s)) for _ in range(2) for s in socket.socketpair())
        here = Tunnel(a, c, max_message_bytes=0, now=0.0)
        there = Tunnel(d, b, max_message_bytes=0, now=0.0)
        stack.enter_context(relay.carrying(here))
        stack.enter_context(relay.carrying(there))
        b.sock.send(MESSAGE)
        # If it hoards the thread, the ring has to be cut from outside for the test to go on, and fail.
        knife = threading.Timer(5, a.sock.shutdown, [socket.SHUT_RDWR])
        knife.start()
        turns = 0
        while here.from_client.tracker.messages < 20_000 and knife.is_alive():
            await trio.lowlevel.checkpoint()
            turns += 1
        knife.cancel()
        knife.join()
        assert turns > 10  # these messages take some 100 ms, and the relay's turn ends after one
