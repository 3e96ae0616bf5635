"""What goes wrong between a gateway and an instance of another node: who is told what, and what is lost."""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from itertools import count
from pathlib import Path

import pytest
import trio
from attrs import evolve

from agentmgr.core.routing import BackendState, Gate
from agentmgr.proxy import GatewayLimits, connections, gate_dialer

from .conftest import Lab, Peer
from .gates import FAR, NEAR, THIRD, Cable, Cluster, crossing
from .test_gateway_ends import RESET, open_ended
from .test_gateway_resuming import Script

TEXT, BINARY = 1, 2
LIMITS = GatewayLimits(close_timeout_s=0.5)


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    return Cluster(tmp_path)


class Reached(Script):
    async def live(self, stream: trio.SocketStream) -> None:
        if await stream.socket.recv(1, socket.MSG_PEEK):  # else the way to it was cut before it was asked
            await super().live(stream)


async def test_a_frame_of_64_kib_that_is_cut_at_each_tls_record_arrives_whole(
    lab: Lab, cluster: Cluster
) -> None:
    big = b"\x82\x7f" + (65_536).to_bytes(8, "big") + bytes(range(256)) * 256
    said = [lab.frame(TEXT, b"before", masked=False), big, lab.frame(TEXT, b"after", masked=False)]
    whole = b"".join(said)
    resumed = 0
    for cut_after in count(8):  # records of the handshake, of which there are some more
        script = Reached(lab, said)
        async with crossing(lab, cluster, await script.backend(), limits=evolve(LIMITS, max_tries=1)) as c:
            cable = Cable(c.gate, c.near.nursery)
            cable.cut_after = cut_after
            c.near.gateway.update(evolve(c.table, gates={FAR: await cable.lay()}))
            client = await c.near.connect(lab.upgrade())
            if (await client.until(b"\r\n\r\n")).startswith(b"HTTP/1.1 502 "):
                continue
            assert await client.exactly(len(whole)) == whole, cut_after
            if not c.near.witness.resumed:
                break  # all that was said took fewer records
            resumed += 1
    assert resumed >= 4  # records of 16 KiB, besides the one with the 101


@pytest.mark.parametrize("kill", ["gate", "cable"])
async def test_a_gate_that_is_lost_has_its_clients_come_back(lab: Lab, cluster: Cluster, kill: str) -> None:
    async with crossing(lab, cluster, await lab.instance()) as c:
        cable = Cable(c.gate, c.near.nursery)
        c.near.gateway.update(evolve(c.table, gates={FAR: await cable.lay()}))
        peer = await c.near.open()
        await peer.stream.send_all(lab.frame(TEXT, b"hi"))
        assert await peer.exactly(4) == lab.frame(TEXT, b"hi", masked=False)
        if kill == "gate":
            c.scope.cancel()
        else:
            cable.cut()
        assert await peer.close_code() == 1012
        (end,) = await c.near.witness.ends()
        assert not end.services_fault
        assert "SSL" not in end.reason, end.reason  # a client reads it


async def test_the_next_gate_of_a_node_is_waited_for(lab: Lab, cluster: Cluster) -> None:
    for before in ({NEAR: Gate("127.0.0.1", 9)}, {FAR: Gate("127.0.0.1", 9)}):  # none, and one that has gone
        async with crossing(lab, cluster, await lab.instance()) as c, trio.open_nursery() as nursery:
            c.near.gateway.update(evolve(c.table, gates=before))
            nursery.start_soon(c.near.open)
            await trio.testing.wait_all_tasks_blocked(0.05)
            c.near.gateway.update(c.table)


async def test_a_client_goes_to_another_node_where_one_cannot_be_reached(
    lab: Lab, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gate_dialer, "_NEWS_S", 0.05)
    good, bad = await lab.instance(), evolve(await lab.instance(), node_id=THIRD)
    async with crossing(lab, cluster, bad, good) as c:
        for _ in range(4):
            peer = await c.near.open()
        assert {x.instance_id for x in c.near.gateway.connections()} == {good.instance_id}
        await peer.stream.send_all(lab.frame(TEXT, b"hi"))
        assert await peer.exactly(4) == lab.frame(TEXT, b"hi", masked=False)


async def test_a_gate_that_stalls_in_its_handshake_times_out(lab: Lab, cluster: Cluster) -> None:
    limits = GatewayLimits(close_timeout_s=0.5, handshake_timeout_s=0.2, max_tries=1)
    async with crossing(lab, cluster, await lab.instance(), limits=limits) as c:
        cable = Cable(c.gate, c.near.nursery)
        cable.pull()
        c.near.gateway.update(evolve(c.table, gates={FAR: await cable.lay()}))
        assert (await c.near.refusal(lab.upgrade()))[:2] == (504, "backend_timeout")


@pytest.mark.parametrize(
    "said",
    [b"", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"\x16\x03\x01\x02\x00\x01", b"\x00" * 70_000, None],
    ids=["silence", "http", "half a hello", "zeros", "leaves at once"],
)
async def test_what_is_no_gateway_gets_nothing_and_disturbs_nothing(
    lab: Lab, cluster: Cluster, said: bytes | None
) -> None:
    limits = GatewayLimits(close_timeout_s=0.5, head_timeout_s=0.3)
    async with crossing(lab, cluster, await lab.instance(), limits=limits) as c, lab.neighbour(c.near):
        peer = Peer(await trio.open_tcp_stream("127.0.0.1", c.gate.port))
        async with peer.stream:
            if said is None:
                await peer.stream.send_eof()
            else:
                await peer.stream.send_all(said)
            answer = await peer.rest()
        assert len(answer) < 16  # an alert of TLS at most


