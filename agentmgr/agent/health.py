"""The host's answer to a health probe."""

from __future__ import annotations

import json
from urllib.parse import parse_qs, urlsplit

from ..core.proof import proof
from .adapt import Health, HostedAgent
from .boundary import Failure, contain
from .sessions import Sessions


async def report(agent: HostedAgent, sessions: Sessions, *, token: str, target: str) -> str:
    """The JSON text for a probe of `target`, which may carry a `challenge` in its query.

    Many sessions and turns are "busy", not "unhealthy": they are told, and change nothing.
    """
    health = await contain(agent.check_health)
    if isinstance(health, Failure):
        health = Health("unhealthy", f"check_health raised {type(health.error).__name__}: {health.error}")
    challenge = parse_qs(urlsplit(target).query).get("challenge", [""])[0]
    return json.dumps(
        {
            "proof": proof(token, challenge) if token and challenge else None,
            "status": health.status,
            "detail": health.detail,
            "sessions": len(sessions),
            "turns": sessions.turns,
        }
    )
