"""The conversations of a manager's services, as its API has them: `ManagerClient.sessions`."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from ..models.sessions import SessionDetail, SessionPage, SessionQuestion, SessionState
from .http import Lines, Pieces
from .rest import RestClient, flag, quoted


class SessionsClient(RestClient):
    """Its methods have the names and the arguments of `AgentManager.sessions`, and raise the same errors."""

    def __init__(self, manager: RestClient) -> None:
        vars(self).update(vars(manager))  # the same target, token and patience

    async def list(
        self,
        service: str | None = None,
        *,
        state: SessionState | None = None,
        owner: str | None = None,
        text: str | None = None,
        limit: int = 100,
        cursor: str | None = None,
    ) -> SessionPage:
        asked = {
            "service": service,
            "state": state,
            "owner": owner,
            "q": text,
            "limit": limit,
            "cursor": cursor,
        }
        params = {name: str(value) for name, value in asked.items() if value is not None}
        return await self._one(SessionPage, "GET", "/sessions", params=params)

    async def get(self, session_id: str) -> SessionDetail:
        return await self._one(SessionDetail, "GET", _path(session_id))

    async def questions(self) -> tuple[SessionQuestion, ...]:
        return tuple(await self._all(SessionQuestion, "/questions", {}))

    @asynccontextmanager
    async def events(
        self, session_id: str, *, since: int = 0, follow: bool = True, messages: bool = False
    ) -> AsyncIterator[AsyncIterator[dict[str, Any]]]:
        params = {"since": str(since), "follow": flag(follow), "messages": flag(messages)}
        async with self._stream("GET", f"{_path(session_id)}/events", params=params) as response:
            yield Lines(response, _event)

    @asynccontextmanager
    async def export(self, session_id: str) -> AsyncIterator[AsyncIterator[bytes]]:
        """In pieces, as they come."""
        async with self._stream("GET", f"{_path(session_id)}/export") as response:
            yield Pieces(response)

    async def say(
        self,
        session_id: str,
        content: Any,
        *,
        metadata: Mapping[str, Any] | None = None,
        step_id: str | None = None,
    ) -> str:
        body = {"content": content, "metadata": dict(metadata or {}), "step_id": step_id}
        taken = await self._json("POST", f"{_path(session_id)}/messages", json=body)
        return str(taken["step_id"])

    async def cancel(self, session_id: str) -> None:
        await self._answer("POST", f"{_path(session_id)}/cancel")

    async def answer(self, session_id: str, step_id: str, *, confirmed: bool) -> None:
        body = {"step_id": step_id, "confirmed": confirmed}
        await self._answer("POST", f"{_path(session_id)}/answers", json=body)

    async def erase(self, session_id: str) -> None:
        await self._answer("DELETE", _path(session_id))


def _path(session_id: str) -> str:
    return f"/sessions/{quoted(session_id)}"


def _event(line: bytes) -> dict[str, Any] | None:
    return dict(json.loads(line[6:])) if line.startswith(b"data: ") else None