@pytest.mark.parametrize("who", ["client", "instance"])
async def test_who_never_reads_is_cut_off_by_the_gateway_as_if_it_were_here(
    lab: Lab, cluster: Cluster, who: str
) -> None:
    """Back-pressure reaches the other end; the gate leaves it to the gateway to lose patience."""
    limits = GatewayLimits(close_timeout_s=0.5, stall_timeout_s=0.4)
    frame = lab.frame(BINARY, bytes(60_000), masked=who == "instance")
    sent = 0

    async def flood(stream: trio.SocketStream) -> None:
        nonlocal sent
        while True:
            await stream.send_all(frame)
            sent += len(frame)

    async def raw(stream: trio.SocketStream) -> None:
        peer = lab.Peer(stream)
        await peer.until(b"\r\n\r\n")
        await stream.send_all(lab.switching())
        if who == "client":
            await flood(stream)
        await trio.sleep_forever()

    async with crossing(lab, cluster, await lab.raw(raw), limits=limits) as c:
        peer = await c.near.open()
        if who == "instance":
            with pytest.raises(trio.BrokenResourceError):
                await flood(peer.stream)
        (end,) = await c.near.witness.ends()
        assert (end.ended_by, end.services_fault) == ("gateway", who == "instance")
        assert end.reason == f"the {'backend' if who == 'instance' else 'client'} does not read"
    assert sent < 64 * 1024 * 1024


async def test_a_half_close_reaches_the_instance_and_the_rest_the_client(lab: Lab, cluster: Cluster) -> None:
    late = lab.frame(BINARY, bytes(60_000), masked=False) * 20

    async def answer(peer: Peer) -> None:
        assert await peer.rest() == lab.frame(TEXT, b"last question")
        await peer.stream.send_all(late)

    async with crossing(lab, cluster, await lab.raw(open_ended(lab, answer))) as c:
        peer = await c.near.open()
        await peer.stream.send_all(lab.frame(TEXT, b"last question"))
        await peer.stream.send_eof()
        assert await peer.rest() == late


async def test_what_an_instance_says_last_arrives_though_its_client_still_talks(
    lab: Lab, cluster: Cluster
) -> None:
    """Closing with unread data is a reset, which overtakes what was sent: the gate must not do so."""
    last = lab.frame(BINARY, bytes(60_000), masked=False) * 10

    async def raw(stream: trio.SocketStream) -> None:
        peer = lab.Peer(stream)
        await peer.until(b"\r\n\r\n")
        await stream.send_all(lab.switching() + last)
        await stream.send_eof()
        await peer.rest()

    async with crossing(lab, cluster, await lab.raw(raw)) as c:
        client = await c.near.open()

        async def talk() -> None:
            with suppress(trio.BrokenResourceError):
                while True:
                    await client.stream.send_all(lab.frame(BINARY, bytes(100)))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(talk)
            assert await client.exactly(len(last)) == last
            nursery.cancel_scope.cancel()


async def closed(stream: trio.SocketStream) -> None:
    await stream.send_eof()


async def reset(stream: trio.SocketStream) -> None:
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)


@pytest.mark.parametrize("ends", [closed, reset])
async def test_an_answer_that_was_cut_is_not_taken_for_a_whole_one(
    lab: Lab, cluster: Cluster, ends: Callable[[trio.SocketStream], Awaitable[None]]
) -> None:
    """An HTTP answer may end with its stream."""
    taken = trio.Event()

    async def raw(stream: trio.SocketStream) -> None:
        await stream.send_all(b"a part")
        await taken.wait()
        await ends(stream)

    async with crossing(lab, cluster, await lab.raw(raw)) as c:
        dialer, backend = c.near.gateway.dialer, c.table.backends[0]
        wire, proof = await dialer.reach(backend, LIMITS, deadline=trio.current_time() + 60)
        assert proof == ""
        with trio.fail_after(60):
            try:
                assert await wire.receive(100) == b"a part"
                taken.set()
                if ends is reset:
                    with pytest.raises(OSError, match="EOF"):
                        await wire.receive(100)
                else:
                    assert await wire.receive(100) == b""
            finally:
                wire.close()


async def test_the_clients_of_a_node_that_was_lost_do_not_wait_for_tcp(
    lab: Lab, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cable that was pulled is silent for minutes; the routing table knows after seconds."""
    monkeypatch.setattr(connections, "_GONE_S", 0.1)
    async with crossing(lab, cluster, await lab.instance(), await lab.instance("other")) as c:
        cable = Cable(c.gate, c.near.nursery)
        gates = {NEAR: c.gate, FAR: await cable.lay()}
        c.near.gateway.update(evolve(c.table, gates=gates))
        gone, stays = await c.near.open("/services/echo"), await c.near.open("/services/other")
        cable.pull()
        echo, other = c.table.backends
        coming = evolve(echo, state=BackendState.COMING, node_id=NEAR)
        c.near.gateway.update(evolve(c.table, gates=gates, backends=(coming, other)))
        assert await gone.close_code() == 1012
        cable.up.set()
        await stays.stream.send_all(lab.frame(TEXT, b"hi"))
        assert await stays.exactly(4) == lab.frame(TEXT, b"hi", masked=False)
