"""Clients that come and go at a service with `max_sessions`, and its server, which counts them itself."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import trio
from attrs import define
from trio_websocket import ConnectionClosed, WebSocketConnection

from agentmgr.client.transport import CannotConnect, with_connection

SERVER = """
import os, sys
from pathlib import Path

import trio
from trio_websocket import ConnectionClosed, serve_websocket

live = most = 0

async def serve(request):
    global live, most
    takes_seat = not dict(request.headers).get(b"user-agent", b"").startswith(b"agentmgr-probe/")
    live += takes_seat
    if live > most:
        most = live
        (Path(MARKS) / f"{os.getpid()}.most").write_text(str(most))
    try:
        websocket = await request.accept()
        while True:
            await websocket.send_message(f"answer to {await websocket.get_message()}")
    except ConnectionClosed:
        pass
    finally:
        live -= takes_seat

trio.run(serve_websocket, serve, "127.0.0.1", int(sys.argv[1]), None)
"""


def peaks(marks: Path) -> list[int]:
    """The most sessions at once, of each process that had any."""
    return [int(file.read_text() or 0) for file in marks.glob("*.most")]


@define
class Visitor:
    """Takes a seat, asks some questions, and leaves; again and again."""

    number: int
    visits: int = 0
    answered: int = 0
    last_at: float = 0.0
    longest_s: float = 0.0  #: without an answer

    async def run(self, urls: list[str], draw: random.Random, count: Counter[str], faults: list[str]) -> None:
        """Until cancelled, through any of the gateways at `urls`."""
        self.last_at = trio.current_time()

        async def ask(websocket: WebSocketConnection) -> None:
            self.visits += 1
            for turn in range(draw.randint(1, 5)):
                text = f"{self.number}.{self.visits}.{turn}"
                await websocket.send_message(text)
                if (answer := str(await websocket.get_message())) != f"answer to {text}":
                    faults.append(f"visitor {self.number} got {answer!r} for {text!r}")
                now = trio.current_time()
                self.longest_s, self.last_at = max(self.longest_s, now - self.last_at), now
                self.answered += 1
                await trio.sleep(draw.uniform(0, 0.3))

        async def shielded(websocket: WebSocketConnection) -> None:
            try:
                await ask(websocket)
            except ConnectionClosed:
                count["visits cut by the other side"] += 1

        while True:
            try:
                await with_connection(draw.choice(urls), [], shielded)
            except CannotConnect as refused:
                count[f"refused: {refused.code}" if refused.code else "not connected"] += 1
            await trio.sleep(0.05)
