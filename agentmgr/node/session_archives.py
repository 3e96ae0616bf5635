"""The journals of a node's services, as the manager reads them: one order, its answer, and what answers it.

What is asked is a function of `journal.sqlite_archive`, by its name; the node runs it on its own files.
"""

from __future__ import annotations

import json
import logging
from base64 import b64decode, b64encode
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import trio
from attrs import Factory, asdict, field, frozen

from ..codec import from_answer, parse_json, to_plain
from ..errors import InvalidRequest
from ..journal import archive, copies, sqlite_archive
from ..journal.file_archive import ask_files, services_in
from ..journal.journal import Frame, SessionSnapshot, StoredFrame

log = logging.getLogger(__name__)

_KINDS: dict[Callable[..., Any], Any] = {
    sqlite_archive.sessions: archive.SessionPage,
    sqlite_archive.session: None,
    sqlite_archive.events: None,
    sqlite_archive.events_with: None,
    sqlite_archive.messages: dict[str, archive.SaidMessage],
    sqlite_archive.turn_that_runs: int,
    sqlite_archive.turn_of: int,
    sqlite_archive.has_unfinished: bool,
    sqlite_archive.questions: tuple[archive.OpenQuestion, ...],
    sqlite_archive.figures: archive.ArchiveFigures,
    sqlite_archive.erase: bool,
    sqlite_archive.prune: archive.Pruned,
    copies.remove: None,
}
"""What may be asked, and what it gives; None: see `_value`."""
_BY_NAME = {do.__name__: do for do in _KINDS}
_FRAMES = {sqlite_archive.events: StoredFrame, sqlite_archive.events_with: Frame}


def _is_asked(_: object, attribute: object, name: str) -> None:
    if name not in _BY_NAME:
        raise ValueError(f"journals have no {name!r}")


@frozen
class ReadSessions:
    """Of these services, or of all that have one on the node. Answered by `SessionsRead`."""

    what: str = field(validator=_is_asked)
    args: str = "[]"  #: JSON, as all that follows
    options: str = "{}"
    options_of: Mapping[str, str] | None = None  #: more of them, by service id, of which alone it is asked


@frozen
class SessionsRead:
    found: Mapping[str, str] = Factory(dict)  #: JSON, by service id; of those that have one there
    unreadable: Mapping[str, str] = Factory(dict)  #: why, by service id

    def values(self, do: Callable[..., Any]) -> dict[str, Any]:
        """What `do` has given, by service id. Raises `InvalidRequest`."""
        return {service_id: _value(do, parse_json(text)) for service_id, text in self.found.items()}


def asks(
    do: Callable[..., Any],
    *args: object,
    of: Mapping[str, Mapping[str, object]] | None = None,
    **options: object,
) -> ReadSessions:
    """`of`: the services that are asked, with options for each; None: all."""
    return ReadSessions(
        do.__name__,
        json.dumps(to_plain(args)),
        json.dumps(to_plain(options)),
        None if of is None else {it: json.dumps(to_plain(dict(more))) for it, more in of.items()},
    )


class SessionArchives:
    """Reads `DIRECTORY/SERVICE_ID.db`."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._limiter = trio.CapacityLimiter(4)

    async def answer(self, order: ReadSessions) -> SessionsRead:
        return await trio.to_thread.run_sync(self._read, order, limiter=self._limiter)

    def _read(self, order: ReadSessions) -> SessionsRead:
        do = _BY_NAME[order.what]
        args, options = json.loads(order.args), json.loads(order.options)
        if order.options_of is None:
            of: Mapping[str, Mapping[str, object]] = {it: {} for it in services_in(self._directory)}
        else:
            of = {service_id: json.loads(more) for service_id, more in order.options_of.items()}
        try:
            found = ask_files(self._directory, do, of, *args, **options)
        except InvalidRequest as error:
            return SessionsRead(unreadable=dict.fromkeys(of, str(error)))
        values = {service_id: json.dumps(_plain(do, value)) for service_id, value in found.values.items()}
        return SessionsRead(values, found.unreadable)


def _plain(do: Callable[..., Any], value: Any) -> Any:
    if do in _FRAMES and value is not None:
        return [{**asdict(frame), "line": b64encode(frame.line).decode()} for frame in value]
    return to_plain(value)


def _value(do: Callable[..., Any], plain: Any) -> Any:
    if do in _FRAMES and plain is not None:
        return [_FRAMES[do](**{**frame, "line": b64decode(frame["line"])}) for frame in plain]
    if do is sqlite_archive.session and plain is not None:
        summary, snapshot = plain
        return from_answer(summary, archive.SessionSummary), from_answer(snapshot, SessionSnapshot)
    kind = _KINDS[do]
    value: Any = None if kind is None else from_answer(plain, kind)
    return {int(number): said for number, said in value.items()} if do is sqlite_archive.messages else value
