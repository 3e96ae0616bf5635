"""A connection whose instance ends goes on with another one: byte for byte, wherever it was cut.

The instances here are scripts of bytes. What an agent's host does is in tests/faults/test_seamless.py.
"""

import re

import pytest
import trio
from attrs import evolve

from agentmgr.core.routing import BackendState, RoutingTable
from agentmgr.proxy import GatewayLimits
from agentmgr.proxy.tail import TAIL_BYTES, Tail
from agentmgr.websocket.frames import FrameTracker
from tests.proxy.conftest import frame

TEXT, PING, PONG = 1, 9, 10
LIMITS = GatewayLimits(close_timeout_s=0.5)


class Script:
    """An instance that journals nothing, and knows by heart what it has to say to its one client."""

    def __init__(self, lab, said, *cuts):
        self.lab, self.frames = lab, said
        self.cuts = list(cuts)  # after so many bytes of all that it has to say each of its lives ends
        self.taken = 0  # messages
        self.heard, self.asked = [], []
        self.resumes = True
        self.open = self.most_open = 0

    async def backend(self, name="raw", **facts):
        return await self.lab.raw(self.serve, name, **{"resume_within": 30.0, **facts})

    async def serve(self, stream):
        self.open += 1
        self.most_open = max(self.most_open, self.open)
        try:
            await self.live(stream)
        finally:
            self.open -= 1

    async def live(self, stream):
        peer = self.lab.Peer(stream)
        head = (await peer.until(b"\r\n\r\n")).decode()
        [asked] = re.findall(r"X-Agentmgr-Resume: (.*)\r\n", head) or [None]
        self.asked.append(asked)
        found = re.search("delivered=([0-9]+); offset=([0-9]+)", asked or "")
        if found and not self.resumes:
            await stream.send_all(b"HTTP/1.1 410 Gone\r\nContent-Length: 0\r\n\r\n")
            return
        frames = int(found[1]) if found else 0
        fields = [f"X-Agentmgr-Resumed: taken={self.taken}; pings=0"] if asked else []
        await stream.send_all(self.lab.switching(*fields))
        begin = sum(map(len, self.frames[:frames]))
        said = b"".join(self.frames)
        if self.cuts:
            await stream.send_all(said[begin : self.cuts.pop(0)])
            return
        await stream.send_all(said[begin:])
        self.heard.append(await peer.rest())


SAID = [(TEXT, b"hello"), (PING, b"there?"), (TEXT, b"x" * 130), (TEXT, b"")]


@pytest.fixture
def said(lab):
    return [lab.frame(opcode, payload, masked=False) for opcode, payload in SAID]


async def test_what_was_cut_anywhere_is_spliced_exactly(lab, said):
    whole = b"".join(said)
    scripts = [Script(lab, said, cut) for cut in range(len(whole))]
    backends = [await script.backend(f"s{cut}") for cut, script in enumerate(scripts)]
    async with lab.gateway(*backends, limits=LIMITS) as stage, trio.open_nursery() as nursery:

        async def hear(cut):
            client = await stage.open(f"/services/s{cut}")
            assert await client.exactly(len(whole)) == whole, cut

        for cut in range(len(whole)):
            nursery.start_soon(hear, cut)
    assert all(len(script.asked) == 2 for script in scripts)


async def test_a_connection_is_cut_again_and_again(lab, said):
    script = Script(lab, said, 40, 60, 60, 100)
    async with lab.gateway(await script.backend(), limits=LIMITS) as stage:
        client = await stage.open()
        whole = b"".join(said)
        assert await client.exactly(len(whole)) == whole
        assert [connection.resumed for connection in stage.gateway.connections()] == [4]
        assert (len(stage.witness.opened), len(stage.witness.resumed)) == (1, 4)
    connection_id = stage.witness.opened[0].connection_id
    assert script.asked[:2] == [connection_id, f"{connection_id}; delivered=2; offset=25"]
    assert [end.resumed for end in stage.witness.closed] == [4]


async def test_what_was_not_taken_in_is_sent_again_and_no_more(lab, said):
    """Also what came while there was no instance."""
    messages = [lab.frame(TEXT, f"message {number}".encode()) for number in range(6)]
    script = Script(lab, said, 0)
    may_end = trio.Event()

    async def until_heard(stream):
        if len(script.asked) == 1:
            await script.live(stream)
            return
        first = lab.Peer(stream)
        await first.until(b"\r\n\r\n")
        script.asked.append("")
        await stream.send_all(lab.switching("X-Agentmgr-Resumed: taken=0; pings=0"))
        await first.exactly(len(messages[0]) * 4)
        script.taken = 2
        may_end.set()

    script.cuts.clear()
    backend = await lab.raw(until_heard, resume_within=30.0)
    async with lab.gateway(backend, limits=LIMITS) as stage:
        client = await stage.open()
        for message in messages[:4]:
            await client.stream.send_all(message)
        await may_end.wait()
        for message in messages[4:]:
            await client.stream.send_all(message)
        await client.exactly(sum(map(len, said)))
        await client.stream.send_all(lab.frame(TEXT, b"later"))
        await client.stream.send_eof()
        await lab.eventually(lambda: script.heard)
    assert script.heard == [b"".join(messages[2:]) + lab.frame(TEXT, b"later")]


