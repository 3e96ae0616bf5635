"""The root of supervision: one task per instance, and the commands that an operator gives to services."""

from __future__ import annotations

import logging
import os
import random
from collections.abc import Awaitable, Callable, Collection, Iterable
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

import trio

from ..core.scaling import Turns
from ..errors import AgentManagerError, WrongState
from ..models import ForkServerState, HealthCheck, Instance, ServiceSpec, Usage
from ..process.companion import Companion
from . import adoption, logs, moving, system
from .adoption import Recorded
from .endings import Outcome
from .in_process import InProcessService, NoProcesses
from .instance import InstanceTask
from .launcher import Launcher
from .local import LocalLauncher
from .log_source import LogSource
from .preloads import PRELOAD_MAX
from .recorder import InstanceRecorder, NullRecorder, RetryingRecorder
from .service import refuse_cycles, stop_waves
from .spawn import children_get_defaults
from .tasks import InstanceTasks

log = logging.getLogger("agentmgr.supervisor")


class Supervisor:
    """Keeps services running, be they processes or async functions of this program.

        async with Supervisor() as supervisor:
            await supervisor.start(in_process(my_function))

    In an application with a nursery of its own: `await nursery.start(supervisor.run)`, and `shutdown`, or a
    cancellation, at the end. Both forms end all services, in reverse order, before they return.

    `recorder` receives all events; `NullRecorder` is a base class for one. `log_dir` is where processes write
    their output; it is required for services that are processes. It also marks them as this supervisor's: the
    next one with the same `log_dir` ends processes that a killed program has left running. `sessions_dir` is
    where the journals of durable sessions are, and `sessions_url` the Redis that has them instead; without
    both, sessions are in memory only.
    """

    def __init__(
        self,
        recorder: InstanceRecorder | None = None,
        *,
        log_dir: str | os.PathLike[str] | None = None,
        sessions_dir: str | os.PathLike[str] | None = None,
        sessions_url: str | None = None,
        health_check_interval: float = 10.0,
        fork_server: bool = True,
        preload_max: int = PRELOAD_MAX,
        launcher: Launcher | None = None,
        random: Callable[[], float] = random.random,
    ) -> None:
        self._log_dir = None if log_dir is None else Path(log_dir)
        sessions = None if sessions_dir is None else Path(sessions_dir)
        if launcher is None:
            launcher = (
                NoProcesses()
                if log_dir is None
                else LocalLauncher(
                    Path(log_dir),
                    sessions,
                    fork_server=fork_server,
                    preload_max=preload_max,
                    sessions_url=sessions_url,
                )
            )
        self._launcher = launcher
        self._tasks = InstanceTasks(
            launcher,
            RetryingRecorder(recorder or NullRecorder()),
            health_check_interval=health_check_interval,
            random=random,
        )
        self._services = self._tasks.services
        self._closed = trio.Event()
        self._companion = Companion()

    async def __aenter__(self) -> Self:
        await self._companion.begin(self.run)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await self.shutdown()
        finally:
            await self._companion.end(kind, error, trace)

    async def run(
        self,
        *,
        adopt: Recorded = (),
        completed: Iterable[ServiceSpec] = (),
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Runs until `shutdown`, or until cancelled, which is a shutdown without draining.

        `adopt`: the recorded processes of an earlier manager. Each is taken over if it still lives and is
        verifiably the same process; all others of that manager are ended. A process that was started from
        another `log_dir` is neither adopted nor ended. `completed`: jobs that have completed under an earlier
        manager; they count as `completed` until they are started or stopped. `task_status.started()` is
        called when that is done.

        Raises `ServiceGivenUp`, after a shutdown, for a service that was started with `on_give_up="raise"`;
        `ManagerError` where the system cannot supervise processes (see `system.check`).
        """
        if self._log_dir is not None:
            system.check()
        with children_get_defaults():
            async with trio.open_nursery() as outside:
                with trio.CancelScope() as scope:
                    async with trio.open_nursery() as nursery:
                        self._tasks.open(nursery)
                        nursery.start_soon(self._tasks.run_launcher)
                        await adoption.adopt(adopt, self._tasks)
                        adoption.remember(completed, self._tasks)
                        # From here on only `_wait_for_the_end` sees a cancellation, and all ends in order.
                        scope.shield = True
                        outside.start_soon(self._wait_for_the_end)
                        task_status.started()
                        await self._closed.wait()
                        nursery.cancel_scope.cancel()
                outside.cancel_scope.cancel()
        if self._tasks.failure is not None:
            raise self._tasks.failure

    async def _wait_for_the_end(self) -> None:
        """Shuts down when `run` is cancelled, or when a service is given up that must not be."""
        try:
            await self._tasks.failed.wait()
        finally:
            if not self._closed.is_set():
                with trio.CancelScope(shield=True):
                    await self.shutdown(force=True)

    # Commands

    async def start(
        self,
        service: ServiceSpec | InProcessService,
        *,
        wait: bool = True,
        on_give_up: Literal["report", "raise"] = "report",
    ) -> None:
        """Brings the service to `config.instances` instances; those that run are left alone. Of a range, as
        many run as before, and at least its lower end; `scale` changes that.

        `service`: a `ServiceSpec` for one or more processes, or a function, by `in_process`. With
        `on_give_up="raise"`, giving the service up shuts down the supervisor, and `run` (or the `async with`
        block) raises `ServiceGivenUp`. Otherwise only `instances` shows it.

        With `wait`, returns when all instances are ready; the services it starts `after` are waited for.
        Raises `ServiceFailedToStart` or `PortNotAvailable` when one does not become ready, which is tried
        again all the same, by its restart policy, and `WrongState` when the service is stopped meanwhile.
        Without, it waits for nothing: where another command is under way, or an instance is being stopped,
        it goes on when that has ended.
        """
        spec, launcher = (
            (service.spec, service.launcher)
            if isinstance(service, InProcessService)
            else (service, self._launcher)
        )
        refuse_cycles(self._services, spec)
        nursery, known = self._tasks.nursery, self._tasks.known(spec)
        begin = partial(self._start, spec, known.stops, launcher, raises=on_give_up == "raise")
        if not wait and known.is_busy:
            nursery.start_soon(self._start_later, spec, begin)
            return
        tasks = await begin()
        if wait:
            for task in tasks:
                await task.started()

    async def _start(
        self, spec: ServiceSpec, stops: int, launcher: Launcher, *, raises: bool
    ) -> list[InstanceTask]:
        async with self._tasks.command(spec, stops) as known:
            known.launcher, known.raises = launcher, raises
            await known.end([t for t in known.tasks if not t.retired and (t.finished or t.outdated(spec))])
            return known.fill(spec, known.positions(spec), self._tasks.begin)

    async def _start_later(self, spec: ServiceSpec, begin: Callable[[], Awaitable[object]]) -> None:
        try:
            await begin()
        except AgentManagerError as error:
            log.warning("service %s was not started: %s", spec.name, error)

    def scale(self, spec: ServiceSpec, count: int, surplus: Collection[str] = ()) -> tuple[int, int]:
        """Has more or fewer instances of a range run; waits for nothing. Returns how many were to run before,
        and how many are now.

        More: as far as positions are free of instances that drain, and only where one is up or coming: else
        it was stopped, or another command is about to start it. Fewer: those of `surplus` (ids) drain as long
        as their turns take; not while another command is under way. Raises `AgentManagerError`.
        """
        service = self._services.get(spec.service_id)
        if service is None or all(task.finished for task in service.tasks):
            return 0, 0
        before = service.count
        service.grow(spec, count, self._tasks.begin)
        if not service.lock.locked():
            service.shrink(surplus)
        return before, service.count

    async def stop(self, service_id: str, *, force: bool = False, wait: bool = True) -> None:
        """Ends all its instances: first their sessions, unless `force`, then their processes.

        It cancels any start or restart of the service that is not finished.
        """
        service = self._services.get(service_id)
        if service is None:
            return
        service.stops += 1
        service.command.cancel()
        service.end_leases()
        await service.end(service.tasks, force=force, wait=wait, for_good=True)

    async def put_to_sleep(self, service_id: str, why: str) -> bool:
        """Ends all its instances, because nothing uses them. The next ones get their ids and ports again.

        A start that comes meanwhile begins when they have ended; a stop wins. Returns whether it did so: not
        where another command is under way, or no instance is there.
        """
        service = self._services.get(service_id)
        if service is None or service.is_busy or not service.tasks:
            return False
        try:
            async with self._tasks.command(service.spec) as service:
                service.kept_ids = {task.view.slot: task.view.instance_id for task in service.tasks}
                await service.end(service.tasks, unused=why)
        except WrongState:  # it was stopped meanwhile, or all is
            return False
        return True

    def forget(self, service_id: str) -> None:
        """Drops a service that was stopped and will not be started again."""
        if (service := self._services.pop(service_id, None)) is not None:
            service.end_leases()
            self._launcher.forget(service_id)

    async def restart(
        self, spec: ServiceSpec, *, rolling: bool = True, force: bool = False, wait: bool = True
    ) -> None:
        """Replaces each instance by one that runs `spec`; goes on even when the caller is cancelled.

        Rolling: the new one is started first; when it is ready, the old one is drained and ended. If it does
        not become ready, the old one stays and `ServiceFailedToStart` is raised. With a fixed port, which
        only one process can have, the old one is stopped first.
        """
        outcome = Outcome()
        nursery = self._tasks.nursery
        stops = self._tasks.known(spec).stops  # those that are asked for from here on win
        nursery.start_soon(self._restart, spec, stops, rolling and spec.port is None, force, outcome, wait)
        if wait:
            await outcome.wait()

    async def _restart(
        self, spec: ServiceSpec, stops: int, rolling: bool, force: bool, outcome: Outcome, waited_for: bool
    ) -> None:
        try:
            async with self._tasks.command(spec, stops) as service:
                positions = service.positions(spec)
                service.restarting = True
                try:
                    await service.end(
                        [t for t in service.tasks if not (rolling and (t.serving or t.retired))], force=force
                    )
                finally:
                    service.restarting = False
                for old in list(service.tasks):
                    if old.view.slot in positions and not old.retired:
                        new = self._tasks.begin(service, spec, old.view.slot)
                        await service.replace(old, new, force=force)
                # Of a range more may have started meanwhile: these stay.
                positions = sorted({*positions, *service.positions(spec)})
                tasks = service.fill(spec, positions, self._tasks.begin)
            for task in tasks:
                await task.started()
            outcome.succeed()
        except AgentManagerError as error:  # raised to a caller that waits; `status` shows it too
            level = logging.INFO if waited_for else logging.WARNING
            log.log(level, "service %s was not restarted: %s", spec.name, error)
            outcome.fail(error)
        except Exception:  # as in `InstanceTask.run`: a fault of ours must not reach other services
            log.exception("internal error: the restart of service %s failed", spec.name)
        finally:
            outcome.fail(WrongState(f"the restart of service {spec.name} was interrupted"))

    async def move(self, service_id: str, instance_ids: Collection[str], left: dict[str, str]) -> None:
        """Replaces these instances by new ones, each ready before the old one is drained and ended, where the
        launcher now puts them. `left` says why, by id, of each that is still there; also when cancelled.

        Raises `WrongState` when the service is stopped meanwhile.
        """
        await moving.move(self._tasks, service_id, instance_ids, left)

    async def changed(self) -> None:
        """Returns at the next change of any instance."""
        await self._tasks.recorder.news.park()

    async def shutdown(
        self,
        *,
        leave_running: bool = False,
        leave_nodes: bool = False,
        force: bool = False,
        kill: bool = False,
    ) -> None:
        """Ends all services, or leaves them to the next manager; then `run` returns. `leave_nodes`: leaves
        what runs on other machines than this one.

        A service ends after those that depend on it; independent ones end together, the last started first.
        A second call with `force`, while the first one waits, cuts the draining short; one with `kill` also
        kills processes at once.
        """
        self._tasks.closing = True
        for service in self._services.values():
            service.stops += 1
            service.command.cancel()
        for wave in stop_waves(self._services):
            tasks = [task for service in wave for task in service.tasks]
            for task in tasks:
                if leave_running or (leave_nodes and task.view.node_id):
                    task.leave()
                else:
                    task.stop(force=force, kill=kill, for_good=True)
            for task in tasks:
                await task.over.wait()
        self._closed.set()

    async def check(self, service_id: str) -> tuple[HealthCheck, ...]:
        """Probes each of its instances now."""
        checks: list[HealthCheck] = []

        async def check(task: InstanceTask) -> None:
            if (result := await task.check()) is not None:
                checks.append(result)

        async with trio.open_nursery() as nursery:
            for task in self._tasks.of(service_id):
                nursery.start_soon(check, task)
        return tuple(checks)

    async def ask_turns(
        self, service_id: str, instance_ids: Collection[str], timeout_s: float
    ) -> dict[str, Turns | None]:
        """The turns of each of these instances, by id; None: it cannot tell. Those that do not answer in time
        are left out.
        """
        answers: dict[str, Turns | None] = {}

        async def ask(task: InstanceTask) -> None:
            with trio.move_on_after(timeout_s), suppress(OSError):
                answers[task.view.instance_id] = await task.ask_turns()

        async with trio.open_nursery() as nursery:
            for task in self._tasks.of(service_id):
                if task.serving and task.view.instance_id in instance_ids:
                    nursery.start_soon(ask, task)
        return answers

    def instances(self, service_id: str | None = None) -> tuple[Instance, ...]:
        """The present state of all instances that are not stopped; those that were given up are included."""
        return tuple(task.seen() for task in self._tasks.of(service_id))

    def spec(self, service_id: str) -> ServiceSpec:
        """What its instances are started from now. Raises `KeyError` where it has none."""
        return self._services[service_id].spec

    def is_begun(self, service_id: str) -> bool:
        """Whether an instance of it is to run, also where its task has not taken its first step yet."""
        return any(not task.finished for task in self._tasks.of(service_id))

    def restarting(self) -> frozenset[str]:
        """The ids of the services whose instances, where they are being stopped, are followed by others."""
        return frozenset(service_id for service_id, service in self._services.items() if service.restarting)

    def tokens(self) -> dict[str, str]:
        """The token of each hosted agent's latest process, by instance id: a secret, for the gateway only."""
        return {task.view.instance_id: task.token for task in self._tasks.of(None) if task.token}

    def digests(self, service_id: str) -> tuple[str, ...]:
        """Of the agent file and env file that each of its instances was launched with: a secret."""
        return tuple(task.digest for task in self._tasks.of(service_id))

    async def drain_terms(self, instance_id: str, timeout_s: float) -> tuple[float | None, float]:
        """While it drains: the seconds of silence after which to end a session (None: its host ends them),
        and the seconds for all of them, `timeout_s` at most.
        """
        if (task := self._tasks.find(instance_id)) is None:
            return None, timeout_s
        idle_s, limit_s = await task.drain.terms()
        return idle_s, min(timeout_s, limit_s)

    async def quiet_s(self, service_id: str) -> float:
        """For how long all its hosts say that they have had no connection and no turn; asks them now.

        0: one has, or could not be asked. `math.inf` for a command.
        """
        quiet: list[float] = []

        async def ask(task: InstanceTask) -> None:
            quiet.append(await task.quiet_now_s())

        async with trio.open_nursery() as nursery:
            for task in self._tasks.of(service_id):
                if not task.finished:
                    nursery.start_soon(ask, task)
        return min(quiet, default=0.0)

    def kept_ids(self) -> dict[str, str]:
        """Of each service that was put to sleep: the id that its first instance had, and will have again."""
        return {
            service_id: service.kept_ids[min(service.kept_ids)]
            for service_id, service in self._services.items()
            if service.kept_ids
        }

    def troubles(self) -> tuple[str, ...]:
        """Faults that last now and end by themselves; services keep running."""
        unwritten = sum(task.entry.fails for task in self._tasks.of(None))
        what = "1 instance" if unwritten == 1 else f"{unwritten} instances"
        records = (f"{what} could not be written down",) if unwritten else ()
        return records + self._launcher.troubles()

    def fork_servers(self) -> tuple[ForkServerState, ...]:
        """The processes that fork hosted agents."""
        return self._launcher.fork_servers()

    def preloaded(self, service_id: str) -> str | None:
        """What the next start of an agent finds imported, or why nothing."""
        return self._launcher.preloaded(service_id)

    def usage(self, instance_id: str) -> tuple[Usage, ...]:
        """Its resource use over the last hour: a sample every 10 s, oldest first."""
        return self._launcher.usage(instance_id)

    def sessions(self, service_id: str | None = None) -> dict[str, int]:
        """How many conversations are in the memory of each hosted agent, by instance id, as its last check
        has shown.
        """
        tasks = self._tasks.of(service_id)
        return {task.view.instance_id: task.sessions for task in tasks if task.sessions is not None}

    def log_path(self, name: str, slot: int = 0) -> Path:
        """The file that this instance of the service writes its output to."""
        if self._log_dir is None:
            raise WrongState("this supervisor has no logs: it was made without log_dir")
        return logs.path(self._log_dir, name, slot)

    def open_log(self, spec: ServiceSpec, position: int = 0) -> LogSource:
        """What the instances at that position wrote, wherever they run. Raises `AgentManagerError`."""
        return self._launcher.open_log(spec, position)

    def move_logs(self, old: str, new: str) -> None:
        """Lets a service that is called `new` from now on keep its logs."""
        self._launcher.move_logs(old, new)
