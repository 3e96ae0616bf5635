"""An instance that is a process of this machine."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import trio

from ..core.restart import Cause, Exit
from ..models import InstanceRecord, ServiceSpec
from . import addresses, listeners, logs
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
        unenforced: tuple[str, ...] = (),
        leash: ExitStack | None = None,
        ready_after_s: float = 0.0,
    ) -> None:
        """`leash`: what to keep open as long as it may live. `ready_after_s`: how long it took last time."""
        self.record = record
        self.unenforced = unenforced
        self.ready_after_s = ready_after_s
        self._leash = leash or ExitStack()
        self._process = process
        self._log, self._log_start = log, log_start
        self._is_command = bool(spec.config.command)
        self._patience_s = spec.config.health_check_timeout
        self._port_is_fixed = spec.port is not None
        self.probe = Probe(record.host, record.port, None if self._is_command else record.token)

    async def wait_ready(self) -> None:
        begin = trio.current_time()
        # A hosted agent has its socket from the start, so this handshake waits in the backlog until it is
        # accepted. A command is asked again and again until it listens, and left to start in peace as long as
        # its last start lets expect: looking takes a share of the processors that it needs.
        if self._is_command:
            await trio.sleep(_IN_PEACE * self.ready_after_s)
        while not await self._is_our_listener() or not (await self.probe(self._patience_s)).ok:
            waited = trio.current_time() - begin
            await trio.sleep(min(max(waited / 30, _MIN_PAUSE_S), _MAX_PAUSE_S))
        self.ready_after_s = trio.current_time() - begin

    async def wait_exit(self) -> Exit:
        return await self._process.wait_exit()

    async def end(self, grace_s: float) -> Exit:
        exit = await self._process.end(grace_s)
        self._leash.close()
        return exit

    def release(self) -> None:
        self._process.release()

    def last_words(self) -> str:
        return logs.last_words(self._log, self._log_start)

    async def misfortune(self) -> tuple[Cause, str] | None:
        port = self.record.port
        inode = listeners.on_port(port) if self._is_command else None
        if inode is None or await self._process.holds(inode):
            return None
        cause = Cause.PORT_TAKEN if self._port_is_fixed else Cause.PORT_LOST
        return cause, addresses.taken(self.record.host, port)

    async def _is_our_listener(self) -> bool:
        """A hosted agent has shown its token. For a command, whoever listens must be of its session."""
        if not self._is_command:
            return True
        inode = listeners.on_port(self.record.port)
        return inode is not None and await self._process.holds(inode)
