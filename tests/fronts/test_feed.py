"""What is sent to a door arrives in order and whole, whether it went through memory or through the kernel."""

import socket
from contextlib import suppress

import pytest
import trio
import trio.testing

from agentmgr.fronts.feed import Feed


def pair() -> tuple[Feed, socket.socket]:
    ours, theirs = socket.socketpair()
    for sock in (ours, theirs):
        sock.setblocking(False)
    return Feed(theirs), ours


async def read(feed: Feed, ours: socket.socket, size: int) -> bytes:
    data = b""
    with trio.fail_after(60):
        while len(data) < size:
            data += await feed.receive(ours, 1000)
    return data


async def test_all_arrives_in_order_while_the_reader_keeps_up_and_while_it_does_not():
    feed, ours = pair()
    sent = received = b""
    with feed, ours:
        for round_ in range(200):
            with suppress(BlockingIOError):
                for number in range(round_ % 50):
                    data = b"%d-%d," % (round_, number) * (1 + round_ * 10)
                    sent += data[: feed.send(data)]
            if round_ % 3:
                received += await read(feed, ours, min(len(sent) - len(received), 50_000))
        feed.shutdown(socket.SHUT_WR)
        received += await read(feed, ours, len(sent) - len(received))
        assert received == sent
        assert await feed.receive(ours, 1000) == b""


async def test_a_sender_waits_for_a_reader_that_does_not_read():
    feed, ours = pair()
    with feed, ours:
        with pytest.raises(BlockingIOError):
            while True:
                feed.send(b"x" * 10_000)
        taken = 0
        with trio.move_on_after(0.2):
            while True:
                taken += len(await feed.receive(ours, 10**6))
        assert taken > 64 * 1024
        assert feed.send(b"y") == 1
        assert await feed.receive(ours, 10) == b"y"


@pytest.mark.parametrize("end", [Feed.close, lambda feed: feed.shutdown(socket.SHUT_WR)])
async def test_a_reader_that_waits_hears_of_the_end(end, autojump_clock):
    feed, ours = pair()
    with ours:
        with trio.move_on_after(0.1):
            await feed.receive(ours, 10)  # the kernel is empty, so what follows is in memory
        feed.send(b"last")
        async with trio.open_nursery() as nursery:

            async def reader() -> None:
                assert await feed.receive(ours, 10) == b"last"
                assert await feed.receive(ours, 10) == b""

            nursery.start_soon(reader)
            await trio.testing.wait_all_tasks_blocked()
            end(feed)
        feed.close()


async def test_what_no_door_reads_any_more_is_an_error_of_the_sender():
    feed, ours = pair()
    with feed:
        with trio.move_on_after(0.05):
            await feed.receive(ours, 10)
        feed.end()
        ours.close()
        with pytest.raises(BrokenPipeError):
            feed.send(b"x")
