"""A recorder that remembers, services made of `child.py`, and a supervisor that must leave nothing behind."""

from __future__ import annotations

import math
import os
import select
import signal
import sys
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from agentmgr.models import (
    DesiredStatus,
    HealthCheck,
    Instance,
    InstanceEnd,
    InstanceRecord,
    ServiceConfig,
    ServiceSpec,
    ServiceStatus,
)
from agentmgr.supervisor import Supervisor, procfs
from agentmgr.supervisor.cgroup import ControlGroup
from agentmgr.supervisor.instance_tokens import InstanceTokens
from tests import processes

CHILD = Path(__file__).with_name("child.py")


class MemoryRecorder:
    """What a manager would write down, and a way to wait for a status instead of sleeping."""

    def __init__(self) -> None:
        self.records: dict[str, InstanceRecord] = {}
        self.history: list[Instance] = []
        self.checks: list[HealthCheck] = []
        self.ends: list[InstanceEnd] = []
        self.drained: list[tuple[str, bool]] = []  #: the instance, and whether for good
        self.draining: Callable[[str], Any] | None = None
        self._news = trio.Condition()
        self._changed = trio.Event()

    async def instance_spawned(self, record: InstanceRecord) -> None:
        await trio.lowlevel.checkpoint()
        self.records[record.instance_id] = record

    async def instance_gone(self, instance_id: str) -> None:
        await trio.lowlevel.checkpoint()
        self.records.pop(instance_id, None)

    def instance_changed(self, instance: Instance) -> None:
        self.history.append(instance)
        self._wake()

    def instance_ended(self, end: InstanceEnd) -> None:
        self.ends.append(end)
        self._wake()

    def health_checked(self, check: HealthCheck) -> None:
        self.checks.append(check)
        self._wake()

    async def drain(self, instance_id: str, timeout_s: float, *, for_good: bool) -> None:
        self.drained.append((instance_id, for_good))
        if self.draining is not None:
            await self.draining(instance_id)

    def forget(self) -> None:
        """What it was told; not what runs."""
        self.history.clear()
        self.checks.clear()
        self.drained.clear()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    async def until(self, condition: Callable[[], bool], timeout_s: float = 60) -> None:
        with trio.move_on_after(timeout_s):
            while not condition():
                await self._changed.wait()
            return
        told = [", ".join(self.statuses(each)) for each in {view.instance_id: 0 for view in self.history}]
        pytest.fail(f"has not come true within {timeout_s:g} s; told so far: {'; '.join(told)}")

    def statuses(self, instance_id: str | None = None) -> list[ServiceStatus]:
        """Of one instance, in order, each once."""
        found: list[ServiceStatus] = []
        for view in self.history:
            if instance_id in (None, view.instance_id) and (not found or found[-1] != view.status):
                found.append(view.status)
        return found


@pytest.fixture
def recorder() -> MemoryRecorder:
    return MemoryRecorder()


@pytest.fixture
def command() -> Callable[..., ServiceSpec]:
    """Makes services of kind command."""

    def make(*options: str, name: str = "svc", port: int | None = None, **config: Any) -> ServiceSpec:
        words = (sys.executable, "-S", str(CHILD), "--host", "{host}", "--port", "{port}", *options)
        config = {"restart_delay": 0.05, "command": words, **config}
        return ServiceSpec(name, ServiceConfig(**config), port=port, desired_status=DesiredStatus.RUNNING)

    return make


@pytest.fixture
def hosted(tmp_path: Path) -> Callable[..., ServiceSpec]:
    """Makes services of kind agent file, whose interpreter runs `child.py` in place of the agent host."""

    def make(*options: str, name: str = "svc", port: int | None = None, **config: Any) -> ServiceSpec:
        interpreter = tmp_path / f"python-for-{name}"
        words = " ".join(f"'{option}'" for option in options)
        interpreter.write_text(f'#!/bin/sh\nshift 2\nexec {sys.executable} -S {CHILD} "$@" {words}\n')
        interpreter.chmod(0o755)
        config = {"restart_delay": 0.05, "agent_factory_path": "agent.py", **config}
        config["python"] = str(interpreter)
        return ServiceSpec(name, ServiceConfig(**config), port=port, desired_status=DesiredStatus.RUNNING)

    return make


Opener = Callable[..., AbstractAsyncContextManager[Supervisor]]


@pytest.fixture
def supervisor(tmp_path: Path, recorder: MemoryRecorder, descendants: Callable[[], list[int]]) -> Opener:
    """Opens a supervisor, shuts it down at the end, and sees that no process with a token of its is left."""

    @asynccontextmanager
    async def open_supervisor(leave_running: bool = False, **options: Any) -> AsyncIterator[Supervisor]:
        adopt = options.pop("adopt", ())
        fake = "launcher" in options  # whose hours take no time
        with trio.fail_after(math.inf if fake else 180):
            async with trio.open_nursery() as nursery:
                supervisor = Supervisor(recorder, log_dir=tmp_path / "logs", **options)

                async def run(task_status: trio.TaskStatus[None]) -> None:
                    await supervisor.run(adopt=adopt, task_status=task_status)

                await nursery.start(run)
                try:
                    yield supervisor
                finally:
                    shutdown = partial(supervisor.shutdown, leave_running=leave_running, force=True)
                    with trio.move_on_after(math.inf if fake else 60, shield=True) as patience:
                        await shutdown()
                    if patience.cancelled_caught:  # so that the test fails now, and tells why
                        end(descendants(), tmp_path / "logs")
                        with trio.CancelScope(shield=True):
                            await shutdown()
        assert not patience.cancelled_caught, "the supervisor did not come to its end by itself"
        if not leave_running:
            assert descendants() == []

    return open_supervisor


@pytest.fixture
def descendants(tmp_path: Path) -> Iterator[Callable[[], list[int]]]:
    """The living processes that the supervisors of this test have started, by their tokens.

    None of them outlives the test, also where it fails between two supervisors.
    """

    def find() -> list[int]:
        tokens = InstanceTokens.of(tmp_path / "logs")
        return [p.pid for p in procfs.scan() if p.token is not None and tokens.made(p.token)]

    yield find
    end(find(), tmp_path / "logs")


def end(pids: Iterable[int], logs: Path) -> None:
    """What a test has left of itself when no supervisor was there any more; its control groups too."""
    for pid in pids:
        with suppress(ProcessLookupError):
            pidfd = os.pidfd_open(pid)
            os.kill(pid, signal.SIGKILL)
            select.select([pidfd], [], [], 10)
            os.close(pidfd)
    for lifeline in logs.glob(".lifelines/*"):
        group = ControlGroup.of_instance(lifeline.name)
        group.find()
        group.remove()


@pytest.fixture
def alive() -> Callable[[int], bool]:
    return processes.alive


@pytest.fixture
def descriptors() -> Callable[[], int]:
    return lambda: len(os.listdir("/proc/self/fd"))