async def test_pings_are_answered_while_an_instance_is_awaited(lab, said):
    script = Script(lab, said, len(said[0]))
    backend = await script.backend(token="")
    async with lab.gateway(backend, limits=LIMITS) as stage:
        client = await stage.open()
        assert await client.exactly(len(said[0])) == said[0]
        stage.gateway.update(RoutingTable((evolve(backend, state=BackendState.COMING),)))
        await lab.eventually(lambda: not stage.gateway.active_connections(backend.instance_id))
        await client.stream.send_all(lab.frame(PING, b"anyone?") + lab.frame(TEXT, b"hi"))
        assert await client.exactly(9) == lab.frame(PONG, b"anyone?", masked=False)
        stage.gateway.update(RoutingTable((backend,)))
        assert await client.exactly(sum(map(len, said[1:]))) == b"".join(said[1:])
        await client.stream.send_eof()
        await lab.eventually(lambda: script.heard)
    assert script.heard == [lab.frame(TEXT, b"hi")]


async def test_seats_are_never_exceeded(lab, said):
    script = Script(lab, said, *range(10, 150, 7))
    backend = await script.backend(max_sessions=2)
    whole = b"".join(said)
    async with lab.gateway(backend, limits=LIMITS) as stage, trio.open_nursery() as nursery:

        async def hear():
            client = await stage.open()
            assert await client.exactly(len(whole)) == whole
            await client.stream.aclose()

        for _ in range(6):
            nursery.start_soon(hear)
    assert script.most_open == 2
    assert len(stage.witness.resumed) == 20


@pytest.mark.parametrize("refuses", [False, True])
async def test_what_cannot_be_resumed_ends_as_before(lab, said, refuses):
    script = Script(lab, said, len(said[0]))
    script.resumes = not refuses
    backend = await script.backend(resume_within=30.0 if refuses else 0.0)
    async with lab.gateway(backend, limits=LIMITS) as stage:
        client = await stage.open()
        assert await client.exactly(len(said[0])) == said[0]
        stage.gateway.update(RoutingTable((evolve(backend, state=BackendState.COMING),)))
        if refuses:
            await lab.eventually(lambda: not stage.gateway.active_connections(backend.instance_id))
            stage.gateway.update(RoutingTable((backend,)))
        assert await client.close_code() == 1012


async def test_time_is_over(lab, said):
    script = Script(lab, said, len(said[0]))
    backend = await script.backend(resume_within=0.3)
    async with lab.gateway(backend, limits=LIMITS) as stage:
        client = await stage.open()
        stage.gateway.update(RoutingTable((evolve(backend, state=BackendState.COMING),)))
        assert await client.exactly(len(said[0])) == said[0]
        assert await client.close_code() == 1012
        [end] = await stage.witness.ends()
        assert (end.ended_by, end.code, end.resumed) == ("backend", 1012, 0)


async def test_a_client_that_is_disconnected_or_leaves_meanwhile_is_gone(lab, said):
    script = Script(lab, said, 0, 0)
    backend = await script.backend()
    async with lab.gateway(backend, limits=LIMITS) as stage:
        first, second = await stage.open(), await stage.open()
        stage.gateway.update(RoutingTable((evolve(backend, state=BackendState.COMING),)))
        await lab.eventually(lambda: not stage.gateway.active_connections(backend.instance_id))
        stage.gateway.disconnect(stage.witness.opened[0].connection_id)
        assert await first.close_code() == 1008
        await second.stream.aclose()
        assert {end.ended_by for end in await stage.witness.ends(2)} == {"gateway", "client"}


def tail_of(*frames):
    tracker = FrameTracker(masked=True)
    tail = Tail(tracker)
    for data in frames:
        tracker.feed(data)
        tail.append(memoryview(data))
    return tail


def test_a_tail_begins_at_any_message_that_it_has():
    one, two = frame(TEXT, b"one"), frame(TEXT, b"two")
    ping, half = frame(PING, b"!"), frame(TEXT, b"half")[:5]
    begun, ended = frame(TEXT, b"be", fin=False), frame(0, b"gun")
    tail = tail_of(one, ping, begun, ping, ended, two, half)
    assert tail.after(0, 0) == one + ping + begun + ping + ended + two + half
    assert tail.after(1, 1) == begun + ping + ended + two + half
    assert tail.after(1, 2) == begun + ended + two + half
    assert tail.after(3, 2) == half
    assert tail.after(4, 2) is None


def test_a_tail_is_bounded():
    message = frame(TEXT, b"x" * 1000)
    tail = tail_of(*[message] * 1000)
    assert len(tail) <= TAIL_BYTES
    assert tail.after(990, 0) == message * 10
    assert tail.after(900, 0) is None
    tail = tail_of(message, *[frame(TEXT, b"y" * 60000, fin=False)] * 3, message)
    assert len(tail) == 0
    assert tail.after(1, 0) is None
    tail = tail_of(frame(TEXT, b"y" * 60000, fin=False), frame(0, b"y" * 60000), message, message)
    assert tail.after(2, 0) == message
