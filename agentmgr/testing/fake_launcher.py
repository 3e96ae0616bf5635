"""Instances without processes, for testing what supervises them: each behaves as the test says, on trio's
clock.

Under `trio.testing.MockClock(autojump_threshold=0)` an hour of crashes and backoffs takes a millisecond::

    launcher = FakeLauncher(Behaviour(exits_after_s=30, exit=Exit(code=1)))
    async with Supervisor(log_dir="unused", launcher=launcher) as supervisor:
        await supervisor.start(spec)
        launcher.refuse_next()
        launcher.crash(spec.name)
"""

from __future__ import annotations

import math
import os
import signal
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

import trio
from attrs import Factory, frozen

from ..core.health import ProbeResult
from ..core.restart import Cause, Exit
from ..core.scaling import Turns
from ..models import ForkServerState, InstanceRecord, ServiceSpec, Usage, utc_now
from ..supervisor.launcher import MAX_CONCURRENT_STARTS, CannotLaunch, GpuIds
from ..supervisor.log_file import LogFile

SEGFAULT = Exit(signal=signal.SIGSEGV)


@frozen
class Behaviour:
    """How one fake process lives. Durations in seconds, from its launch."""

    ready_after_s: float = 0.0
    exits_after_s: float = math.inf
    exit: Exit = Factory(lambda: Exit(code=0))
    unwell_between_s: tuple[float, float] = (math.inf, math.inf)  #: its checks fail from … to …
    stop_takes_s: float = 0.0
    conversation_takes_s: float | None = None  #: from when it is asked to drain; None: it cannot tell
    last_words: str = ""
    silent: str = ""  #: why it cannot be asked, from its launch on


class FakeChild:
    """An instance of the service `name`."""

    def __init__(self, name: str, record: InstanceRecord, behaviour: Behaviour) -> None:
        self.name = name
        self.record = record
        self.work: Turns | None = Turns(0)  #: None: it cannot tell
        self.silent = behaviour.silent  #: why it cannot be asked, until `fall_silent` says otherwise
        self._heard = trio.Event()
        self.hangs = False  #: it answers no check, and ends only when it is killed
        self.unenforced: tuple[str, ...] = ()
        self.completes = True
        self.said: str | None = None
        self.serves = True
        self.quiet_s: float | None = None  #: for how long nothing has gone on in it, as it says
        self.behaviour = behaviour
        self.launched_at = trio.current_time()
        self.ended_at: float | None = None  #: by `end`
        self.released = False
        self.drained_with: int | None = None  #: the close code, once it was asked to drain
        self.probed_at: list[float] = []
        self._exit: Exit | None = None
        self._grace = trio.CancelScope(shield=True)
        self._exited = trio.Event()

    def die(self, exit: Exit) -> None:
        """It exits by itself, now."""
        self._exit = self._exit or exit
        self._exited.set()

    def fall_silent(self, why: str) -> None:
        """It cannot be asked, nor found ready, until it is called with an empty reason."""
        self.silent = why
        if not why:
            self._heard.set()
            self._heard = trio.Event()

    async def wait_heard(self) -> None:
        await trio.lowlevel.checkpoint()
        while self.silent:
            await self._heard.wait()

    async def wait_ready(self) -> None:
        await self.wait_heard()
        await trio.sleep_until(self.launched_at + self.behaviour.ready_after_s)

    async def wait_serving(self) -> None:
        await trio.lowlevel.checkpoint()

    async def unready(self) -> str:
        return "the test makes it slow"

    async def wait_exit(self) -> Exit:
        with trio.move_on_at(self.launched_at + self.behaviour.exits_after_s):
            await self._exited.wait()
        self._exit = self._exit or self.behaviour.exit
        return self._exit

    async def probe(self, timeout_s: float, *, fresh: bool = True) -> ProbeResult | None:
        await trio.lowlevel.checkpoint()
        if self.silent:
            return None
        now = trio.current_time()
        self.probed_at.append(now)
        if self.hangs:
            await trio.sleep(timeout_s)
            return ProbeResult(False, reason="it does not answer")
        begin, end = self.behaviour.unwell_between_s
        if begin <= now - self.launched_at < end:
            return ProbeResult(False, reason="the test makes it unwell")
        return ProbeResult(True, 0.0, quiet_s=self.quiet_s)

    async def turns(self) -> Turns | None:
        await trio.lowlevel.checkpoint()
        return self.work

    async def drain(self, code: int, answered: Callable[[bool], None]) -> None:
        self.drained_with = code
        if not (tells := self.behaviour.conversation_takes_s is not None):
            answered(tells)
            return
        answered(tells)
        await trio.sleep(self.behaviour.conversation_takes_s or 0)

    async def is_draining(self) -> bool:
        return self.drained_with is not None

    async def change_close_code(self, code: int) -> None:
        self.drained_with = code

    async def end(self, grace_s: float) -> Exit:
        if self._exit is None:
            takes_s = math.inf if self.hangs else self.behaviour.stop_takes_s
            with self._grace:
                await trio.sleep(min(takes_s, grace_s))
            by_itself = takes_s <= grace_s and not self._grace.cancelled_caught
            self._exit = Exit(code=0) if by_itself else Exit(signal=9)
        self.ended_at = trio.current_time()
        return self._exit

    def kill(self) -> None:
        self._grace.cancel()

    def release(self) -> None:
        self.released = True

    def last_words(self) -> str:
        return self.behaviour.last_words

    async def last_output(self) -> str:
        await trio.lowlevel.checkpoint()
        return self.behaviour.last_words

    def out_of_memory(self, exit: Exit) -> str | None:
        return None

    async def misfortune(self) -> tuple[Cause, str] | None:
        return None


