"""The logs of a node's instances, as the manager reads them: orders, answers, and what answers them.

Each order is answered soon, and by what the log has at that moment. A log is followed by one order after the
other, each of which waits a while for new lines. No answer is so long that it holds up the link.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from datetime import datetime
from pathlib import Path

from attrs import field, frozen

from ..models.fields import check_name
from ..supervisor import logs
from ..supervisor.log_file import LogFile
from ..supervisor.log_source import Line, Reached, Selection
from ..supervisor.log_window import LogMatches, LogWindow

MAX_ANSWER_BYTES = 512 * 2**10  #: of a log, in one answer
MAX_WAIT_S = 30.0


@frozen(kw_only=True)
class LogOrder:
    """About one log: of a service, by its name, and a position among its instances."""

    service: str = field(validator=check_name)
    position: int


@frozen(kw_only=True)
class LogTail(LogOrder):
    """The last lines, before `before`. Answered by `LogLines`."""

    lines: int | None
    since: datetime | None = None
    grep: str | None = None
    before: int | None = None


@frozen(kw_only=True)
class LogNext(LogOrder):
    """What comes after a position, as soon as it is written. Answered by `LogPiece`."""

    after: int | None
    inode: int | None
    wait_s: float


@frozen(kw_only=True)
class LogLook(LogOrder):
    """Lines around a position. Answered by `LogWindow`."""

    limit: int
    at: int | None = None
    after: int | None = None
    before: int | None = None


@frozen(kw_only=True)
class LogSearch(LogOrder):
    """Answered by `LogMatches`."""

    text: str
    limit: int
    before: int | None = None


@frozen(kw_only=True)
class LogExtent(LogOrder):
    """What is kept of it, and when it was last written to. Answered by `LogKept`."""


@frozen(kw_only=True)
class LogRead(LogOrder):
    """The bytes between two positions. Answered by `LogPiece`, which may have fewer."""

    start: int
    end: int


@frozen
class MoveLogs:
    """A service has another name now, and keeps its logs. Answered by `LogsMoved`."""

    old: str = field(validator=check_name)
    new: str = field(validator=check_name)


@frozen
class LogLines:
    lines: tuple[str, ...]  #: in Base64
    written_at: tuple[float | None, ...]  #: seconds since 1970, of each
    end: int  #: the position after the log's last line
    before: int | None  #: where more of them are; None: there are none

    @property
    def decoded(self) -> list[Line]:
        return [Line(at, b64decode(data)) for at, data in zip(self.written_at, self.lines, strict=True)]


@frozen
class LogPiece:
    data: str  #: in Base64
    after: int | None = None  #: what comes next
    inode: int | None = None


@frozen
class LogsMoved:
    """Or there were none."""


@frozen
class LogKept:
    begin: int
    end: int
    written_at: float | None  #: in seconds since 1970; None: there is no such log


class NodeLogs:
    def __init__(self, directory: Path) -> None:
        self._directory = directory

    async def answer(
        self, order: LogOrder | MoveLogs
    ) -> LogLines | LogPiece | LogWindow | LogMatches | LogKept | LogsMoved:
        if isinstance(order, MoveLogs):
            logs.move(self._directory, order.old, order.new)
            return LogsMoved()
        log = LogFile(logs.path(self._directory, order.service, order.position))
        match order:
            case LogTail():
                wanted = Selection(order.lines, order.since, order.grep)
                tail = await log.tail(wanted, MAX_ANSWER_BYTES, order.before)
                lines = tuple(_text(line.data) for line in tail.lines)
                return LogLines(lines, tuple(line.at for line in tail.lines), tail.end, tail.before)
            case LogNext():
                reached = Reached(order.after, order.inode)
                data, reached = await log.piece(reached, min(order.wait_s, MAX_WAIT_S))
                return LogPiece(_text(data), reached.position, reached.inode)
            case LogLook():
                return await log.window(order.limit, at=order.at, after=order.after, before=order.before)
            case LogSearch():
                return await log.search(order.text, order.limit, before=order.before)
            case LogRead():
                end = min(order.end, order.start + MAX_ANSWER_BYTES)
                return LogPiece(_text(await log.read(order.start, end)))
            case _:
                begin, end = await log.extent()
                return LogKept(begin, end, log.written_at())


def _text(data: bytes) -> str:
    return b64encode(data).decode()
