"""The sessions that one connection reads, and which of them a message is for that names none."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from ..protocol import ErrorCode, LossReason
from .history import Entry
from .incoming import BadInput, ClientEvent, sequence_number
from .limits import MAX_SESSIONS
from .message import Client
from .readers import Link
from .replay import BEHIND, Gap, Reader
from .session import Session
from .session_ids import no_session
from .session_registry import SessionRegistry


class LinkSessions:
    def __init__(self, link: Link, client: Client, registry: SessionRegistry, *, is_late: bool) -> None:
        """`is_late`: the host drains, and a connection that is made now begins no session."""
        self.attached: dict[Session, Reader] = {}
        self.behind: Session | None = None  #: the next of its events is in the journal only
        self._current: Session | None = None  # where a message goes that names no session
        self._link, self._client, self._registry, self._is_late = link, client, registry, is_late
        self._left: dict[str, int] = {}
        self.on_end: Callable[[str], None] | None = None  #: called with the id of each session that has ended

    async def create(
        self, *, name: str | None = None, history: Sequence[Entry] = (), transient: bool = False
    ) -> Session:
        """Raises `BadInput`: `draining`, `max_sessions`, `host_full`; `SessionNameTaken`."""
        if self._is_late:
            raise BadInput(ErrorCode.DRAINING, "this agent ends soon and begins no session; connect again")
        self._check_room()
        session = await self._registry.create(self._client, name=name, history=history, transient=transient)
        self._current = session
        self._attach(session, after=0)
        return session

    def restore(self, readers: Mapping[Session, int], current: str | None) -> None:
        """Reads these, each from the event behind the given one."""
        for session, after in readers.items():
            self._attach(session, after=after)
            if session.id == current:
                self._current = session

    @property
    def places(self) -> dict[str, int]:
        """Up to which event each has been given out, by id; those included that have left this instance."""
        return self._left | {session.id: reader.sent for session, reader in self.attached.items()}

    @property
    def current(self) -> str | None:
        """The id of the session of a message that names none."""
        return None if self._current is None else self._current.id

    async def resume(
        self, session_id: str, last_seq: int, *, exclusive: bool, only_watch: bool
    ) -> tuple[Session, Reader]:
        """Raises what `SessionRegistry.find` does."""
        session = await self._find(session_id)
        reader = self._attach(session, after=last_seq, exclusive=exclusive)
        if not only_watch or self._current is None:
            self._current = session
        return session, reader

    async def named(self, name: str) -> str:
        """Raises what `SessionRegistry.named` does."""
        return await self._registry.named(name, self._client)

    async def for_message(self, session_id: str | None) -> Session:
        """The session a message is for: the one it names, the connection's, or a new one."""
        if session_id is None:
            if self._current is None or (self._current.ended and self._current.end_reason is not None):
                return await self.create()
            return self._current  # also one that has left this instance, and refuses the message
        session = await self._find(session_id)
        if session not in self.attached:
            # One that left this instance, and came back, has said more meanwhile.
            self._attach(session, after=self.places.get(session.id, session.buffer.visible))
        self._current = session
        return session

    async def known(self, event: ClientEvent) -> Session:
        session_id = event.find("session_id")
        if session_id is None and self._current is not None:
            if not self._current.ended:
                return self._current
            if self._current.end_reason is None:
                left = "the session has left this instance; connect again"
                raise BadInput(ErrorCode.SESSION_UNREACHABLE, left)
        if not isinstance(session_id, str):
            raise no_session(LossReason.UNKNOWN, "there is no session yet; user.create_session makes one")
        return await self._find(session_id)

    def ack(self, event: ClientEvent) -> bool:
        """False where it is of no session that this connection reads."""
        for session, reader in self.attached.items():  # also one that has just ended
            if session.id == event.session_id or (event.session_id is None and session is self._current):
                session.ack(reader, sequence_number(event, "seq"))
                return True
        return False

    def drop(self, session: Session) -> None:
        session.detach(self.attached.pop(session))
        if self._current is session:
            self._current = None

    def detach_all(self) -> list[Session]:
        for session, reader in self.attached.items():
            session.detach(reader)
        return list(self.attached)

    def next(self) -> tuple[Session, bytes | Gap] | None:
        """The next event of any of them; None where there is none, or `behind` says where to read on."""
        self.behind = None
        for session, reader in list(self.attached.items()):
            item = reader.next()
            if item is BEHIND:
                self.behind = session
            elif item is not None:
                # To the end of the line: no session keeps the others of this connection waiting.
                self.attached[session] = self.attached.pop(session)
                session.progressed()
                return session, item
            elif session.ended and reader.finished:
                session.detach(self.attached.pop(session))
                if session.end_reason is None:
                    self._left[session.id] = reader.sent
                elif self.on_end is not None:
                    self.on_end(session.id)
        return None

    async def _find(self, session_id: str) -> Session:
        return await self._registry.find(session_id, self._client)

    def _attach(self, session: Session, *, after: int, exclusive: bool = False) -> Reader:
        """In place of what it reads of the session so far, which may be of a copy that has left."""
        for old in [it for it in self.attached if it.id == session.id]:
            old.detach(self.attached.pop(old))
        self._check_room()
        reader = self.attached[session] = session.attach(self._link, self._client, after, exclusive=exclusive)
        self._link.wake()
        return reader

    def _check_room(self) -> None:
        if len(self.attached) >= MAX_SESSIONS:
            raise BadInput(ErrorCode.MAX_SESSIONS, f"one connection serves at most {MAX_SESSIONS} sessions")
