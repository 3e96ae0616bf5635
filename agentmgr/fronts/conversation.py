"""The turn of one message: says it in a session, or answers a question with it, and gives the events."""

from __future__ import annotations

import math
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

import trio
from attrs import define, field, frozen

from .. import protocol
from ..core.plain_text import yes_or_no
from ..protocol import ErrorCode, NoticeCode
from .door import TEXT, Door, DoorClosed
from .problem import NotTaken
from .saying import Said, Saying

FROM_NOW_ON = 2**53  #: a `last_seq` beyond each
_SILENCE_S = 5.0  # until a service that has said nothing is taken for one without sessions
_HOST_SILENCE_S = 60.0  # of a host of ours: it is being started, or its agent's code blocks it
_REPLAYED = 4096  # events, of a turn that is asked for again


class NoSessions(Exception):
    """The service is no host of ours. `speaks_text`: it has answered an event with something that is none."""

    def __init__(self, *, speaks_text: bool) -> None:
        super().__init__("the service has no sessions")
        self.speaks_text = speaks_text


@define(eq=False)
class Turn:
    """One message, and the events of its answer."""

    door: Door
    session_id: str  #: "": that of a service without sessions
    step_id: str | None  #: None: whichever runs
    already: str = ""  #: what was said of the answer before the question that is answered now
    branch: int = 1  #: of a keyed session
    waits: bool = False  #: its door stays open when its exchange is over
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
        return max(0, self._last_seq - _REPLAYED) if self._said_before else self._last_seq

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
            if self._skips_to == NoticeCode.RESUMED and code_of(event) == NoticeCode.RESUMED:
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


async def say(door: Door, session_id: str, saying: Saying, step_id: str, *, last_seq: int = 0) -> Turn:
    """`last_seq`: of the session before it, or less. A message is not taken while a turn runs: what is said
    meanwhile would be taken for a part of its answer. Raises `DoorClosed`.
    """
    message = message_of(session_id, saying, step_id)
    if not session_id:
        await door.send(message, size=saying.size)
        return Turn(door, session_id, step_id)
    # Whether the message was taken is known when the pong is there; its events may come earlier.
    await door.send(message, {"event": protocol.PING}, size=saying.size)
    return Turn(door, session_id, step_id, last_seq=last_seq, early=[])


def message_of(session_id: str, saying: Saying, step_id: str) -> dict[str, Any]:
    """The event that says it."""
    message = {
        "event": protocol.MESSAGE,
        "session_id": session_id or None,
        "step_id": step_id,
        "content": saying.message.text,
        "metadata": saying.metadata,
    }
    return message | {"queue": False} if session_id else message


async def answer(turn: Turn, question: str, message: Said) -> Turn:
    """Answers the question that the turn asked; only yes is yes. Raises `DoorClosed`."""
    content = {"confirmed": yes_or_no(message.text) is True, "message": message.text}
    # Where it has been answered elsewhere, the turn goes on anyway.
    await turn.door.send(response_to(turn.session_id, question, content))
    return turn


async def create_session(door: Door, history: Sequence[Said], *, name: str | None = None) -> Found:
    """A session that begins with that history, or the one that has that name. Without a name it is in memory
    only, and ends with its door.

    Raises `NotTaken`, `NoSessions`, `DoorClosed`.
    """
    content: dict[str, Any] = {"history": [said.entry for said in history]}
    content |= {"transient": True} if name is None else {"name": name, "last_seq": FROM_NOW_ON}
    event = await _session(door, protocol.CREATE_SESSION, content, sum(said.size for said in history))
    return Found.of(event)


@frozen
class Found:
    session_id: str
    last_seq: int
    busy: bool  #: a turn runs
    is_new: bool = False  #: it was not there before

    @classmethod
    def of(cls, event: Mapping[str, Any]) -> Found:
        """By what the host says of it."""
        session_id, content = str(event["session_id"]), event["content"]
        if event["event"] == protocol.SESSION_CREATED:
            return cls(session_id, 0, busy=False, is_new=True)
        return cls(session_id, int(content["last_seq"]), bool(content["busy"]))


async def find_session(door: Door, name: str) -> Found | None:
    """The session of that name, which the door reads from now on; None where there is none.

    Raises `NotTaken`, `NoSessions`, `DoorClosed`.
    """
    try:
        event = await _session(door, protocol.RECONNECT, {"name": name, "last_seq": FROM_NOW_ON})
    except NotTaken as error:
        if error.code == ErrorCode.SESSION_NOT_FOUND:
            return None
        raise
    return Found.of(event)


