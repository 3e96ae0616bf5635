"""A connection that a gateway asks this host to go on with, after the one before has ended."""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from attrs import field, frozen

from ..core.gateway_headers import RESUME_HEADER
from ..journal.journal import SessionJournal, Unreachable
from ..journal.links import OUTDATED, LinkCopy
from ..protocol import ErrorCode
from ..websocket.refusal import Refusal, RefusalCode
from .incoming import BadInput
from .link_log import CannotResume, Events, LinkLog, Pong
from .link_sessions import LinkSessions
from .message import Client
from .replay import BEHIND, Gap
from .session import Session
from .session_registry import SessionRegistry

_ASKED = re.compile(r"(con_[0-9a-f]{1,64})(?:; delivered=([0-9]{1,18}); offset=([0-9]{1,18}))?")
_NOT_NOW = (ErrorCode.SESSION_UNREACHABLE, ErrorCode.HOST_FULL, ErrorCode.MAX_SESSIONS, ErrorCode.DRAINING)


@frozen
class Resumption:
    """What a connection goes on from; of a new one, nothing."""

    plain: bool | None = None
    greeted: bool = False
    taken: int = 0  #: of the client's messages
    pings: int = 0  #: of those, how many were answered
    log: LinkLog = field(factory=LinkLog)
    script: list[bytes | Events] = field(factory=list)
    readers: Mapping[Session, int] = field(factory=dict)  #: up to which event each has been given out
    current: str | None = None  #: id of the session of a message that names none

    @property
    def answer(self) -> str:
        """The value of `RESUMED_HEADER`."""
        return f"taken={self.taken}; pings={self.pings}"


def asked_for(client: Client) -> tuple[str, int | None] | None:
    """Which connection is to be resumable, and after how many frames it is to be resumed; None: it is new."""
    found = _ASKED.fullmatch(client.headers.get(RESUME_HEADER.lower(), ""))
    return None if found is None else (found[1], None if found[2] is None else int(found[2]))


async def resume(state: str | None, delivered: int, client: Client, sessions: SessionRegistry) -> Resumption:
    """Takes up the sessions of a connection of which `state` is kept. Raises `Refusal`."""
    if state is None:
        if delivered:
            raise _refused("nothing is kept of it")
        return Resumption()  # its host died before it had taken in or sent anything
    if state == OUTDATED:
        raise _refused("it went on while the journal could not be written")
    kept = json.loads(state)
    plain, log = kept["plain"], LinkLog.load(kept["log"])
    try:
        script = log.resume(delivered, plain=bool(plain))
    except CannotResume as error:
        raise _refused(str(error)) from None
    after: dict[str, int] = dict(kept["readers"])
    for item in reversed(script):
        if isinstance(item, Events):
            if item.session_id not in after:
                raise _refused("a session of it has ended")
            after[item.session_id] = item.seq - 1
    readers: dict[Session, int] = {}
    for session_id, seq in after.items():
        session = await _find(session_id, client, sessions)
        if seq > session.buffer.visible:
            raise _refused("more was delivered than was kept")
        readers[session] = seq
    return Resumption(
        plain, kept["greeted"], kept["taken"], kept["pings"], log, script, readers, kept["current"]
    )


async def _find(session_id: str, client: Client, sessions: SessionRegistry) -> Session:
    try:
        return await sessions.find(session_id, client)
    except BadInput as problem:
        if problem.code is ErrorCode.SESSION_ELSEWHERE:
            code, details = RefusalCode.SESSION_ELSEWHERE, problem.details
            raise Refusal(421, code, str(problem), details=details) from None
        if problem.code in _NOT_NOW:
            raise Refusal(503, RefusalCode.NO_SERVICE_AVAILABLE, str(problem)) from None
        raise _refused(str(problem)) from None


async def kept_of(link_id: str, sessions: SessionRegistry) -> str | None:
    """What the journal has of a connection, with which this host alone goes on now. Raises `Refusal`."""
    assert sessions.journal is not None
    try:
        return await sessions.journal.take_link(link_id)
    except Unreachable as error:
        raise Refusal(503, RefusalCode.NO_SERVICE_AVAILABLE, str(error)) from None


def _refused(reason: str) -> Refusal:
    return Refusal(410, RefusalCode.BAD_REQUEST, f"this connection cannot be resumed: {reason}")


class KeptLink:
    """What the journal knows of a connection that can be resumed."""

    def __init__(self, link_id: str, copy: LinkCopy, journal: SessionJournal, begin: Resumption) -> None:
        self._held = journal.keep_link(link_id, copy)
        self._log, self._taken, self._pings = begin.log, begin.taken, begin.pings
        if begin.script or begin.readers or begin.taken:
            self._held.changed()  # the row is this host's

    def took_message(self, *, plain: bool) -> None:
        """With what it did, as far as that was done since the last checkpoint."""
        self._taken += 1
        if plain:
            self._log.mark()
        self._held.changed()

    def raw(self, frame: bytes) -> None:
        self._log.raw(frame)
        self._pings += isinstance(frame, Pong)
        self._held.changed()

    def event(self, session_id: str, seq: int, *, has_frame: bool) -> None:
        if not has_frame:
            self._log.passed(session_id, seq)
        elif self._log.event(session_id, seq):
            self._held.changed()

    def ended(self, session_id: str) -> None:
        self._log.ended(session_id)
        self._held.changed()

    @property
    def is_outdated(self) -> bool:
        """Whether it went on without the journal: no other host can go on with it."""
        return self._held.is_outdated

    @property
    def is_settled(self) -> bool:
        return self._held.is_settled

    async def settled(self) -> None:
        await self._held.settled()

    def end(self, *, for_good: bool) -> None:
        self._held.end(for_good=for_good)

    def dump(self) -> dict[str, Any]:
        return {"taken": self._taken, "pings": self._pings, "log": self._log.dump()}


async def replay(
    script: Sequence[bytes | Events],
    sessions: LinkSessions,
    frame_of: Callable[[bytes], bytes | None],
    send: Callable[[bytes], Awaitable[None]],
) -> None:
    """Sends the frames that were decided before the connection was resumed. Raises `CannotResume`."""
    by_id = {session.id: session for session in sessions.attached}
    for item in script:
        if isinstance(item, bytes):
            await send(item)
            continue
        for place in range(item.skip + (item.count or 0)):
            frame = await _again(by_id[item.session_id], sessions, frame_of)
            if place >= item.skip:
                await send(frame)


async def _again(
    session: Session, sessions: LinkSessions, frame_of: Callable[[bytes], bytes | None]
) -> bytes:
    """The next frame for an event that was given out before."""
    reader = sessions.attached[session]
    while (item := reader.next()) is not None and not isinstance(item, Gap):
        if item is BEHIND:
            if await session.fill(reader) is not None:
                break
        elif isinstance(item, bytes) and (frame := frame_of(item)) is not None:
            return frame
    raise CannotResume("an event is not there any more")
