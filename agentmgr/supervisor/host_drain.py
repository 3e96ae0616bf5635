"""Asks a hosted agent to end its sessions, and waits until the last of them has ended.

It is plain HTTP on the agent's own port, with the proof that it comes from the agent's manager. A host of a
version that does not know it refuses it like any request that is no WebSocket. A host drains on when its
manager is gone; the next manager asks it again.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import trio
from attrs import frozen

from ..core.hosts import authority
from ..core.proof import DRAIN_PATH, PROOF_HEADER, proof, sender_proof
from ..websocket.sockets import open_stream

_WAIT_S = 5.0  #: the host answers when no session is left, or after so long
_PATIENCE_S = 5.0  #: beyond that; a host that takes longer is busy, as when the agent blocks its loop
_PAUSE_S = 0.2  #: before the next try, after an error
_MAX_ANSWER_BYTES = 64 * 1024


@frozen
class HostDrain:
    """How to ask one instance."""

    host: str
    port: int
    token: str

    async def __call__(self, code: int, answered: Callable[[bool], None]) -> None:
        """Begins the drain, with this close code, and returns when no session is left.

        Calls `answered` with whether the host knows when a session is idle. If it does not, this returns at
        once. A host that is too busy to answer is taken to know.
        """
        wait_s = 0.0
        while True:
            try:
                with trio.fail_after(wait_s + _PATIENCE_S):
                    answer = await self._ask({"code": code, "wait_s": wait_s}, method="POST")
            except trio.TooSlowError:
                answered(True)
                continue
            except OSError:  # no descriptor left, or it is just ending
                await trio.sleep(_PAUSE_S)
                continue
            left = None if answer is None else answer.get("left")
            answered(left is not None)
            if not left:
                return
            wait_s = _WAIT_S

    async def close_code(self) -> int | None:
        """The close code that a manager has asked it to drain with before; None: it does not drain."""
        with trio.move_on_after(_PATIENCE_S), suppress(OSError):
            answer = await self._ask({}, method="GET")
            return None if answer is None else answer.get("code")
        return None

    async def change_close_code(self, code: int) -> None:
        """Asks it once to close with this code instead; one that cannot answer now is asked at its end."""
        with trio.move_on_after(_PATIENCE_S), suppress(OSError):
            await self._ask({"code": code}, method="POST")

    async def _ask(self, query: Mapping[str, object], *, method: str) -> dict[str, Any] | None:
        """The answer; None if it does not come from a host that can drain."""
        challenge = secrets.token_hex(16)
        fields = "&".join(f"{name}={value}" for name, value in {**query, "challenge": challenge}.items())
        target = f"{DRAIN_PATH}?{fields}"
        proved = sender_proof(self.token, target, now=time.monotonic(), salt=secrets.token_hex(8))
        host = authority(self.host, self.port)
        head = f"{method} {target} HTTP/1.1\r\nHost: {host}\r\n{PROOF_HEADER}: {proved}\r\n\r\n"
        received = b""
        try:
            async with await open_stream(self.host, self.port) as stream:
                await stream.send_all(head.encode())
                async for data in stream:
                    received += data
                    if len(received) > _MAX_ANSWER_BYTES:
                        return None
        except trio.BrokenResourceError as error:
            raise OSError("the connection broke") from error
        return _answer(received, proof(self.token, challenge))


def _answer(received: bytes, expected: str) -> dict[str, Any] | None:
    head, _, body = received.partition(b"\r\n\r\n")
    if head.split(b" ")[1:2] != [b"200"]:
        return None
    try:
        answer = json.loads(body)
    except ValueError:
        return None
    return answer if isinstance(answer, dict) and answer.get("proof") == expected else None
