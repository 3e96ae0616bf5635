"""Logs of instances that run, or ran, on nodes: `LogSource`s over their links."""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from datetime import timedelta
from functools import partial
from typing import Any, NoReturn, TypeVar

import trio
from attrs import evolve

from ..errors import WrongState
from ..models import utc_now
from ..node.logs import (
    LogExtent,
    LogKept,
    LogLines,
    LogLook,
    LogNext,
    LogPiece,
    LogRead,
    LogSearch,
    LogTail,
)
from ..node.protocol import Answer
from ..supervisor.log_file import LogFile
from ..supervisor.log_source import Line, LogSource, Reached, Selection, Write, follow
from ..supervisor.log_window import LogMatches, LogWindow
from .node_handle import NodeHandle, NodeLost, OrderFailed

_ANSWER_S = 10.0  #: a search reads 64 MiB, of a disk that may be slow
_AGAIN_S = 5.0
_MOVED_S = 0.5  #: between looks at where an instance is whose log is followed
_MOST_AFTER_MOVE_BYTES = 2**20
_SAME_CLOCK = timedelta(seconds=0.5)
"""Clocks that differ by less are taken for one: a message takes its time."""

Kind = TypeVar("Kind", bound=Answer)


class RemoteLog:
    """Of a service, by its name, and a position among its instances."""

    def __init__(self, handle: NodeHandle, service: str, position: int) -> None:
        self._handle, self.node_id = handle, handle.node_id
        self._log: dict[str, Any] = {"service": service, "position": position}

    async def last(self, wanted: Selection, most_bytes: int) -> tuple[Sequence[Line], int]:
        """Times are those of this machine's clock, also where the node's is another."""
        skew = timedelta(seconds=self._handle.clock_skew_s or 0)
        if abs(skew) < _SAME_CLOCK:
            skew = timedelta(0)
        since = None if wanted.since is None else wanted.since + skew
        found: list[Line] = []
        lines, end, before, kept = wanted.lines, 0, None, 0
        while True:  # what was written last comes first
            order = LogTail(**self._log, lines=lines, since=since, grep=wanted.grep, before=before)
            tail = await self._ask(order, LogLines)
            some = [evolve(line, at=line.at and line.at - skew.total_seconds()) for line in tail.decoded]
            found = some + found
            end = tail.end if before is None else end
            lines = None if lines is None else lines - len(some)
            kept += sum(len(line.data) for line in some)
            before = tail.before
            if before is None or lines == 0 or kept >= most_bytes:
                return found, end

    async def follow(self, write: Write, *, start: int) -> None:
        """Goes on when a node that was silent, or lost, is back."""
        await follow(self._piece, write, start)

    async def _piece(self, reached: Reached, wait_s: float) -> tuple[bytes, Reached]:
        order = LogNext(**self._log, after=reached.position, inode=reached.inode, wait_s=wait_s)
        while True:
            try:
                piece = await self._handle.call(order, LogPiece)
            except NodeLost:
                await self._handle.news.park()
            except OrderFailed:  # as where its disk fails
                await trio.sleep(_AGAIN_S)
            else:
                return b64decode(piece.data), Reached(piece.after, piece.inode)

    async def window(
        self, limit: int, *, at: int | None = None, after: int | None = None, before: int | None = None
    ) -> LogWindow:
        order = LogLook(**self._log, limit=limit, at=at, after=after, before=before)
        return await self._ask(order, LogWindow)

    async def search(self, text: str, limit: int, *, before: int | None = None) -> LogMatches:
        order = LogSearch(**self._log, text=text, limit=limit, before=before)
        return await self._ask(order, LogMatches)

    async def extent(self) -> tuple[int, int]:
        kept = await self.kept()
        return kept.begin, kept.end

    async def kept(self) -> LogKept:
        return await self._ask(LogExtent(**self._log), LogKept)

    async def read(self, start: int, end: int) -> bytes:
        return b64decode((await self._ask(LogRead(**self._log, start=start, end=end), LogPiece)).data)

    async def _ask(self, order: Any, kind: type[Kind]) -> Kind:
        """The answer of a node that is there. Raises `WrongState`."""
        if not self._handle.linked:
            self._fail(self._handle.lost or self._handle.unlinked_why)
        try:
            with trio.fail_after(_ANSWER_S):
                return await self._handle.call(order, kind)
        except trio.TooSlowError:
            self._fail(f"it has not answered for {_ANSWER_S:g} s")
        except (NodeLost, OrderFailed) as problem:
            self._fail(str(problem))

    def _fail(self, why: str) -> NoReturn:
        raise WrongState(f"the log is on node {self._handle.name}, which cannot be asked now: {why}")


async def newest(here: LogSource, elsewhere: Iterable[RemoteLog]) -> str:
    """The id of the node whose log was written to last, of those that can be asked; "" for this machine."""
    local = here.written_at() if isinstance(here, LogFile) else None
    written = {"": local or 0.0}

    async def ask(log: RemoteLog) -> None:
        with suppress(WrongState):
            written[log.node_id] = (await log.kept()).written_at or 0.0

    async with trio.open_nursery() as nursery:
        for log in elsewhere:
            nursery.start_soon(ask, log)
    return max(written, key=lambda node_id: written[node_id])


class MovingLog:
    """The log at a position of a service, on whatever node that is, or was last."""

    def __init__(
        self, find: Callable[[], Awaitable[tuple[str, LogSource]]], node_now: Callable[[], str | None]
    ) -> None:
        """`find`: the id of the node, and the log there. `node_now`: its id; None: none has been seen yet."""
        self._find, self._node_now = find, node_now

    async def last(self, wanted: Selection, most_bytes: int) -> tuple[Sequence[Line], int]:
        return await (await self._source()).last(wanted, most_bytes)

    async def window(
        self, limit: int, *, at: int | None = None, after: int | None = None, before: int | None = None
    ) -> LogWindow:
        return await (await self._source()).window(limit, at=at, after=after, before=before)

    async def search(self, text: str, limit: int, *, before: int | None = None) -> LogMatches:
        return await (await self._source()).search(text, limit, before=before)

    async def extent(self) -> tuple[int, int]:
        return await (await self._source()).extent()

    async def read(self, start: int, end: int) -> bytes:
        return await (await self._source()).read(start, end)

    async def _source(self) -> LogSource:
        _, source = await self._find()
        return source

    async def follow(self, write: Write, *, start: int) -> None:
        """Also over moves: of the next node what was written there since, and so on."""
        node_id, source = await self._find()
        while True:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(partial(source.follow, write, start=start))
                seen_at = utc_now()
                while self._node_now() in (None, node_id):
                    seen_at = utc_now()
                    await trio.sleep(_MOVED_S)
                nursery.cancel_scope.cancel()
            while True:
                with suppress(WrongState):  # it may be silent just now, or move on
                    node_id, source = await self._find()
                    lines, start = await source.last(Selection(None, since=seen_at), _MOST_AFTER_MOVE_BYTES)
                    break
                await trio.sleep(_MOVED_S)
            if lines:
                await write(b"".join(line.data for line in lines))
