"""An instance that is a process of this machine."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from pathlib import Path

import trio

from ..core.restart import Cause, Exit
from ..models import InstanceRecord, ServiceSpec
from . import addresses, listeners, logs
from .cgroup import ControlGroup, move
from .notices import Notices
from .probe import Probe
from .process import Process

# How long to wait before looking again whether a command listens yet. No event tells that, so it costs either
# time or work: a thirtieth of the time waited so far adds 3 % to a start, however long it takes.
_MIN_PAUSE_S, _MAX_PAUSE_S = 0.001, 0.25
_IN_PEACE = 0.7


class LocalChild:
    def __init__(
        self,
        spec: ServiceSpec,
        record: InstanceRecord,
        process: Process,
        log: Path,
        log_start: int,
        *,
        unenforced: tuple[str, ...] = (),
        notices: Notices | None = None,
        group: ControlGroup | None = None,
        leash: ExitStack | None = None,
        ready_after_s: float = 0.0,
    ) -> None:
        """`notices`: what it tells of itself. `group`: where to put it. `leash`: what to keep open as long as
        it may live. `ready_after_s`: how long it took last time.
        """
        self.record = record
        self.unenforced = unenforced
        self.ready_after_s = ready_after_s
        self._notices, self._group = notices, group
        self._leash = leash or ExitStack()
        self._process = process
        self._log, self._log_start = log, log_start
        self._is_command = self.completes = bool(spec.config.command)
        self._patience_s = spec.config.health_check_timeout
        self._port_is_fixed = spec.port is not None
        self.probe = Probe(record.host, record.port, None if self._is_command else record.token)

    @property
    def said(self) -> str | None:
        return None if self._notices is None else self._notices.said

    async def wait_ready(self) -> None:
        begin = trio.current_time()
        async with trio.open_nursery() as nursery:

            async def until(ready: Callable[[], Awaitable[None]]) -> None:
                await ready()
                nursery.cancel_scope.cancel()

            nursery.start_soon(until, self._wait_answers)
            if self._notices is not None:
                nursery.start_soon(until, self._notices.ready.wait)
        self.ready_after_s = trio.current_time() - begin

    async def _wait_answers(self) -> None:
        begin = trio.current_time()
        # A hosted agent has its socket from the start, so this handshake waits in the backlog until it is
        # accepted. A command is asked again and again until it listens, and left to start in peace as long as
        # its last start lets expect: looking takes a share of the processors that it needs.
        if self._is_command:
            await trio.sleep(_IN_PEACE * self.ready_after_s)
        while not await self._is_our_listener() or not (await self.probe(self._patience_s)).ok:
            waited = trio.current_time() - begin
            await trio.sleep(min(max(waited / 30, _MIN_PAUSE_S), _MAX_PAUSE_S))

    async def wait_exit(self) -> Exit:
        if self._group is None:
            return await self._heard(self._process.wait_exit())
        async with trio.open_nursery() as nursery:
            # Meanwhile it may have started something else already: that has its other marks.
            nursery.start_soon(move, self._group.take_in, self._process.pid)
            return await self._heard(self._process.wait_exit())

    async def end(self, grace_s: float) -> Exit:
        exit = await self._heard(self._process.end(grace_s))
        self._leash.close()
        return exit

    def kill(self) -> None:
        self._process.kill()

    async def _heard(self, exit: Awaitable[Exit]) -> Exit:
        """Waits for it, and takes what it tells meanwhile."""
        if self._notices is None:
            return await exit
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._notices.listen, self._process.includes)
            result = await exit
            nursery.cancel_scope.cancel()
        return result

    def release(self) -> None:
        self._process.release()
        self._leash.close()

    def last_words(self) -> str:
        return logs.last_words(self._log, self._log_start)

    async def misfortune(self) -> tuple[Cause, str] | None:
        port = self.record.port
        inode = listeners.on_port(port) if self._is_command else None
        if inode is None or await self._process.holds(inode):
            return None
        cause = Cause.PORT_TAKEN if self._port_is_fixed else Cause.PORT_LOST
        return cause, addresses.taken(self.record.host, port, fixed=self._port_is_fixed)

    async def _is_our_listener(self) -> bool:
        """A hosted agent has shown its token. For a command, whoever listens must be of its session."""
        if not self._is_command:
            return True
        inode = listeners.on_port(self.record.port)
        return inode is not None and await self._process.holds(inode)
