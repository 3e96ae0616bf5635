"""What an instance waits for before each launch: its dependencies, a machine, and a start permit of that."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager

import trio
from attrs import frozen

from ..models import ServiceSpec
from .launcher import Slot

_PERMIT_S = 5.0  #: a start that takes longer no longer delays the next one


@frozen
class Missing:
    reason: str  #: what it waits for
    coming: bool  #: whether that is on its way


class StartPermit:
    """Of one instance; one for each of its launches, one after the other."""

    def __init__(
        self,
        spec: ServiceSpec,
        slot: Slot,
        missing: Callable[[ServiceSpec], Missing | None],
        news: trio.lowlevel.ParkingLot,
        *,
        waits: Callable[[str], None],
        fail: Callable[[str], None],
    ) -> None:
        """`missing`: what has to be there first, which may change at each of the `news`. `waits` is called
        with what it waits for, `fail` with why a caller need not wait any longer.
        """
        self._spec, self._slot = spec, slot
        self._missing, self._news = missing, news
        self._waits, self._fail = waits, fail

    @asynccontextmanager
    async def wait(self) -> AsyncIterator[ExitStack]:
        """Closing the yielded stack releases the permit."""
        with ExitStack() as permit:
            await self._dependencies_ready()
            starts = await self._placed()
            await starts.acquire()
            permit.callback(starts.release)
            yield permit

    async def _dependencies_ready(self) -> None:
        """Waits without limit; but a caller is not to wait for a dependency that is not even starting."""
        while missing := self._missing(self._spec):
            self._waits(missing.reason)
            if not missing.coming:
                self._fail(f"{missing.reason}; start it first")
            await self._news.park()

    async def _placed(self) -> trio.Semaphore:
        """Waits without limit; but a caller is not to wait longer for a machine than for a start."""
        waits_for = ""

        def waits(reason: str) -> None:
            nonlocal waits_for
            waits_for = reason
            self._waits(reason)

        for patience_s in (self._spec.config.startup_timeout, math.inf):
            with trio.move_on_after(patience_s):
                return await self._slot.place(waits)
            self._fail(f"{waits_for}; it starts as soon as there is one")
        raise AssertionError("it waits without limit")


async def release_late(permit: ExitStack) -> None:
    """Releases the permit of an instance that hangs at its start, so that others can start."""
    await trio.sleep(_PERMIT_S)
    permit.close()
