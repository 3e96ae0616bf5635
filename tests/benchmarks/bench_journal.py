"""What the journal of sessions costs, beside one that keeps nothing.

    python tests/benchmarks/bench_journal.py [--directory DIR] [--seconds S] [--stored N] [--redis URL]

Prints a table; asserts nothing. `--directory` says on which disk. The load: 200 sessions, of which each says
50 pieces of an answer a second, of 60 characters. With `--redis` the same load and the same long session are
put into a Redis too, under keys of their own, which are erased:

    redis-server --port 0 --unixsocket /tmp/s --save '' --appendonly yes
    python tests/benchmarks/bench_journal.py --redis unix:///tmp/s
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from pathlib import Path

import trio
from attrs import evolve

from agentmgr.journal import sqlite_archive
from agentmgr.journal.durable import DurableJournal
from agentmgr.journal.journal import Accepted, Frame, SessionRecord, SessionSnapshot, TurnEnded, TurnRecord
from agentmgr.journal.memory import MemoryJournal
from agentmgr.journal.sqlite import open_journal

SESSIONS, RATE = 200, 50
TEXT = b'1795982576007 "' + b"x" * 60 + b'"'


def print_row(what: str, value: str) -> None:
    print(f"| {what:<52} | {value:>34} |", flush=True)


def spread(seconds: list[float]) -> str:
    ordered = sorted(seconds)
    p50, p99 = (ordered[int(len(ordered) * share)] * 1e3 for share in (0.5, 0.99))
    return f"{p50:.2f} ms (p99 {p99:.2f})"


class Copy:
    def __init__(self, held, delays: list[float]) -> None:
        self.held, self.delays = held, delays
        self.said = self.visible = 0
        self.handed_over: dict[int, float] = {}
        held.keep(self)

    def committed(self, seq: int) -> None:
        now = time.perf_counter()
        for number in range(self.visible + 1, seq + 1):
            self.delays.append(now - self.handed_over.pop(number))
        self.visible = seq

    def lost(self) -> None:
        raise AssertionError("nobody else holds it")

    def snapshot(self) -> SessionSnapshot:
        return SessionSnapshot(evolve(self.held.loaded.record, last_seq=self.said), (), ())

    def say(self) -> None:
        self.said += 1
        self.handed_over[self.said] = time.perf_counter()
        self.held.write(Frame(self.said, 1, TEXT))

    async def stream(self, offset_s: float) -> None:
        at = trio.current_time() + offset_s
        while True:
            await trio.sleep_until(at)
            self.say()
            at += 1 / RATE


@asynccontextmanager
async def in_memory():
    yield MemoryJournal()


async def load(what: str, opened, seconds: float) -> tuple[float, int]:
    """CPU seconds of an event, and their number."""
    delays: list[float] = []
    async with opened as journal:
        copies = []
        for number in range(SESSIONS):
            copies.append(Copy(await journal.create(record(number)), delays))
            copies[-1].held.write(Accepted(TurnRecord(1, f"turn_{number}", "{}", 1.0)))
        await copies[-1].held.settled()
        began, cpu = time.perf_counter(), time.process_time()
        with trio.move_on_after(seconds):
            async with trio.open_nursery() as nursery:
                for number, copy in enumerate(copies):
                    nursery.start_soon(copy.stream, number / SESSIONS / RATE)
        cpu, took = time.process_time() - cpu, time.perf_counter() - began
    events = sum(copy.said for copy in copies)
    print_row(f"{what}: events a second", f"{events / took:.0f}")
    print_row(f"{what}: CPU of an event", f"{cpu / events * 1e6:.1f} µs")
    print_row(f"{what}: until it is committed", spread(delays))
    return cpu / events, events


def record(number: int) -> SessionRecord:
    at = 1_000_000.0 + number
    return SessionRecord(f"ses_{number:032x}", f"user_{number % 1000}", at, at, f"chat {number}")


async def take_up(what: str, opened: Callable[[str], AbstractAsyncContextManager[DurableJournal]]) -> None:
    """A session of 10,000 events, in rows of some 5, as they come together under load."""
    async with opened("inst_1") as journal:
        held = await journal.create(record(0))
        copy = Copy(held, [])
        for turn in range(20):
            held.write(Accepted(TurnRecord(turn + 1, f"turn_{turn}", '{"content":"hello"}', 1.0)))
            for _ in range(100):
                for _ in range(5):
                    copy.said += 1
                    copy.handed_over[copy.said] = 0.0
                    held.write(Frame(copy.said, turn + 1, TEXT))
                await held.settled()
        await held.release()
    found = []
    for _ in range(20):
        async with opened("inst_2") as journal:
            began = time.perf_counter()
            held = await journal.take_up(record(0).session_id)
            found.append(time.perf_counter() - began)
            assert held is not None
            await held.release()
    print_row(f"{what}: take up a session of 10,000 events", spread(found))


async def fill(journal: DurableJournal, number: int) -> None:
    for start in range(0, number, 1000):
        several = [await journal.create(evolve(record(n), name=None)) for n in range(start, start + 1000)]
        for held in several:
            held.write(Accepted(TurnRecord(1, "turn_1", '{"content":"hello"}', 1.0)), Frame(1, 1, TEXT))
            held.write(TurnEnded(1, "agent.final_answer", None, 2.0))
        await several[-1].settled()
        for held in several:
            journal.let_go(held)


async def stored(path: Path, number: int) -> None:
    async with open_journal(path, "inst_1") as journal:
        await fill(journal, number)
        created = []
        for n in range(number, number + 200):
            began = time.perf_counter()
            held = await journal.create(record(n))
            held.write(Frame(1, 0, TEXT))
            await held.settled()
            created.append(time.perf_counter() - began)
        print_row(f"create one beside {number:,} sessions, named", spread(created))
        cursor = sqlite_archive.sessions(path, limit=100).next_cursor
        looks: dict[str, Callable[[], object]] = {
            "list the first page of 100": lambda: sqlite_archive.sessions(path, limit=100),
            "list the next page": lambda: sqlite_archive.sessions(path, limit=100, cursor=cursor),
            "list an owner's": lambda: sqlite_archive.sessions(path, owner="user_7", limit=100),
            "find a name": lambda: sqlite_archive.sessions(path, text=f"chat {number + 5}", limit=100),
            "count them": lambda: sqlite_archive.figures(path),
        }
        for what, look in looks.items():
            found = []
            for _ in range(10):
                began = time.perf_counter()
                await trio.to_thread.run_sync(look)
                found.append(time.perf_counter() - began)
            print_row(what, spread(found))


async def in_redis(url: str, seconds: float, memory: float) -> None:
    from agentmgr.journal import redis
    from agentmgr.journal.redis_connection import RedisAddress, open_redis

    service_id = f"bench_{time.time_ns()}"

    def opened(instance_id: str) -> AbstractAsyncContextManager[DurableJournal]:
        return redis.open_journal(url, service_id, instance_id)

    async with open_redis(RedisAddress.parse(url)) as connected:

        async def figure(section: str, name: str) -> float:
            text = (await connected.call("INFO", section)).decode()
            (line,) = (line for line in text.splitlines() if line.startswith(f"{name}:"))
            return float(line.partition(":")[2])

        async def cpu() -> float:
            return sum([await figure("cpu", f"used_cpu_{kind}") for kind in ("user", "sys")])

        bytes_before, cpu_before = await figure("memory", "used_memory"), await cpu()
        durable, events = await load("in Redis", opened("inst_1"), seconds)
        used = await figure("memory", "used_memory") - bytes_before
        print_row("what Redis adds to an event", f"{(durable - memory) * 1e6:.1f} µs")
        print_row("CPU of an event in Redis itself", f"{(await cpu() - cpu_before) / events * 1e6:.1f} µs")
        print_row("bytes of its memory for an event of 60", f"{used / events:.0f}")
        for key in await connected.call("KEYS", f"agentmgr:{chr(92)}{{{service_id}}}:*"):
            await connected.call("DEL", key)
        await take_up("in Redis", opened)
        for key in await connected.call("KEYS", f"agentmgr:{chr(92)}{{{service_id}}}:*"):
            await connected.call("DEL", key)


async def main(directory: Path, seconds: float, number: int, redis_url: str | None) -> None:
    memory, _ = await load("in memory", in_memory(), seconds)
    path = directory / "load.db"
    durable, events = await load("in SQLite", open_journal(path, "inst_1"), seconds)
    print_row("what SQLite adds to an event", f"{(durable - memory) * 1e6:.1f} µs")
    print_row("bytes in the file for an event of 60", f"{path.stat().st_size / events:.0f}")
    await take_up("in SQLite", partial(open_journal, directory / "one.db"))
    if redis_url is not None:
        await in_redis(redis_url, seconds, memory)
    await stored(directory / "many.db", number)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--directory", type=Path, help="where to put the files (a temporary directory)")
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--stored", type=int, default=100_000)
    parser.add_argument("--redis", metavar="URL", help="measure a Redis too")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.directory) as temporary:
        trio.run(main, Path(temporary), arguments.seconds, arguments.stored, arguments.redis)
