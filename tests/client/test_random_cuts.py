"""A streamed answer, cut at random points hundreds of times, loses nothing and repeats nothing.

The model is the list of what the agent said; the connection is a relay that dies after a number of bytes.
"""

import random
from contextlib import asynccontextmanager
from functools import partial

import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agentmgr.agent.session import SessionLimits
from agentmgr.client import session as client
from agentmgr.testing.agents import hosted


@asynccontextmanager
async def cutting_relay(url, lives):
    """Passes bytes on to `url`; each connection dies after the next number of bytes in `lives`."""
    host, port = url.removeprefix("ws://").split(":")
    lives = iter(lives)
    cuts = 0

    async def serve(near):
        nonlocal cuts
        left = next(lives, None)
        async with near, await trio.open_tcp_stream(host, int(port)) as far:
            async with trio.open_nursery() as nursery:

                async def pass_on(source, sink):
                    nonlocal left, cuts
                    async for data in source:
                        if left is not None and len(data) >= left:
                            await sink.send_all(data[:left])  # in the middle of a frame, as it happens
                            cuts += 1
                            break
                        if left is not None:
                            left -= len(data)
                        await sink.send_all(data)
                    nursery.cancel_scope.cancel()

                nursery.start_soon(pass_on, near, far)
                nursery.start_soon(pass_on, far, near)

    async def guarded(near):
        try:
            await serve(near)
        except* (trio.BrokenResourceError, trio.ClosedResourceError):
            pass

    async with trio.open_nursery() as nursery:
        [listener] = await nursery.start(partial(trio.serve_tcp, guarded, 0, host="127.0.0.1"))
        yield f"ws://127.0.0.1:{listener.socket.getsockname()[1]}", lambda: cuts
        nursery.cancel_scope.cancel()


class Counts:
    """Streams 40 numbers, asks in the middle, streams 40 more; counts how often it was really asked to."""

    def __init__(self):
        self.turns, self.decisions = 0, []

    async def on_message(self, session, message):
        self.turns += 1
        for number in range(40):
            yield f"{number} "
            await trio.lowlevel.checkpoint()
        self.decisions.append(bool(await session.confirm("go_on", number)))
        for number in range(40, 80):
            yield f"{number} "


async def one_schedule(lives):
    agent = Counts()
    async with hosted(agent, limits=SessionLimits(buffer_events=500)) as url:
        async with cutting_relay(url, lives) as (relay, cuts), client.open_session(relay) as session:
            for _ in range(2):
                turn = await session.send("go")
                events = []
                async for event in turn:
                    events.append(event)
                    if event.event == "agent.user_confirm":
                        await session.respond(event, True)
                said = [event.content for event in events if event.event == "agent.partial_answer"]
                assert said == [f"{number} " for number in range(80)]
                assert event.content == "".join(said)
                numbers = [event.seq for event in events if event.seq is not None]
                assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
            assert not any(event.code == "gap" for event in events)
    assert agent.turns == 2
    assert agent.decisions == [True, True]
    return cuts()


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.integers(200, 15_000), max_size=12))
def test_any_schedule_of_cuts_loses_and_repeats_nothing(lives):
    # The first connection must begin a session: before that, nothing has been promised.
    trio.run(_quick, [4000, *lives])


async def _quick(lives):
    client_first, client.RETRY_FIRST_S = client.RETRY_FIRST_S, 0.001
    try:
        with trio.fail_after(180):
            return await one_schedule(lives)
    finally:
        client.RETRY_FIRST_S = client_first


async def test_hundreds_of_cuts_in_one_conversation_lose_and_repeat_nothing(monkeypatch):
    monkeypatch.setattr(client, "RETRY_FIRST_S", 0.0005)
    monkeypatch.setattr(client, "RETRY_MAX_S", 0.002)
    seed = random.randrange(2**32)
    print("seed", seed)
    lots = random.Random(seed)
    cuts = 0
    with trio.fail_after(180):
        while cuts < 300:
            cuts += await one_schedule([4000] + [lots.randrange(250, 2500) for _ in range(80)])
