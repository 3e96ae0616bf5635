"""Which frame on a connection was what, so that another host can go on with it byte for byte.

All frames to the client are numbered, from 1. Events are in the journal anyway, and follow each other in the
order of their sessions: the log says where a run of a session's events begins, and nothing for each event.
Any other frame, as a greeting, an answer or a pong, is in the log itself. So an entry is committed before the
frame that it is of is sent, and a stream of events costs no commit beside its own:

    1 greeting | 2 events of ses_a, from 1 on … | 7 an answer | 8 events of ses_a, from 6 on …

No I/O. Only the newest entries are kept: frames before them have been delivered, or the connection ends as
one that cannot be resumed.
"""

from __future__ import annotations

from typing import Any

from attrs import frozen

MAX_ENTRIES = 64
MAX_RAW_BYTES = 32 * 1024
"""Of the frames in it: all of it is written again whenever a message of the client was taken in."""


class Pong(bytes):
    """The payload of a pong, among frames that are texts."""


@frozen
class Run:
    """From frame `index` on come events of a session, from `seq` on; in plain text not all have a frame."""

    index: int
    session_id: str
    seq: int


@frozen
class Raw:
    index: int
    frame: bytes


@frozen
class Events:
    """To be sent: a session's events from `seq` on, without the first `skip` that have a frame."""

    session_id: str
    seq: int
    skip: int
    count: int | None  #: frames; None: all that come


class CannotResume(Exception):
    """And why."""


class LinkLog:
    def __init__(self, count: int = 0, entries: list[Run | Raw] | None = None) -> None:
        self.count = count  #: of the frames that are sent, or decided to be the next
        self._entries = entries or []
        self._raw_bytes = sum(len(it.frame) for it in self._entries if isinstance(it, Raw))
        self._session_id = ""  # of the run that goes on
        self._next_seq = 0  # in it

    def raw(self, frame: bytes) -> None:
        """The next frame is this one."""
        self._drop_empty_run()
        self.count += 1
        self._entries.append(Raw(self.count, frame))
        self._raw_bytes += len(frame)
        if self._session_id:  # said now, so that the next event needs no commit
            self._entries.append(Run(self.count + 1, self._session_id, self._next_seq))
        self._prune()

    def event(self, session_id: str, seq: int) -> bool:
        """The next frame is this event. True if that is to be committed before it is sent."""
        breaks = seq != self._next_seq or session_id != self._session_id
        if breaks:
            self._begin_run(session_id, seq)
        self.count += 1
        self._next_seq = seq + 1
        return breaks

    def passed(self, session_id: str, seq: int) -> None:
        """An event that has no frame."""
        if seq == self._next_seq and session_id == self._session_id:
            self._next_seq = seq + 1

    def ended(self, session_id: str) -> None:
        """No event of that session comes any more."""
        if session_id == self._session_id:
            self._begin_run("", 0)

    def mark(self) -> None:
        """Who counts the frames of a run later begins here."""
        if self._session_id:
            self._begin_run(self._session_id, self._next_seq)

    def resume(self, delivered: int, *, plain: bool) -> list[bytes | Events]:
        """What comes after so many frames. The log goes on behind it. Raises `CannotResume`."""
        first = delivered + 1
        last = self._entries[-1] if self._entries else None
        if first < (self._entries[0].index if self._entries else self.count + 1):
            raise CannotResume("too much was under way")
        decided = self.count if last is None else last.index if isinstance(last, Raw) else last.index - 1
        if delivered > decided and not isinstance(last, Run):
            raise CannotResume("more was delivered than is known of")
        script: list[bytes | Events] = []
        for entry, follower in zip(self._entries, [*self._entries[1:], None], strict=True):
            if isinstance(entry, Raw):
                if entry.index >= first:
                    script.append(entry.frame)
                continue
            if not entry.session_id:
                continue
            begin = max(first, entry.index)
            count = None if follower is None else follower.index - begin
            if count is None or count > 0:
                skip = begin - entry.index
                seq = entry.seq if plain else entry.seq + skip
                script.append(Events(entry.session_id, seq, skip if plain else 0, count))
        self.count = max(delivered, decided)
        self._session_id, self._next_seq = "", 0
        return script

    def _begin_run(self, session_id: str, seq: int) -> None:
        self._drop_empty_run()
        self._entries.append(Run(self.count + 1, session_id, seq))
        self._session_id, self._next_seq = session_id, seq
        self._prune()

    def _drop_empty_run(self) -> None:
        if self._entries and isinstance(self._entries[-1], Run) and self._entries[-1].index > self.count:
            self._entries.pop()

    def _prune(self) -> None:
        while len(self._entries) > MAX_ENTRIES or self._raw_bytes > MAX_RAW_BYTES:
            gone = self._entries.pop(0)
            if isinstance(gone, Raw):
                self._raw_bytes -= len(gone.frame)

    # As JSON has it.

    def dump(self) -> dict[str, Any]:
        return {"count": self.count, "entries": [_dumped(entry) for entry in self._entries]}

    @classmethod
    def load(cls, data: dict[str, Any]) -> LinkLog:
        return cls(data["count"], [_loaded(*entry) for entry in data["entries"]])


def _dumped(entry: Run | Raw) -> list[Any]:
    if isinstance(entry, Run):
        return [entry.index, entry.session_id, entry.seq]
    if isinstance(entry.frame, Pong):
        return [entry.index, entry.frame.decode("latin-1"), "pong"]
    return [entry.index, entry.frame.decode()]


def _loaded(index: int, text: str, kind: int | str | None = None) -> Run | Raw:
    if isinstance(kind, int):
        return Run(index, text, kind)
    return Raw(index, Pong(text, "latin-1") if kind else text.encode())
