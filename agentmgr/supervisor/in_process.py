"""Services that are not processes but async functions of the application that embeds the supervisor.

    async def ticker(*, task_status: trio.TaskStatus[None]) -> None:
        task_status.started()
        ...

    await supervisor.start(*in_process(ticker, restart_delay=1))

Same policies, same states. Ready is `task_status.started()`; returning is exit code 0; an exception is exit
code 1, with its traceback as the last words, and reaches nobody else; a stop is a cancellation. The
function runs in the nursery of the try that launched it. A function that shields itself from cancellation
cannot be stopped: that takes a process.
"""

from __future__ import annotations

import os
import traceback
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import trio

from ..core.health import ProbeResult
from ..core.restart import Cause, Exit
from ..models import InstanceRecord, ServiceConfig, ServiceSpec, Usage, utc_now
from . import procfs


class ServiceFunction(Protocol):
    def __call__(self, *, task_status: trio.TaskStatus[None]) -> Awaitable[object]: ...


def in_process(
    function: ServiceFunction, *, name: str | None = None, **config: Any
) -> tuple[ServiceSpec, InProcessLauncher]:
    """What `Supervisor.start` takes to run the function; `config`: fields of `ServiceConfig`."""
    known_as = str(name or getattr(function, "__name__", "service"))
    origin = f"{getattr(function, '__module__', '?')}:{getattr(function, '__qualname__', known_as)}"
    spec = ServiceSpec(known_as, ServiceConfig(agent_factory_path=origin, **config))
    return spec, InProcessLauncher(function)


class InProcessLauncher:
    def __init__(self, function: ServiceFunction) -> None:
        self._function = function

    async def run(self) -> None:
        await trio.sleep_forever()

    def place(self, spec: ServiceSpec, instance_id: str, slot: int) -> _Place:
        return _Place(self._function, spec, instance_id, slot)

    async def sweep(self, keep: frozenset[str]) -> int:
        return 0

    def troubles(self) -> tuple[str, ...]:
        return ()

    def usage(self, instance_id: str) -> tuple[Usage, ...]:
        return ()


class _Place:
    def __init__(self, function: ServiceFunction, spec: ServiceSpec, instance_id: str, slot: int) -> None:
        self._function = function
        self._make_record: Callable[[], InstanceRecord] = lambda: InstanceRecord(
            instance_id=instance_id,
            service_id=spec.service_id,
            slot=slot,
            pid=os.getpid(),
            process_start=0,
            boot_id=procfs.boot_id(),
            token="",
            host="",
            port=0,
            spec_version=spec.version,
            started_at=utc_now(),
        )

    async def launch(self) -> _Task:
        return _Task(self._function, self._make_record())

    def adopt(self, record: InstanceRecord) -> None:
        """Nothing of it outlives its program."""

    def close(self) -> None:
        pass


class _Task:
    """The `Child` that is a task. It runs in `wait_exit`, and so in the nursery of whoever watches it."""

    unenforced = ()

    def __init__(self, function: ServiceFunction, record: InstanceRecord) -> None:
        self.record = record
        self._function = function
        self._ready = trio.Event()
        self._exit = Exit()
        self._last_words = ""

    async def wait_ready(self) -> None:
        await self._ready.wait()

    async def wait_exit(self) -> Exit:
        try:
            await self._function(task_status=_Ready(self._ready))
            self._exit = Exit(code=0)
        except* (Exception, SystemExit) as error:  # as a process, it may fail however it likes
            self._last_words = "".join(traceback.format_exception(error.exceptions[0])).strip()
            self._exit = Exit(code=1)
        return self._exit

    async def probe(self, timeout_s: float) -> ProbeResult:
        return ProbeResult(ok=True, latency_s=0.0)

    async def end(self, grace_s: float) -> Exit:
        return self._exit  # the nursery that it ran in is closed by now

    def release(self) -> None:
        pass

    def last_words(self) -> str:
        return self._last_words

    async def misfortune(self) -> tuple[Cause, str] | None:
        return None


class _Ready(trio.TaskStatus[None]):
    def __init__(self, event: trio.Event) -> None:
        self._event = event

    def started(self, value: None = None) -> None:
        self._event.set()
