"""A host that is about to end: its connections end as soon as nothing goes on in them.

Something goes on while a turn runs or waits to run, also one that waits for a person or whose client is away.
Silence on the wire shows none of that: an agent thinks. What an agent with `serve(websocket)` is doing cannot
be seen, so its host does not drain.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol
from urllib.parse import parse_qs, urlsplit

import trio

from ..core.proof import proof
from ..protocol import COME_BACK, GOING_AWAY
from .session_registry import SessionRegistry

LINGER_S = 0.2
"""So long after a client's frame its connection stays: behind a reconnect come the messages."""
FIRST_FRAME_S = 2.0
"""So long it stays for the first frame. Some clients wait for the greeting first, which comes after 1 s."""
LONGEST_LINGER_S = 2.0
"""From the drain's begin, or its own: a client that never pauses would keep it until the drain's deadline."""
ROUTED_AWAY_S = 2.0
"""By then all gateways send new clients elsewhere; who comes later begins no session."""
CLOSES_PER_S = 1000.0
"""On average. Clients that are closed together should not come back as one wave."""
MAX_WAIT_S = 5.0

_REASONS = {GOING_AWAY: "the service is being stopped", COME_BACK: "the agent restarts; come back"}


class Drainable(Protocol):
    def wake(self) -> None:
        """The drain has begun."""


class Unseen:
    """A connection of an agent with `serve(websocket)`."""

    def wake(self) -> None:
        """It goes on: whether something goes on in it is not known."""


class Drain:
    """Shared by the connections of one host: each ends itself when it is `on` and nothing is left to do."""

    def __init__(self, sessions: SessionRegistry, *, can_tell: bool = True) -> None:
        """`can_tell`: whether the agent's turns can be seen; without that, no drain begins."""
        self._can_tell = can_tell
        self.on = False
        self._code = COME_BACK
        self._sessions = sessions
        self._connections: set[Drainable] = set()
        self.began_at = 0.0  #: if it is `on`
        self._last_left_at = trio.current_time()
        self._next_close = 0.0

    @property
    def farewell(self) -> tuple[int, str]:
        """Code and reason of the close frames."""
        return self._code, _REASONS[self._code]

    @property
    def begins_no_session(self) -> bool:
        """Whether a connection that is made now may only go on with sessions that are in memory."""
        return self.on and trio.current_time() > self.began_at + ROUTED_AWAY_S

    @property
    def left(self) -> int:
        """Connections that are still open, and turns whose client is away, or that may be on their way."""
        return len(self._connections) + self._sessions.turns_alone + self._sessions.arriving

    @property
    def quiet_s(self) -> float:
        """For how long it has had no connection and no turn, of which an open question is a part."""
        if self.left:
            return 0.0
        return trio.current_time() - max(self._last_left_at, self._sessions.last_turn_at)

    def begin(self, code: int) -> None:
        """From now on connections end, with this close code. Raises `ValueError`: it is not 1012 or 1001."""
        if code not in _REASONS:
            raise ValueError(f"a drain closes with 1001 or 1012, not {code}")
        self._code = code
        if not self.on:
            self.on, self.began_at = True, trio.current_time()
            self._sessions.is_draining = True
            for connection in self._connections:
                connection.wake()

    @contextmanager
    def counting(self, connection: Drainable) -> Iterator[None]:
        self._connections.add(connection)
        try:
            yield
        finally:
            self._connections.discard(connection)
            self._last_left_at = trio.current_time()
            self._sessions.rested()

    async def turn_to_close(self) -> None:
        pause_s = random.uniform(0.5, 1.5) / CLOSES_PER_S
        self._next_close = max(self._next_close, trio.current_time()) + pause_s
        await trio.sleep_until(self._next_close)

    async def answer(self, target: str, token: str) -> str:
        """The JSON text for a manager's request: `code` begins the drain, `wait_s` waits for its end.

        Raises `ValueError` for a query that no manager makes.
        """
        query = {name: values[0] for name, values in parse_qs(urlsplit(target).query).items()}
        if "code" in query and self._can_tell:
            self.begin(int(query["code"]))
        with trio.move_on_after(min(float(query.get("wait_s", 0)), MAX_WAIT_S)):
            while self.left:
                await self._sessions.at_rest.park()
        return json.dumps(
            {
                "proof": proof(token, query.get("challenge", "")),
                "code": self._code if self.on else None,
                "left": self.left if self._can_tell else None,
            }
        )
