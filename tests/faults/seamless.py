"""`python -m tests.faults.seamless --kills N [--seed S]`: agents are killed under clients; none reconnects.

Real hosts, a real gateway, real sockets. Some clients speak events and some plain text, and none has a line
that would reconnect. After all kills each has got every event once, byte for byte as the journal has it, each
message is answered once, and each ping.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from random import Random

import trio
from trio_websocket import WebSocketConnection

from agentmgr import AgentManager
from agentmgr.agent.events import expand
from agentmgr.journal import sqlite_archive
from agentmgr.models import ServiceConfig
from agentmgr.models.host_config import OnCrash
from agentmgr.process.paths import RuntimePaths
from agentmgr.protocol import PARTIAL_ANSWER, TURN_ENDS
from tests.proxy.conftest import connected, eventually

AGENT = """
import trio

def create_agent():
    async def answer(message, session):
        for number in range(40):
            await session.emit("agent.partial_answer", f"{number} of {message} ")
            await trio.sleep(0.003)
        return f"answer to {message}"
    return answer
"""
PATIENCE_S = 60.0


class Chat:
    """A client that speaks events."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.events: list[bytes] = []
        self.turns = 0
        self.session_id = ""

    async def talk(self, websocket: WebSocketConnection, over: trio.Event, draw: Random) -> None:
        ahead = False
        while ahead or not over.is_set():
            if not ahead:
                await self._ask(websocket, self.turns)
            if draw.random() < 0.3:
                await websocket.send_message(json.dumps({"event": "ping", "content": f"{self.turns}"}))
            ahead = draw.random() < 0.3 and not over.is_set()
            await self._until_answered(websocket, f"{self.name} {self.turns}", ahead=ahead)
            self.turns += 1
            await trio.sleep(draw.uniform(0, 0.05))

    async def _ask(self, websocket: WebSocketConnection, number: int) -> None:
        step = f"{self.name} {number}"
        await websocket.send_message(json.dumps({"event": "user.message", "content": step, "step_id": step}))

    async def _until_answered(self, websocket: WebSocketConnection, step: str, *, ahead: bool) -> None:
        """`ahead`: sends the next message as soon as this one is being answered."""
        with trio.fail_after(PATIENCE_S):
            while True:
                text = await websocket.get_message()
                event = json.loads(text)
                self.events.append(text.encode())
                self.session_id = self.session_id or event["session_id"] or ""
                if ahead and event["event"] == PARTIAL_ANSWER:
                    ahead = False
                    await self._ask(websocket, self.turns + 1)
                if event["event"] in TURN_ENDS:
                    assert event["step_id"] == step, (event, step)
                    assert event["content"] == f"answer to {step}", event
                    return

    def check(self, path: Path) -> None:
        """All that it got is what the journal has of its session, once, in order; and the answers."""
        self.check_by(stored(path, self.session_id))

    def check_by(self, stored: Sequence[bytes]) -> None:
        """`stored`: the texts of all events of its session."""
        texts = [text.partition(b",")[2] for text in self.events]  # without the connection's id
        said = [text for text in texts if b'"seq":' in text]
        kept = [text[1:] for text in stored]
        assert said == kept, (self.name, len(said), len(kept))
        names = Counter(json.loads(text)["event"] for text in self.events if b'"seq":' not in text)
        assert names["system.connected"] == 1, names
        assert not names["system.error"], names
        pongs = [json.loads(text)["content"] for text in self.events if b'"event":"pong"' in text]
        assert len(pongs) == len(set(pongs))


class Lines:
    """A client that speaks plain text."""

    def __init__(self, name: str) -> None:
        self.name, self.turns = name, 0

    async def talk(self, websocket: WebSocketConnection, over: trio.Event, draw: Random) -> None:
        while not over.is_set():
            await websocket.send_message(f"{self.name} {self.turns}")
            with trio.fail_after(PATIENCE_S):
                assert await websocket.get_message() == f"answer to {self.name} {self.turns}"
            self.turns += 1
            await trio.sleep(draw.uniform(0, 0.05))

    def check(self, path: Path) -> None:
        pass


def stored(path: Path, session_id: str) -> list[bytes]:
    found: list[bytes] = []
    while more := sqlite_archive.events(path, session_id, len(found)):
        found += [expand(it.line, it.seq, session_id=session_id, step_id=it.step_id) for it in more]
    return found


async def kill_under_clients(
    directory: Path, *, kills: int, draw: Random, clients: int = 6, instances: int = 2, restarts: float = 0.1
) -> Counter[str]:
    """`restarts`: which share of the kills are planned restarts instead."""
    (directory / "agent.py").write_text(AGENT)
    count: Counter[str] = Counter()
    talkers: list[Chat | Lines] = [(Chat, Chat, Lines)[i % 3](f"c{i}") for i in range(clients)]
    over = trio.Event()
    config = ServiceConfig(
        instances=instances,
        restart_delay=0,
        restart_delay_max=0,
        max_restart_count=1_000_000,
        on_crash=OnCrash.RETRY,
        max_turn_attempts=100,
    )
    manager_database = directory / "manager.db"
    async with AgentManager(manager_database) as manager, trio.open_nursery() as nursery:
        service = await manager.register_service(
            "agent", str(directory / "agent.py"), config=config, auto_start=True
        )
        url = f"ws://127.0.0.1:{await nursery.start(manager.serve_proxy, '127.0.0.1', 0)}"

        async def converse(talker: Chat | Lines) -> None:
            async with connected(url, greeting=True) as websocket:
                await talker.talk(websocket, over, Random(draw.random()))
                await ping_pong(websocket)

        async def all_answered(more: int) -> None:
            before = [talker.turns for talker in talkers]
            await eventually(
                lambda: all(t.turns >= then + more for t, then in zip(talkers, before, strict=True))
            )

        async with trio.open_nursery() as conversations:
            for talker in talkers:
                conversations.start_soon(converse, talker)
            await all_answered(1)
            for number in range(kills):
                await trio.sleep(draw.uniform(0, 0.5))
                if draw.random() < restarts:
                    await manager.restart_service("agent")
                    count["planned restarts"] += 1
                else:
                    pids = [i.pid for i in manager.get_service("agent").instances if i.pid]
                    if pids:
                        with suppress(ProcessLookupError):
                            os.kill(draw.choice(pids), signal.SIGKILL)
                            count["kills"] += 1
                if number % 10 == 9:
                    await all_answered(1)
            await all_answered(1)
            count["resumed"] = sum(c.resumed for c in manager.list_connections())
            over.set()
        path = RuntimePaths.of(manager_database).sessions / f"{service.service_id}.db"
        for talker in talkers:
            talker.check(path)
        nursery.cancel_scope.cancel()
    count["turns, each answered once"] = sum(talker.turns for talker in talkers)
    return count


async def ping_pong(websocket: WebSocketConnection) -> None:
    with trio.fail_after(PATIENCE_S):
        await websocket.ping()


if __name__ == "__main__":
    parser = argparse.ArgumentParser("python -m tests.faults.seamless", description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--clients", type=int, default=6)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**32))
    args = parser.parse_args()
    print(f"seed={args.seed}", flush=True)
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as place:
        counts = trio.run(
            lambda: kill_under_clients(
                Path(place), kills=args.kills, draw=Random(args.seed), clients=args.clients
            )
        )
    for name, value in sorted(counts.items()):
        print(f"{value:8}  {name}")
    print(f"{time.monotonic() - begin:8.0f}  seconds; no byte differs, no message lost or answered twice")
