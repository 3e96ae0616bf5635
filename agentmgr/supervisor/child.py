"""An instance that is a process of this machine: how it shows that it is ready, and that it is well.

A hosted agent answers with its proof. A command is judged by `--ready` and `--health`; as far as these are
`auto`, by what it shows:

* It is ready when it sends READY=1 (sd_notify), or when a listener of its own on its port answers a WebSocket
  handshake, or an HTTP request for one, with a status below 500. A command that names no `{port}` may serve
  nothing at all: it is also ready when it still runs after a moment. The exception: another instance of it
  serves now, or it served before a restart. Then it is waited for: no client is sent to a closed port.
* Once it has sent WATCHDOG=1, it is well as long as more of them come.
* Once it has answered a handshake, it is well as long as it answers. But if it has sent READY=1, that holds
  only if it spoke WebSocket: what it says itself counts more than how it answers a handshake.
* Otherwise it is well as long as it lives.

Clients are sent to it once a listener of its own was seen. The kernel is asked for that, without connecting.
"""

from __future__ import annotations

import math
import re
import signal
from collections.abc import Awaitable, Callable
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path

import trio
from attrs import evolve

from ..core.health import ProbeResult
from ..core.hosts import authority
from ..core.proof import HEALTH_PATH
from ..core.restart import Cause, Exit
from ..core.scaling import Turns
from ..models import CheckKind, InstanceRecord, ServiceSpec
from . import addresses, listening_sockets, logs
from .cgroup import ControlGroup, move
from .host_drain import HostDrain
from .host_request import HostRequest
from .limits import Limits
from .notices import Notices
from .own_checks import CommandCheck, wait_for_line
from .probe import Probe, count_of
from .process import Process

# The pause between two looks whether a command listens yet. No event reports that, so it costs either time or
# work: a thirtieth of the time waited so far adds 3 % to a start, however long it takes.
_MIN_PAUSE_S, _MAX_PAUSE_S = 0.001, 0.25
_IN_PEACE = 0.7  #: of the time that its last start took, before the first look
# A command that answers wrongly is asked again after a pause that doubles: each time costs it a connection.
_FIRST_PAUSE_S, _LAST_PAUSE_S = 0.1, 2.0
_MOMENT_S = 1.0  #: a process that has lived so long has started (supervisord's `startsecs`)
_OF_WHAT_IS_LEFT = 0.9  #: of the startup timeout: the last probe ends before it, with a result

_ASKED = (CheckKind.WEBSOCKET, CheckKind.HTTP, CheckKind.TCP)
_reads = trio.CapacityLimiter(4)  #: of logs, when many end at once

# What runtimes say where a process may have no more memory: it is refused it, and not killed.
_OUT_OF_MEMORY = re.compile(r"MemoryError|[Oo]ut of memory|Cannot allocate memory|bad_alloc|OutOfMemory")

_SERVES_NOTHING = "where it serves no connections: --ready started"


