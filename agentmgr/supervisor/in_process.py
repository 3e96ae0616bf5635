"""Services that are not processes but async functions of the application that embeds the supervisor.

    async def ticker():
        while True:
            ...

    await supervisor.start(in_process(ticker, restart_delay=1))

Same policies, same states. A function with a parameter `task_status` is ready when it calls
`task_status.started()`, one without at once. Returning is exit code 0; an exception is exit code 1, with its
traceback as the last words, and goes no further; a stop is a cancellation. The function runs in the
nursery of the try that launched it. A function that shields itself from cancellation cannot be stopped: that
takes a process.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Awaitable, Callable
from typing import Any, NoReturn

import trio
from attrs import frozen

from ..boundary import Failure, contain, traceback_of
from ..core.health import ProbeResult
from ..core.restart import Cause, Exit
from ..core.scaling import Turns
from ..errors import InvalidRequest, WrongState, leaves
from ..models import ForkServerState, InstanceRecord, ServiceConfig, ServiceSpec, Usage, utc_now
from . import procfs
from .launcher import MAX_CONCURRENT_STARTS, GpuIds, Launcher, Slot

ServiceFunction = Callable[..., Awaitable[object]]


@frozen
class InProcessService:
    """What `Supervisor.start` takes to run a function."""

    spec: ServiceSpec
    launcher: Launcher

    @property
    def service_id(self) -> str:
        """What `Supervisor.stop` and `instances` know it by."""
        return self.spec.service_id


def in_process(function: ServiceFunction, *, name: str | None = None, **config: Any) -> InProcessService:
    """The function as a service; `config`: fields of `ServiceConfig`. Arguments: `functools.partial`."""
    plain = inspect.unwrap(getattr(function, "func", function))
    known_as = name or str(getattr(plain, "__name__", "service"))
    origin = f"{getattr(plain, '__module__', '?')}:{getattr(plain, '__qualname__', known_as)}"
    spec = ServiceSpec(known_as, ServiceConfig(agent_factory_path=origin, **config))
    return InProcessService(spec, InProcessLauncher(function))


class NoProcesses:
    """The launcher of a supervisor without `log_dir`: it starts no processes."""

    async def run(self) -> None:
        await trio.sleep_forever()

    def slot(self, spec: ServiceSpec, instance_id: str, position: int) -> Slot:
        raise InvalidRequest(
            f"service {spec.name} is a process, and its output needs a directory: Supervisor(log_dir=...)"
        )

    def end_lease(self, instance_id: str) -> None:
        """A function has no port."""

    def stranger(self, record: InstanceRecord) -> None:
        """None: a function does not outlive its program."""

    async def sweep(self, keep: frozenset[str]) -> int:
        return 0

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

    def open_log(self, spec: ServiceSpec, position: int) -> NoReturn:
        raise WrongState("this supervisor has no logs: it was made without log_dir")

    def move_logs(self, old: str, new: str) -> None:
        pass

    def node_name(self, node_id: str) -> str:
        return ""


class InProcessLauncher(NoProcesses):
    def __init__(self, function: ServiceFunction) -> None:
        self._function = function
        self._starts = trio.Semaphore(MAX_CONCURRENT_STARTS)

    def slot(self, spec: ServiceSpec, instance_id: str, position: int) -> Slot:
        return _Slot(self._function, self._starts, spec, instance_id, position)


class _Slot:
    def __init__(
        self,
        function: ServiceFunction,
        starts: trio.Semaphore,
        spec: ServiceSpec,
        instance_id: str,
        position: int,
    ) -> None:
        self._function, self._starts = function, starts
        self._make_record: Callable[[], InstanceRecord] = lambda: InstanceRecord(
            instance_id=instance_id,
            service_id=spec.service_id,
            slot=position,
            pid=os.getpid(),
            process_start=0,
            boot_id=procfs.boot_id(),
            token="",
            host="",
            port=0,
            spec_version=spec.version,
            started_at=utc_now(),
        )

    async def place(self, waits: Callable[[str], None]) -> trio.Semaphore:
        await trio.lowlevel.checkpoint()
        return self._starts

    def gains_by_end_of(self, instance_id: str) -> bool:
        return False

    async def launch(self, gpus: GpuIds = None) -> _Task:
        return _Task(self._function, self._make_record())

    def adopt(self, record: InstanceRecord) -> None:
        """None: a function does not outlive its program."""

    def close(self, *, lease: bool = False, leave: bool = False) -> None:
        pass


class _Task:
    """The `Child` that is a task. It runs in `wait_exit`, and so in the nursery of its `InstanceTask`."""

    unenforced = ()
    completes = True
    said = None
    silent = ""
    serves = False

    def __init__(self, function: ServiceFunction, record: InstanceRecord) -> None:
        self.record = record
        self._function = function
        self._ready = trio.Event()
        self._exit = Exit()
        self._last_words = ""

    async def wait_heard(self) -> None:
        await trio.lowlevel.checkpoint()

    async def wait_ready(self) -> None:
        await self._ready.wait()

    async def wait_serving(self) -> None:
        await trio.sleep_forever()  # it has no port of its own

    async def unready(self) -> str:
        return "it has not called task_status.started()"

    async def wait_exit(self) -> Exit:
        outcome = await contain(self._run)
        if isinstance(outcome, Failure):  # any exception: as a process it could fail in any way
            self._last_words = traceback_of(next(leaves(outcome.error)))
            self._exit = Exit(code=1)
        else:
            self._exit = Exit(code=0)
        return self._exit

    async def _run(self) -> None:
        if "task_status" in inspect.signature(self._function).parameters:
            await self._function(task_status=_Ready(self._ready))
        else:
            self._ready.set()
            await self._function()

    async def probe(self, timeout_s: float, *, fresh: bool = True) -> ProbeResult:
        return ProbeResult(ok=True, latency_s=0.0)

    async def turns(self) -> Turns | None:
        return None

    async def drain(self, code: int, answered: Callable[[bool], None]) -> None:
        answered(False)

    async def is_draining(self) -> bool:
        return False

    async def change_close_code(self, code: int) -> None:
        pass

    async def end(self, grace_s: float) -> Exit:
        return self._exit  # the nursery that it ran in is closed by now

    def kill(self) -> None:
        """A task cannot be made to end sooner than its cancellation does."""

    def release(self) -> None:
        pass

    def last_words(self) -> str:
        return self._last_words

    async def last_output(self) -> str:
        await trio.lowlevel.checkpoint()
        return self._last_words

    def out_of_memory(self, exit: Exit) -> str | None:
        return None

    async def misfortune(self) -> tuple[Cause, str] | None:
        return None


class _Ready(trio.TaskStatus[None]):
    def __init__(self, event: trio.Event) -> None:
        self._event = event

    def started(self, value: None = None) -> None:
        self._event.set()
