"""After all links were cut at once: all get through, also to a manager with little of a core."""

from __future__ import annotations

import logging
from contextlib import suppress
from pathlib import Path

import pytest
import trio
import trio.testing

from agentmgr import dialing
from agentmgr.ca import Authority
from agentmgr.cluster.accepting import accept_forever
from agentmgr.cluster.joining import Joining
from agentmgr.cluster.listener import ClusterListener
from agentmgr.cluster.nodes import Nodes
from agentmgr.credentials import Credentials
from agentmgr.dialing import NODE_PROTOCOL, ManagerAddress, dial, dial_patience
from agentmgr.models import NodeRecord, new_id
from agentmgr.node.node import Node
from agentmgr.node.protocol import Facts
from agentmgr.testing import MemoryStore
from agentmgr.testing.fake_launcher import FakeLauncher


async def test_who_has_given_up_before_it_was_accepted_costs_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Each of them would take a turn of the event loop to be accepted, and several for its handshake."""
    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    address = listener.socket.getsockname()
    for number in range(60):
        gone = await trio.open_tcp_stream(*address)
        if number % 2:
            await gone.send_all(b"\x16\x03\x01 the first of its handshake")
        await gone.aclose()
    served: list[tuple[str, int]] = []
    async with await trio.open_tcp_stream(*address) as alive, trio.open_nursery() as nursery:

        async def serve(stream: trio.SocketStream) -> None:
            async with stream:
                served.append(stream.socket.getpeername())
                await stream.send_all(b"welcome")

        nursery.start_soon(accept_forever, listener, serve, nursery)
        with trio.fail_after(30):
            assert await alive.receive_some() == b"welcome"
        assert served == [alive.socket.getsockname()]
        nursery.cancel_scope.cancel()
    assert "60 connections were closed by machines that had waited" in caplog.text
    with pytest.raises(trio.ClosedResourceError):
        await listener.accept()


async def test_one_that_dials_waits_longer_each_time_for_a_manager_that_is_slow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dialing, "DIAL_S", 0.1)
    authority, nodes = Authority.open(tmp_path / "cluster"), Nodes("man_1", "vm")
    own, record = NodeRecord("", "vm"), NodeRecord(new_id("nod"), "n1")
    joining = Joining(MemoryStore(), authority, nodes, [own, record], [], lambda record: None)
    (tmp_path / "node").mkdir()
    credentials = Credentials(tmp_path / "node")
    credentials.keep(authority.issue(credentials.make_request(), record.node_id), authority.pem)
    came: list[str] = []

    async def welcome(stream: trio.abc.Stream, node_id: str) -> None:
        came.append(node_id)

    class Slow(ClusterListener):
        async def _shake_hands(
            self, tcp: trio.SocketStream, host: str
        ) -> trio.SSLStream[trio.SocketStream] | None:
            await trio.sleep(0.3)
            return await super()._shake_hands(tcp, host)

    slow = Slow(Credentials(tmp_path / "cluster"), joining, authority.pem, {NODE_PROTOCOL: welcome})
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    manager = ManagerAddress(*listeners[0].socket.getsockname())
    async with trio.open_nursery() as nursery:
        await nursery.start(slow.serve, listeners)
        patience = dial_patience()
        with pytest.raises(OSError, match=r"did not answer within 0\.1 s"):
            await dial(manager, credentials, NODE_PROTOCOL, patience=patience)
        stream = None
        with trio.fail_after(30):
            while stream is None:
                with suppress(OSError):
                    stream = await dial(manager, credentials, NODE_PROTOCOL, patience=patience)
            assert not await stream.receive_some()
        assert came == [record.node_id]
        assert patience.seconds == 0.1  # the next cut is another one
        await trio.aclose_forcefully(stream)
        nursery.cancel_scope.cancel()


async def test_a_node_bears_a_manager_that_is_silent_for_a_while_at_a_time(
    autojump_clock: trio.testing.MockClock, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Each new link would cost such a manager more than the silence costs the node."""
    caplog.set_level(logging.ERROR)
    dials = 0
    async with trio.open_nursery() as nursery:

        async def manage(stream: trio.abc.Stream) -> None:
            with trio.CancelScope(deadline=trio.current_time() + 3600):
                while True:
                    try:
                        await stream.send_all(b"\n")
                    except trio.BrokenResourceError:
                        return
                    await trio.sleep(5)

        async def dial() -> trio.abc.Stream:
            nonlocal dials
            dials += 1
            there, here = trio.testing.memory_stream_pair()
            nursery.start_soon(manage, there)
            return here

        node = Node(tmp_path, FakeLauncher(), Facts("nod_1", "vm"), dial)
        await nursery.start(node.run)
        await trio.sleep(120)
        nursery.cancel_scope.cancel()
    assert dials == 2
