"""The result of an operation that several callers may wait for."""

from __future__ import annotations

import trio

from ..errors import AgentManagerError


class Outcome:
    """Success, or the first failure; a later success replaces the failure."""

    def __init__(self) -> None:
        self._known = trio.Event()
        self._error: AgentManagerError | None = None

    def succeed(self) -> None:
        self._error = None
        self._known.set()

    def fail(self, error: AgentManagerError) -> None:
        if not self._known.is_set():
            self._error = error
            self._known.set()

    @property
    def known(self) -> bool:
        return self._known.is_set()

    async def wait(self) -> None:
        await self._known.wait()
        if self._error is not None:
            # A new one for each caller: a traceback belongs to one raise.
            raise type(self._error)(self._error.message)
