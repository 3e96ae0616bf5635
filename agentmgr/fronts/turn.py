"""The turn of one message: says it in a session, or answers a question with it, and gives the events."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from attrs import define, field

from .. import protocol
from ..core.plain_text import yes_or_no
from ..protocol import ErrorCode, NoticeCode
from .door import TEXT, Door, DoorClosed
from .problem import NotTaken
from .prompt import ChatMessage, Prompt
from .session import REPLAYED, code_of, reconnect, resumes


@define(eq=False)
class Turn:
    """One message, and the events of its answer."""

    door: Door
    session_id: str  #: "": that of a service without sessions
    step_id: str | None  #: None: whichever runs
    already: str = ""  #: what was said of the answer before the question that is answered now
    branch: int = 1  #: of a keyed session
    parked: bool = False  #: its door stays open when its exchange is over
    _held: list[dict[str, Any]] = field(factory=list)  # events that came before
    _last_seq: int = 0  # of the session before it, or less
    _after: int = -1  # events up to this one are of other turns
    _early: list[dict[str, Any]] | None = None  # events that came until it is known whether it was taken
    _skips_to: str | None = None  # the notice or the step before which events are of other turns, or known
    _over: bool = False
    _said_before: bool = False

    async def taken(self) -> None:
        """Returns once the agent's host has the message. Raises as `events` does."""
        try:
            while self._early is not None:
                came = await self.door.receive()
                self._early += came
                if any(event["event"] == protocol.PONG for event in came):
                    early, self._early = self._early, None
                    self.hold(early)
        except DoorClosed as closed:
            raise closed.amid_a_turn from None
        for event in self._held:
            if self._was_said_before(event):
                self._said_before = True
            elif event["event"] == protocol.ERROR and event.get("step_id") == self.step_id:
                raise NotTaken(event.get("content"))

    @property
    def after_seq(self) -> int:
        """The `seq` of an event before its first, once it is taken; 0: there may be none."""
        return max(0, self._last_seq - REPLAYED) if self._said_before else self._last_seq

    async def events(self) -> list[dict[str, Any]]:
        """Those that have come since, at least one; none any more when the turn is over.

        Raises `NotTaken`, or another `Problem` where the connection to the agent ends before the turn does.
        """
        if self._early is not None:
            await self.taken()
        try:
            while self._held or not self._over:
                came, self._held = self._held or await self.door.receive(), []
                if any(map(self._was_said_before, came)):
                    # By a client that was cut off, and asks again: it gets the same answer.
                    self._skips_to = NoticeCode.RESUMED
                    self._said_before = True
                    await self.door.send(reconnect(self.session_id, self.after_seq))
                elif mine := [event for event in came if self._is_mine(event)]:
                    return mine
        except DoorClosed as closed:
            raise closed.amid_a_turn from None
        return []

    def _was_said_before(self, event: Mapping[str, Any]) -> bool:
        duplicate = event["event"] == protocol.ERROR and code_of(event) == ErrorCode.DUPLICATE
        return duplicate and event.get("step_id") == self.step_id

    def _is_mine(self, event: dict[str, Any]) -> bool:
        name, step_id = event["event"], event.get("step_id")
        if name == TEXT and not self.session_id:
            event.update(event=protocol.FINAL_ANSWER)  # a service that speaks text answers with one frame
            name = protocol.FINAL_ANSWER
        if name == protocol.ERROR and step_id is not None and step_id == self.step_id:
            raise NotTaken(event.get("content"))
        if self.session_id and event.get("session_id") != self.session_id:
            return False
        if event.get("seq", math.inf) <= self._after or code_of(event) == NoticeCode.TAKEN:
            return False
        if self._skips_to is not None:
            if self._skips_to == NoticeCode.RESUMED and resumes(event):
                self._skips_to = self.step_id
            if self._skips_to != step_id:
                return False
            self._skips_to = None
        if name in protocol.TURN_ENDS and self.step_id not in (None, step_id):
            return False  # of the turn before
        self._over = self._over or name in protocol.TURN_ENDS or name == protocol.SESSION_END
        return bool(name == protocol.NOTICE or name.startswith("agent."))

    def hold(self, events: list[dict[str, Any]]) -> int:
        """`events` gives these first, the next time; how many are held then."""
        for event in events:
            if code_of(event) == NoticeCode.TAKEN and event.get("step_id") == self.step_id:
                self._after = event["content"]["after_seq"]
        self._held += events
        return len(self._held)


async def say(door: Door, session_id: str, prompt: Prompt, step_id: str, *, last_seq: int = 0) -> Turn:
    """`last_seq`: of the session before it, or less. A message is not taken while a turn runs: what is said
    meanwhile would be taken for a part of its answer. Raises `DoorClosed`.
    """
    message = message_of(session_id, prompt, step_id)
    if not session_id:
        await door.send(message, size=prompt.size)
        return Turn(door, session_id, step_id)
    # Whether the message was taken is known when the pong is there; its events may come earlier.
    await door.send(message, {"event": protocol.PING}, size=prompt.size)
    return Turn(door, session_id, step_id, last_seq=last_seq, early=[])


def message_of(session_id: str, prompt: Prompt, step_id: str) -> dict[str, Any]:
    """The event that says it."""
    message = {
        "event": protocol.MESSAGE,
        "session_id": session_id or None,
        "step_id": step_id,
        "content": prompt.message.text,
        "metadata": prompt.metadata,
    }
    return message | {"queue": False} if session_id else message


async def answer(turn: Turn, question: str, message: ChatMessage) -> Turn:
    """Answers the question that the turn asked; only yes is yes. Raises `DoorClosed`."""
    content = {"confirmed": yes_or_no(message.text) is True, "message": message.text}
    # Where it has been answered elsewhere, the turn goes on anyway.
    await turn.door.send(response_to(turn.session_id, question, content))
    return turn


def response_to(session_id: str, question: str, content: Mapping[str, Any]) -> dict[str, Any]:
    """The event that answers a question. `content` has `confirmed`, and what else the client says."""
    return {"event": protocol.RESPONSE, "session_id": session_id, "step_id": question, "content": content}