class FakeLauncher:
    """Launches fakes: the n-th behaves as the n-th of `behaviours`, and all further ones as the last."""

    adopted = Behaviour()  #: of instances that an earlier manager has launched

    def __init__(self, *behaviours: Behaviour | CannotLaunch) -> None:
        self.behaviours: Sequence[Behaviour | CannotLaunch] = behaviours or (Behaviour(),)
        self.children: list[FakeChild] = []  #: in the order of their launches
        self.launches = 0  #: tries, except those refused
        self.leases: set[str] = set()  #: ids of instances whose port is kept for them
        self.starts = trio.Semaphore(MAX_CONCURRENT_STARTS)
        self.waits_for = ""  #: what launches wait for until it is empty again, as `a node: none is linked`
        self._changed = trio.Event()
        self._refusals: deque[CannotLaunch] = deque()

    # Faults

    def crash(self, name: str, exit: Exit = SEGFAULT) -> None:
        """Makes each running instance of this service exit that way, now."""
        for child in self._of(name):
            child.die(exit)

    def hang(self, name: str) -> None:
        """Makes each running instance of this service ignore checks and requests to stop."""
        for child in self._of(name):
            child.hangs = True

    def refuse_next(
        self, times: int = 1, *, cause: Cause = Cause.SHORTAGE, reason: str = "the test refuses it"
    ) -> None:
        """Makes the next launches fail, of any service, before `behaviours` go on."""
        self._refusals.extend(CannotLaunch(cause, reason) for _ in range(times))

    def wait_for(self, what: str) -> None:
        """Makes all launches wait for that, as for a node that is not linked; empty: they go on."""
        self.waits_for = what
        self._changed.set()
        self._changed = trio.Event()

    def _of(self, name: str) -> list[FakeChild]:
        return [child for child in self.running if child.name == name]

    # What a supervisor asks of it

    async def run(self) -> None:
        await trio.sleep_forever()

    def troubles(self) -> tuple[str, ...]:
        return ()

    def fork_servers(self) -> tuple[ForkServerState, ...]:
        return ()

    def forget(self, service_id: str) -> None:
        pass

    def preloaded(self, service_id: str) -> None:
        return None

    def usage(self, instance_id: str) -> tuple[Usage, ...]:
        return ()

    def open_log(self, spec: ServiceSpec, position: int) -> LogFile:
        """Empty: a fake writes nothing."""
        return LogFile(Path(os.devnull))

    def move_logs(self, old: str, new: str) -> None:
        pass

    def node_name(self, node_id: str) -> str:
        return ""

    def slot(self, spec: ServiceSpec, instance_id: str, position: int) -> FakeSlot:
        self.leases.discard(instance_id)
        return FakeSlot(self, spec, instance_id, position)

    def end_lease(self, instance_id: str) -> None:
        self.leases.discard(instance_id)

    def stranger(self, record: InstanceRecord) -> None:
        """Every record is one of its own."""

    async def sweep(self, keep: frozenset[str]) -> int:
        await trio.lowlevel.checkpoint()
        return 0

    @property
    def running(self) -> list[FakeChild]:
        """Those that were not ended or released yet."""
        return [child for child in self.children if child.ended_at is None and not child.released]


class FakeSlot:
    def __init__(self, launcher: FakeLauncher, spec: ServiceSpec, instance_id: str, position: int) -> None:
        self._launcher, self._spec, self._instance_id, self._position = launcher, spec, instance_id, position
        self.closed = False

    async def place(self, waits: Callable[[str], None]) -> trio.Semaphore:
        await trio.lowlevel.checkpoint()
        while self._launcher.waits_for:
            waits(f"waits for {self._launcher.waits_for}")
            await self._launcher._changed.wait()
        return self._launcher.starts

    def gains_by_end_of(self, instance_id: str) -> bool:
        return False

    async def launch(self, gpus: GpuIds = None) -> FakeChild:
        await trio.lowlevel.checkpoint()
        launcher = self._launcher
        if launcher._refusals:
            raise launcher._refusals.popleft()
        behaviour = launcher.behaviours[min(launcher.launches, len(launcher.behaviours) - 1)]
        launcher.launches += 1
        if isinstance(behaviour, CannotLaunch):
            raise behaviour
        pid = 1_000_000 + launcher.launches
        record = InstanceRecord(
            instance_id=self._instance_id,
            service_id=self._spec.service_id,
            slot=self._position,
            pid=pid,
            process_start=0,
            boot_id="fake",
            token=f"token-{pid}",
            host="127.0.0.1",
            port=self._spec.port or 20_000 + launcher.launches,
            spec_version=self._spec.version,
            started_at=utc_now(),
            gpus=gpus or (),
        )
        return self._begin(record, behaviour)

    def adopt(self, record: InstanceRecord) -> FakeChild | None:
        """Whatever has `boot_id="fake"` is taken to be alive."""
        return self._begin(record, self._launcher.adopted) if record.boot_id == "fake" else None

    def _begin(self, record: InstanceRecord, behaviour: Behaviour) -> FakeChild:
        child = FakeChild(self._spec.name, record, behaviour)
        self._launcher.children.append(child)
        return child

    def close(self, *, lease: bool = False, leave: bool = False) -> None:
        self.closed = True
        if lease:
            self._launcher.leases.add(self._instance_id)