class LocalChild:
    silent = ""

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
        limits: Limits | None = None,
        command_check: CommandCheck | None = None,
        resources: ExitStack | None = None,
        ready_after_s: float = 0.0,
        must_serve: bool = True,
        on_serving: Callable[[], None] = lambda: None,
        on_ready: Callable[[HostRequest], None] = lambda _: None,
    ) -> None:
        """`notices`: what it reports by sd_notify. `group`: where to put it. `limits`: those set for it.
        `command_check`: for `--health command:…`.
        `resources`: closed when it has ended. `ready_after_s`: how long it took last time. `must_serve`: it
        is not ready before it answers, unless it says so. `on_serving`: called when a listener of its own was
        seen. `on_ready`: called when it is ready, with a way to ask its host.
        """
        self.record = record
        self.unenforced = unenforced
        self.ready_after_s = ready_after_s
        self._notices, self._group = notices, group
        self._command_check = command_check
        self._limits, self._memory_limit_mb = limits, spec.config.memory_limit_mb
        self._memory_kills = 0 if limits is None else limits.memory_kills()  # of earlier processes
        self._resources = resources or ExitStack()
        self._process = process
        self._log, self._log_start = log, log_start
        config = spec.config
        self._is_command = self.completes = bool(config.command)
        self._patience_s = config.health_check_timeout if self._is_command else math.inf
        self._moment_s = min(_MOMENT_S, config.startup_timeout / 2)
        self._port_is_fixed = spec.port is not None
        self._must_serve, self._on_serving = must_serve, on_serving
        self._ready_by = config.ready_method
        asked = self._ready_by.kind in _ASKED and config.health_method.kind is CheckKind.AUTO
        self._well_by = self._ready_by if asked else config.health_method
        token = None if self._is_command else record.token
        self._ask_if_ready = Probe(record.host, record.port, token, self._ready_by)
        self._ask_if_well = Probe(record.host, record.port, token, self._well_by)
        self._answered = False  #: a probe of `_ask_if_well`, with a status
        self._speaks_websocket = False
        self._was_ready = record.ready_unasked  #: for an earlier manager
        self._pause_s = _FIRST_PAUSE_S
        self._found: ProbeResult | None = None  #: the failed probe that says why it is not ready yet
        self.serves = not self._is_command  #: a hosted agent has its socket from the start
        self._ask_host = HostRequest(record.host, record.port, record.token)
        self._host_drain = HostDrain(self._ask_host)
        self._on_ready = on_ready

    @property
    def said(self) -> str | None:
        return None if self._notices is None else self._notices.said

    async def wait_heard(self) -> None:
        await trio.lowlevel.checkpoint()

    # Ready

    async def wait_ready(self) -> None:
        begin = trio.current_time()
        kind, notices = self._ready_by.kind, self._notices
        unasked = self._was_ready
        async with trio.open_nursery() as nursery:

            async def until(shows_it: Callable[[], Awaitable[None]], *, by_itself: bool) -> None:
                nonlocal unasked
                await shows_it()
                unasked = by_itself
                nursery.cancel_scope.cancel()

            if not self._was_ready:
                if kind in _ASKED or kind is CheckKind.AUTO:
                    nursery.start_soon(partial(until, self._wait_answers, by_itself=False))
                if kind in (CheckKind.AUTO, CheckKind.NOTIFY) and notices is not None:
                    nursery.start_soon(partial(until, notices.ready.wait, by_itself=True))
                if kind is CheckKind.LOG:
                    pattern = self._ready_by.path
                    nursery.start_soon(
                        partial(
                            until,
                            partial(wait_for_line, self._log, self._log_start, pattern),
                            by_itself=True,
                        )
                    )
                if kind is CheckKind.STARTED or (kind is CheckKind.AUTO and not self._must_serve):
                    nursery.start_soon(partial(until, self._wait_a_moment, by_itself=True))
        self.record = evolve(self.record, ready_unasked=unasked)
        self.ready_after_s = trio.current_time() - begin
        if notices is not None:
            notices.expect_watchdog()
        self._on_ready(self._ask_host)

    async def _wait_a_moment(self) -> None:
        await trio.sleep(self._moment_s)

    async def _wait_answers(self) -> None:
        # A hosted agent has its socket from the start, so this handshake waits in the backlog until it is
        # accepted. A command is not looked at for a part of the time that its last start took: looking takes
        # processor time that it needs.
        if self._is_command:
            await trio.sleep(_IN_PEACE * self.ready_after_s)
        while True:
            await self.wait_serving()
            if self._ready_by.kind is CheckKind.TCP:
                return
            # Negative once that has passed, or a stop has cancelled this.
            left_s = max(0.0, _OF_WHAT_IS_LEFT * (trio.current_effective_deadline() - trio.current_time()))
            found = await self._ask_if_ready(min(self._patience_s, left_s))
            if found.ok:
                self._note(found)
                return
            if self._found is None or self._patience_s <= left_s:  # a probe that was cut short has seen less
                self._found = found
            await trio.sleep(self._pause_s)
            self._pause_s = min(2 * self._pause_s, _LAST_PAUSE_S)

    async def unready(self) -> str:
        if self._ready_by.kind is CheckKind.NOTIFY:
            return "no READY=1 came by sd_notify"
        if self._ready_by.kind is CheckKind.LOG:
            return f"no line of its output matches {self._ready_by.path!r}"
        if self._found is not None:
            seen, advice = str(self._found.reason), self._found.advice
        else:
            seen = f"connection refused at {authority(self.record.host, self.record.port)}"
            advice = await self._where_it_listens()
            if self._ready_by.kind is CheckKind.AUTO:
                seen, advice = f"{seen}, and no READY=1 came", advice or _SERVES_NOTHING
        return f"{seen} ({advice})" if advice else seen

    async def _where_it_listens(self) -> str | None:
        try:
            ports = await self._process.listens_on()
        except OSError:  # no descriptor left to look with
            return None
        if not ports:
            return None
        if self.record.port in ports:
            return "it listens there only now: give it more time by --startup-timeout"
        return f"it listens on port {ports[0]}: make it take {{port}}, or register it with --port {ports[0]}"

    # Well

    async def probe(self, timeout_s: float, *, fresh: bool = True) -> ProbeResult:
        kind = self._well_by.kind
        if not self._is_command or kind in _ASKED:
            return ProbeResult(True) if kind is CheckKind.NONE else await self._ask_if_well(timeout_s)
        if kind is CheckKind.COMMAND and self._command_check is not None:
            await self._look_whether_it_serves()
            return await self._command_check(timeout_s)
        notices = self._notices
        if not self._must_answer:
            await self._look_whether_it_serves()
        if notices is not None and (
            kind is CheckKind.WATCHDOG or (kind is CheckKind.AUTO and notices.watchdog)
        ):
            reason = notices.silence(timeout_s)
            return ProbeResult(reason is None, reason=reason)
        if kind is CheckKind.AUTO and (self._must_answer or self._may_answer):
            result = await self._ask_if_well(timeout_s)
            self._note(result)
            if self._must_answer:
                return result
        return ProbeResult(True)  # its process lives

    @property
    def _must_answer(self) -> bool:
        """Whether it has answered before in a way that it must go on with."""
        said_ready = self._was_ready or (self._notices is not None and self._notices.ready.is_set())
        return self._speaks_websocket or (self._answered and not said_ready)

    @property
    def _may_answer(self) -> bool:
        """Whether it is worth asking, to learn what it speaks."""
        return self.serves and not self._answered and self._ready_by.kind is CheckKind.AUTO

    def _note(self, result: ProbeResult) -> None:
        if result.ok:
            self._answered = True
            self._speaks_websocket = self._speaks_websocket or result.status == 101

    # Serves

    async def wait_serving(self) -> None:
        begin = trio.current_time()
        while not await self._look_whether_it_serves():
            waited_s = trio.current_time() - begin
            await trio.sleep(min(max(waited_s / 30, _MIN_PAUSE_S), _MAX_PAUSE_S))

    async def _look_whether_it_serves(self) -> bool:
        """A hosted agent proves it when it is probed. A command serves if one of its processes listens."""
        if self._is_command:
            with suppress(OSError):  # no descriptor left to look with: keep the last answer
                inode = listening_sockets.on_port(self.record.port)
                self.serves = inode is not None and await self._process.holds(inode)
            if self.serves:
                self._on_serving()
        return self.serves

    # The process

    async def wait_exit(self) -> Exit:
        if self._group is None:
            return await self._with_notices(self._process.wait_exit())
        async with trio.open_nursery() as nursery:
            # A process that it has started before it is moved is known by its other marks.
            nursery.start_soon(move, self._group.take_in, self._process.pid)
            return await self._with_notices(self._process.wait_exit())

    async def turns(self) -> Turns | None:
        if self._is_command:
            return None
        answer = await self._ask_host(HEALTH_PATH, {"only": "turns"})
        if answer is None:
            raise OSError("its host gave no answer")
        under_way, asking = (count_of(answer.get(name)) for name in ("turns", "asking"))
        return None if under_way is None else Turns(under_way, asking or 0)

    async def drain(self, code: int, answered: Callable[[bool], None]) -> None:
        if self._is_command:
            answered(False)
            return
        async with trio.open_nursery() as nursery:

            async def stop_asking() -> None:
                await self._process.wait_gone()
                nursery.cancel_scope.cancel()

            nursery.start_soon(stop_asking)
            await self._host_drain(code, answered)
            nursery.cancel_scope.cancel()

    async def is_draining(self) -> bool:
        return not self._is_command and await self._host_drain.close_code() is not None

    async def change_close_code(self, code: int) -> None:
        await self._host_drain.change_close_code(code)

    async def end(self, grace_s: float) -> Exit:
        exit = await self._with_notices(self._process.end(grace_s))
        self._resources.close()
        return exit

    def kill(self) -> None:
        self._process.kill()

    async def _with_notices(self, exit: Awaitable[Exit]) -> Exit:
        """Waits for `exit`, and receives its notices meanwhile."""
        if self._notices is None:
            return await exit
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._notices.listen, self._process.includes)
            result = await exit
            nursery.cancel_scope.cancel()
        return result

    def release(self) -> None:
        self._process.release()
        self._resources.close()

    def last_words(self) -> str:
        return logs.last_words(self._log, self._log_start)

    async def last_output(self) -> str:
        try:
            return await trio.to_thread.run_sync(logs.last_output, self._log, self._log_start, limiter=_reads)
        except (RuntimeError, MemoryError):  # no new thread just now: its end counts all the same
            return ""

    def out_of_memory(self, exit: Exit) -> str | None:
        limit, limits = self._memory_limit_mb, self._limits
        if limit is None or limits is None:
            return None
        if exit.signal == signal.SIGKILL and limits.memory_kills() > self._memory_kills:
            return f"killed by its memory limit ({limit} MB)"
        if exit.code != 0 and not limits.memory_by_group and _OUT_OF_MEMORY.search(self.last_words()):
            return f"{exit}, out of memory: its memory limit allows each of its processes {limit} MB"
        return None

    async def misfortune(self) -> tuple[Cause, str] | None:
        port = self.record.port
        try:
            inode = listening_sockets.on_port(port) if self._is_command else None
            if inode is None or await self._process.holds(inode):
                return None
        except OSError:  # no descriptor left to look with
            return None
        cause = Cause.PORT_TAKEN if self._port_is_fixed else Cause.PORT_LOST
        return cause, addresses.taken(self.record.host, port, fixed=self._port_is_fixed)
