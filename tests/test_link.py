"""Lines between two ends of a stream: whole, in order, and an end to every silence."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import trio
import trio.testing
from trio.testing import MockClock, lockstep_stream_pair, memory_stream_pair

from agentmgr import link
from agentmgr.errors import InvalidRequest
from agentmgr.link import HEARTBEAT_S, SILENCE_S, Link


def encode(message: object) -> bytes:
    return json.dumps(message).encode() + b"\n"


def decode(line: bytes) -> Any:
    try:
        return json.loads(line)
    except ValueError as error:
        raise InvalidRequest("no message") from error


def of(stream: trio.abc.Stream, **limits: float) -> Link[object, Any]:
    return Link(stream, encode, decode, **limits)


async def test_messages_arrive_in_order_however_the_stream_cuts_them(nursery: trio.Nursery) -> None:
    one, other = lockstep_stream_pair()
    left, right = of(one), of(other)
    nursery.start_soon(left.run)
    messages = [{"n": number, "text": "é" * number} for number in range(3)] + [{"big": "x" * 600_000}]
    left.put(*messages[:2])
    left.put_lines(*map(encode, messages[2:]))
    assert [await right.receive() for _ in messages] == messages
    await left.flushed()

    # What no `Link` would send: one byte at a time, several lines at once, empty lines between them.
    one, other = memory_stream_pair()
    right = of(other)
    for piece in (b'{"a', b'": 1', b'}\n\n{"b": 2}\n', b"\n", b'{"c": 3}\n'):
        await one.send_all(piece)
    assert [await right.receive() for _ in range(3)] == [{"a": 1}, {"b": 2}, {"c": 3}]
    await one.send_all(b"what?\n")
    with pytest.raises(InvalidRequest):
        await right.receive()
    await one.aclose()
    assert await right.receive() is None


async def test_a_process_that_was_suspended_listens_again_before_it_calls_the_peer_silent(
    nursery: trio.Nursery, mock_clock: MockClock
) -> None:
    one, other = memory_stream_pair()
    hears, heard = of(other, silence_s=SILENCE_S), []

    async def listen() -> None:
        heard.append(await hears.receive())

    nursery.start_soon(listen)
    await trio.testing.wait_all_tasks_blocked()
    mock_clock.jump(10 * SILENCE_S)  # all at once, as for a machine that was paused
    await trio.testing.wait_all_tasks_blocked()
    assert heard == [], "it listens"
    await one.send_all(b"1\n")
    await trio.testing.wait_all_tasks_blocked()
    assert heard == [1]
    nursery.start_soon(listen)
    await trio.testing.wait_all_tasks_blocked()
    mock_clock.jump(SILENCE_S + 0.1)
    await trio.testing.wait_all_tasks_blocked()
    assert heard == [1, None], "in time, and nothing has come"


async def test_heartbeats_keep_an_idle_link_and_silence_ends_it(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    one, other = memory_stream_pair()
    speaks = of(one, heartbeat_s=HEARTBEAT_S)
    hears = of(other, silence_s=SILENCE_S)
    scope = await nursery.start(_run_in_scope, speaks)

    with trio.move_on_after(60) as a_minute:
        await hears.receive()
    assert a_minute.cancelled_caught
    speaks.put("then this")
    assert await hears.receive() == "then this"

    scope.cancel()
    since = trio.current_time()
    assert await hears.receive() is None
    # the last heartbeat may wait unread in the stream
    assert SILENCE_S <= trio.current_time() - since <= SILENCE_S + HEARTBEAT_S


async def _run_in_scope(link: Link[object, Any], *, task_status: trio.TaskStatus[trio.CancelScope]) -> None:
    with trio.CancelScope() as scope:
        task_status.started(scope)
        await link.run()


async def test_a_peer_that_takes_in_nothing_is_given_up_and_a_slow_one_is_not(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    one, other = lockstep_stream_pair()  # sends only as fast as the other end reads
    slow, message = of(one), "x" * (8 * 2**18)

    async def read_slowly() -> None:
        for _ in range(6):
            await trio.sleep(link.STALL_S - 1)
            await other.receive_some(2**18)

    slow.put(message)
    since = trio.current_time()
    nursery.start_soon(read_slowly)
    with pytest.raises(trio.BrokenResourceError):
        await slow.run()
    assert trio.current_time() - since > 6 * (link.STALL_S - 1)  # and no sooner


async def test_a_line_without_an_end_is_refused_before_it_fills_the_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(link, "LONGEST_LINE_BYTES", 1000)
    one, other = memory_stream_pair()
    await one.send_all(b"x" * 1001)
    with pytest.raises(InvalidRequest, match="more than 1000 bytes"):
        await of(other, silence_s=math.inf).receive()
