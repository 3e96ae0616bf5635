"""One message of a conversation: makes its session, says it, and gives the events of its turn."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any
from urllib.parse import quote

from attrs import define

from .. import protocol
from .door import Door, DoorClosed, open_door
from .http import Exchange
from .problem import Problem
from .saying import Saying


class NotTaken(Exception):
    """The agent's host does not do what it was asked (`system.error`); `content` has a code and a message."""

    def __init__(self, content: Any) -> None:
        super().__init__(content)
        self.content = content if isinstance(content, dict) else {}


def target_of(model: str) -> str:
    """The address in the gateway for `NAME`, a service, `tag:NAME`, or `auto`, by the rules."""
    if model == "auto":
        return "/"
    if model.startswith("tag:"):
        return f"/?tag={quote(model.removeprefix('tag:'), safe='')}"
    return f"/services/{quote(model, safe='')}"


@define(eq=False)
class Turn:
    """One message, and the events of its answer."""

    door: Door
    session_id: str
    step_id: str
    _over: bool = False

    async def events(self) -> list[dict[str, Any]]:
        """Those that have come since, at least one; none any more when the turn is over.

        Raises `NotTaken`, and `Problem` where the connection to the agent ends before the turn does.
        """
        while not self._over:
            try:
                came = await self.door.receive()
            except DoorClosed as closed:
                # It may have begun, so whether to ask again is for a person to say.
                raise Problem(502, "connection_lost", f"The agent has gone: {closed}.", retry=False) from None
            if mine := [event for event in came if self._is_mine(event)]:
                return mine
        return []

    def _is_mine(self, event: dict[str, Any]) -> bool:
        name, step_id = event["event"], event.get("step_id")
        if name == protocol.ERROR and step_id == self.step_id:
            raise NotTaken(event.get("content"))
        if event.get("session_id") != self.session_id:
            return False
        self._over = self._over or name == protocol.SESSION_END
        if name in protocol.TURN_ENDS:
            self._over = self._over or step_id == self.step_id
            return step_id == self.step_id
        return bool(name == protocol.NOTICE or name.startswith("agent."))


async def create_session(
    door: Door, history: list[dict[str, Any]], *, name: str | None = None
) -> tuple[str, bool]:
    """The id of a session that begins with that history, and whether it is new: else there was one of that
    name. Raises `NotTaken`, `DoorClosed`.
    """
    asked = f"new_{secrets.token_hex(8)}"
    content: dict[str, Any] = {"history": history}
    if name is not None:
        content |= {"name": name, "last_seq": 2**53}  # from its newest event on
    await door.send({"event": protocol.CREATE_SESSION, "step_id": asked, "content": content})
    while True:
        for event in await door.receive():
            content = event.get("content") or {}
            if event["event"] == protocol.SESSION_CREATED:
                return str(event["session_id"]), True
            if event["event"] == protocol.NOTICE and content.get("code") == protocol.NoticeCode.RESUMED:
                return str(event["session_id"]), False
            if event["event"] == protocol.ERROR and event.get("step_id") in (asked, None):
                raise NotTaken(content)


@asynccontextmanager
async def converse(exchange: Exchange, model: str, saying: Saying) -> AsyncIterator[Turn]:
    """Says the message in a session of its own, which ends with the block.

    Raises `Refusal`, `NotTaken`, and `Problem` where the connection to the agent ends before that.
    """
    async with open_door(exchange, target_of(model)) as door:
        try:
            session_id, _ = await create_session(door, [said.entry for said in saying.history])
            turn = await say(door, session_id, saying, f"req_{secrets.token_hex(12)}")
        except DoorClosed as closed:
            raise Problem(503, "connection_lost", f"The agent has gone: {closed}.") from None
        yield turn
        with suppress(DoorClosed):  # its instance has ended, and the session with it
            await door.send({"event": protocol.END_SESSION, "session_id": session_id})


async def say(door: Door, session_id: str, saying: Saying, step_id: str) -> Turn:
    """Raises `DoorClosed`."""
    message = {
        "event": protocol.MESSAGE,
        "session_id": session_id,
        "step_id": step_id,
        "content": saying.message.text,
        "metadata": saying.metadata,
    }
    await door.send(message)
    return Turn(door, session_id, step_id)
