"""The host's answer to a health probe."""

from __future__ import annotations

import json
from urllib.parse import parse_qs, urlsplit

from ..boundary import Failure, contain, describe
from ..core.proof import is_challenge, proof
from . import loaded
from .adapt import Health, HostedAgent, RawAgent
from .session_registry import SessionRegistry


async def report(
    agent: HostedAgent,
    sessions: SessionRegistry,
    *,
    token: str,
    target: str,
    quiet_s: float,
    stranger: bool,
) -> str:
    """The JSON text for a probe of `target`, which may carry a `challenge` in its query.

    A stranger gets the proof and the status, no more. With `only=proof` the agent is not asked how it is:
    its `check_health` may take its time; with `only=modules` the answer has what it has imported instead, and
    with `only=turns` its turns. Many sessions and turns are "busy", not "unhealthy": they are reported, and
    change nothing.
    """
    query = parse_qs(urlsplit(target).query)
    challenge = query.get("challenge", [""])[0]
    shown = proof(token, challenge) if token and is_challenge(challenge) else None
    only = query.get("only", [""])[0]
    if only == "proof":
        return json.dumps({"proof": shown})
    if only == "modules" and not stranger:
        return json.dumps({"proof": shown, "modules": loaded.modules()})
    if only == "turns" and not stranger:
        turns = None if isinstance(agent, RawAgent) else sessions.turns  # which cannot be seen
        return json.dumps({"proof": shown, "turns": turns, "asking": sessions.asking})
    health = await contain(agent.check_health)
    if isinstance(health, Failure):
        health = Health("unhealthy", f"check_health raised {describe(health.error)}")
    journal = sessions.journal_report()
    if journal is not None and journal["degraded"] is not None and health.status == "healthy":
        health = Health("degraded", f"its sessions are in memory only: {journal['degraded']}")
    if stranger:
        return json.dumps({"proof": shown, "status": health.status})
    said: dict[str, object] = {
        "proof": shown,
        "status": health.status,
        "detail": health.detail,
        "sessions": len(sessions),
        "turns": sessions.turns,
        "quiet_s": quiet_s,
    }
    if journal is not None:
        said["journal"] = journal
    return json.dumps(said)