async def _session(door: Door, asks: str, content: Mapping[str, Any], size: int = 0) -> dict[str, Any]:
    """Asks for one; the event that says which it is."""
    asked = f"new_{secrets.token_hex(8)}"
    await door.send({"event": asks, "step_id": asked, "content": content}, size=size)
    began, greeted = trio.current_time(), door.to_host
    while True:
        with trio.move_on_at(began + (_HOST_SILENCE_S if greeted else _SILENCE_S)) as silence:
            came = await door.receive()
        if silence.cancelled_caught:
            raise silent() if greeted else NoSessions(speaks_text=False)
        for event in came:
            greeted = greeted or event["event"] == protocol.CONNECTED  # a host in another language
            if event["event"] == TEXT:
                raise NoSessions(speaks_text=True)
            if event["event"] == protocol.SESSION_CREATED or code_of(event) == NoticeCode.RESUMED:
                return event
            if event["event"] == protocol.ERROR and event.get("step_id") in (asked, None):
                raise NotTaken(event.get("content"))


def silent() -> NotTaken:
    """Of a host that is known to have sessions."""
    message = "The agent's host does not answer now: it is busy, or being started. Ask again later."
    return NotTaken({"code": ErrorCode.SESSION_UNREACHABLE, "message": message})


async def ask(door: Door, *events: dict[str, Any], size: int = 0) -> list[dict[str, Any]]:
    """What came until the host had done what these say. Raises `NotTaken`, `DoorClosed`."""
    await door.send(*events, {"event": protocol.PING}, size=size)
    came: list[dict[str, Any]] = []
    while not any(event["event"] == protocol.PONG for event in came):
        came += await door.receive()
    asked = {event.get("step_id") for event in events}
    for event in came:
        if event["event"] == protocol.ERROR and event.get("step_id") in asked:
            raise NotTaken(event.get("content"))
    return came


@frozen
class Past:
    """What a session had had when it was asked for, as far as its host holds that."""

    events: list[dict[str, Any]]  #: in the order of their `seq`; there may be a few newer ones
    last_seq: int
    busy: bool  #: a turn runs
    has_gap: bool  #: some of the events are not held any more


async def past(door: Door, session_id: str, after_seq: int) -> Past:
    """The session's events behind that one; what comes next is sent to the door.

    Raises `NotTaken`, `DoorClosed`.
    """
    await door.send(reconnect(session_id, after_seq))
    events: list[dict[str, Any]] = []
    resumed: Mapping[str, Any] | None = None
    seq, has_gap = 0, False
    while resumed is None or seq < resumed["last_seq"]:
        for event in await door.receive():
            is_ours = event.get("session_id") == session_id
            if event["event"] == protocol.ERROR and event.get("step_id") is None:
                if is_ours or event.get("session_id") is None:
                    raise NotTaken(event.get("content"))
            elif is_ours and "seq" in event:
                if resumed is not None:  # else it comes again
                    events.append(event)
                    seq = event["seq"]
            elif is_ours and event["event"] == protocol.NOTICE:
                has_gap = has_gap or code_of(event) == NoticeCode.GAP
                if isinstance(content := event.get("content"), Mapping) and "replay_from" in content:
                    resumed, seq = content, content["replay_from"] - 1
    return Past(events, resumed["last_seq"], bool(resumed["busy"]), has_gap)


async def recent(door: Door, found: Found) -> list[dict[str, Any]]:
    """The session's last events, in order; first a notice that there is a gap, where it has had more.

    Raises `NotTaken`, `DoorClosed`.
    """
    events = (await past(door, found.session_id, max(0, found.last_seq - _REPLAYED))).events
    if events and (first := events[0]["seq"]) > 1:
        gap = {"code": NoticeCode.GAP, "missing_from": 1, "missing_to": first - 1}
        notice = {"event": protocol.NOTICE, "session_id": found.session_id, "content": gap, "seq": 0}
        events.insert(0, notice)
    return events


def reconnect(session_id: str, last_seq: int, *, with_state: bool = False) -> dict[str, Any]:
    """The event that takes a session up."""
    name = protocol.RECONNECT_WITH_STATE if with_state else protocol.RECONNECT
    return {"event": name, "session_id": session_id, "last_seq": last_seq}


def response_to(session_id: str, question: str, content: Mapping[str, Any]) -> dict[str, Any]:
    """The event that answers a question. `content` has `confirmed`, and what else the client says."""
    return {"event": protocol.RESPONSE, "session_id": session_id, "step_id": question, "content": content}


def code_of(event: Mapping[str, Any]) -> str | None:
    """That of a notice or an error."""
    content = event.get("content")
    return content.get("code") if isinstance(content, Mapping) else None
