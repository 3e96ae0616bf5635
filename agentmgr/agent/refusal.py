"""The host's answer to a request that does not become a WebSocket."""

from __future__ import annotations

from attrs import frozen


@frozen
class Refusal(Exception):
    """`code` is stable and for programs, `reason` is for people."""

    status: int
    code: str
    reason: str
