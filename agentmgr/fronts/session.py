"""What a front asks of the agent's host about a session: to make one or find it, its state and its past."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from typing import Any

import trio
from attrs import frozen

from .. import protocol
from ..protocol import ErrorCode, NoticeCode
from .door import TEXT, Door
from .problem import NotTaken
from .prompt import ChatMessage

FROM_NOW_ON = 2**53  #: a `last_seq` beyond each
_SILENCE_S = 5.0  # until a service that has said nothing is taken for one without sessions
_HOST_SILENCE_S = 60.0  # of a host of ours: it is being started, or its agent's code blocks it
REPLAYED = 4096  #: events, of a session in which a turn or a question is looked for


class NoSessions(Exception):
    """The service is no host of ours. `speaks_text`: it has answered an event with something that is none."""

    def __init__(self, *, speaks_text: bool) -> None:
        super().__init__("the service has no sessions")
        self.speaks_text = speaks_text


@frozen
class SessionInfo:
    """A session, when its host was asked for it."""

    session_id: str
    last_seq: int
    busy: bool  #: a turn runs
    is_new: bool = False  #: it was not there before

    @classmethod
    def of(cls, event: Mapping[str, Any]) -> SessionInfo:
        """By what the host says of it."""
        session_id, content = str(event["session_id"]), event["content"]
        if event["event"] == protocol.SESSION_CREATED:
            return cls(session_id, 0, busy=False, is_new=True)
        return cls(session_id, int(content["last_seq"]), bool(content["busy"]))


async def create_session(
    door: Door, history: Sequence[ChatMessage], *, name: str | None = None
) -> SessionInfo:
    """A session that begins with that history, or the one that has that name. Without a name it is in memory
    only, and ends with its door.

    Raises `NotTaken`, `NoSessions`, `DoorClosed`.
    """
    content: dict[str, Any] = {"history": [said.entry for said in history]}
    content |= {"transient": True} if name is None else {"name": name, "last_seq": FROM_NOW_ON}
    event = await _session(door, protocol.CREATE_SESSION, content, sum(said.size for said in history))
    return SessionInfo.of(event)


async def find_session(door: Door, name: str) -> SessionInfo | None:
    """The session of that name, which the door reads from now on; None where there is none.

    Raises `NotTaken`, `NoSessions`, `DoorClosed`.
    """
    try:
        event = await _session(door, protocol.RECONNECT, {"name": name, "last_seq": FROM_NOW_ON})
    except NotTaken as error:
        if error.code == ErrorCode.SESSION_NOT_FOUND:
            return None
        raise
    return SessionInfo.of(event)


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
            if event["event"] == protocol.SESSION_CREATED or resumes(event):
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
                if resumes(event):
                    resumed, seq = event["content"], event["content"]["replay_from"] - 1
    return Past(events, resumed["last_seq"], bool(resumed["busy"]), has_gap)


async def recent(door: Door, found: SessionInfo) -> list[dict[str, Any]]:
    """The session's last events, in order; first a notice that there is a gap, where it has had more.

    Raises `NotTaken`, `DoorClosed`.
    """
    events = (await past(door, found.session_id, max(0, found.last_seq - REPLAYED))).events
    if events and (first := events[0]["seq"]) > 1:
        gap = {"code": NoticeCode.GAP, "missing_from": 1, "missing_to": first - 1}
        notice = {"event": protocol.NOTICE, "session_id": found.session_id, "content": gap, "seq": 0}
        events.insert(0, notice)
    return events


async def state_of(door: Door, session_id: str) -> Mapping[str, Any]:
    """As `agent.state_restored` has it. Raises `NotTaken`, `DoorClosed`."""
    await door.send(reconnect(session_id, FROM_NOW_ON, with_state=True))
    state: Mapping[str, Any] = {}
    while True:
        for event in await door.receive():
            if event.get("session_id") != session_id:
                continue
            if event["event"] == protocol.STATE_RESTORED:
                state = event["content"]
            elif resumes(event):
                return state
            elif event["event"] == protocol.ERROR and event.get("step_id") is None:
                raise NotTaken(event.get("content"))


def reconnect(session_id: str, last_seq: int, *, with_state: bool = False) -> dict[str, Any]:
    """The event that takes a session up."""
    name = protocol.RECONNECT_WITH_STATE if with_state else protocol.RECONNECT
    return {"event": name, "session_id": session_id, "last_seq": last_seq}


def resumes(event: Mapping[str, Any]) -> bool:
    """Whether it is the notice behind which a session is read; its code is `gap` where events are missing."""
    content = event.get("content")
    return event["event"] == protocol.NOTICE and isinstance(content, Mapping) and "replay_from" in content


def code_of(event: Mapping[str, Any]) -> str | None:
    """That of a notice or an error."""
    content = event.get("content")
    return content.get("code") if isinstance(content, Mapping) else None
