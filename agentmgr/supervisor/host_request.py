"""A manager's request to a hosted agent: plain HTTP on the agent's own port, with proofs of both sides.

A host of a version that does not know what it is asked refuses it like any request that is no WebSocket.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Mapping
from typing import Any

import trio
from attrs import frozen

from ..core.hosts import authority
from ..core.proof import PROOF_HEADER, proof, sender_proof
from ..websocket.sockets import open_stream

MAX_ANSWER_BYTES = 64 * 1024


@frozen
class HostRequest:
    """How to ask one instance."""

    host: str
    port: int
    token: str

    async def __call__(
        self,
        path: str,
        query: Mapping[str, object],
        *,
        method: str = "GET",
        max_answer_bytes: int = MAX_ANSWER_BYTES,
    ) -> dict[str, Any] | None:
        """The answer; None if none comes from a host that knows the token and the question.

        Raises OSError; the deadline is the caller's.
        """
        challenge = secrets.token_hex(16)
        fields = "&".join(f"{name}={value}" for name, value in {**query, "challenge": challenge}.items())
        target = f"{path}?{fields}"
        proved = sender_proof(self.token, target, now=time.monotonic(), salt=secrets.token_hex(8))
        host = authority(self.host, self.port)
        head = f"{method} {target} HTTP/1.1\r\nHost: {host}\r\n{PROOF_HEADER}: {proved}\r\n\r\n"
        received = bytearray()
        try:
            async with await open_stream(self.host, self.port) as stream:
                await stream.send_all(head.encode())
                async for data in stream:
                    received += data
                    if len(received) > max_answer_bytes:
                        return None
        except trio.BrokenResourceError as error:
            raise OSError("the connection broke") from error
        return _answer(bytes(received), proof(self.token, challenge))


def _answer(received: bytes, expected: str) -> dict[str, Any] | None:
    head, _, body = received.partition(b"\r\n\r\n")
    if head.split(b" ")[1:2] != [b"200"]:
        return None
    try:
        answer = json.loads(body)
    except ValueError:
        return None
    return answer if isinstance(answer, dict) and answer.get("proof") == expected else None
