"""The root of supervision: one task per instance, and the commands that an operator gives to services."""

from __future__ import annotations

import logging
import os
import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

import trio

from ..companion import Companion
from ..errors import AgentManagerError, ServiceGivenUp, WrongState
from ..models import (
    DesiredStatus,
    HealthCheck,
    Instance,
    InstanceRecord,
    ServiceSpec,
    ServiceStatus,
    Usage,
    new_id,
)
from . import logs, system
from .in_process import InProcessService, NoProcesses
from .instance import Life, Surroundings
from .journal import Journal, Owner, Unrecorded
from .launcher import Child, Launcher, Place
from .local import LocalLauncher
from .outcome import Outcome
from .service import Service, missing, refuse_cycles, stop_waves
from .signals import children_get_defaults

log = logging.getLogger("agentmgr.supervisor")

MAX_CONCURRENT_PROBES = 64
MAX_CONCURRENT_STARTS = 16


class Supervisor:
    """Keeps services running, be they processes or async functions of this program.

        async with Supervisor() as supervisor:
            await supervisor.start(in_process(my_function))

    In an application with a nursery of its own: `await nursery.start(supervisor.run)`, and `shutdown`, or a
    cancellation, at the end. Both forms end all services, in reverse order, before they return.

    `journal` receives all events; `Unrecorded` is a base class for one. `log_dir` is where processes write
    their output; it is required for services that are processes. It also marks them as this supervisor's: the
    next one with the same `log_dir` ends processes that a killed program has left running.
    """

    def __init__(
        self,
        journal: Journal | None = None,
        *,
        log_dir: str | os.PathLike[str] | None = None,
        health_check_interval: float = 10.0,
        launcher: Launcher | None = None,
        random: Callable[[], float] = random.random,
    ) -> None:
        self._log_dir = None if log_dir is None else Path(log_dir)
        self._launcher = launcher or (NoProcesses() if log_dir is None else LocalLauncher(Path(log_dir)))
        self._services: dict[str, Service] = {}  # in the order of their starts
        self._around = Surroundings(
            owner=Owner(journal or Unrecorded()),
            missing=lambda spec: missing(self._services, spec),
            health_check_interval=health_check_interval,
            random=random,
            probes=trio.CapacityLimiter(MAX_CONCURRENT_PROBES),
            starts=trio.Semaphore(MAX_CONCURRENT_STARTS),
        )
        self._nursery: trio.Nursery | None = None
        self._closing = False
        self._closed = trio.Event()
        self._companion = Companion()
        self._failure: ServiceGivenUp | None = None
        self._failed = trio.Event()

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
        adopt: Sequence[tuple[ServiceSpec, Sequence[InstanceRecord]]] = (),
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Runs until `shutdown`, or until cancelled, which is a shutdown without draining.

        `adopt`: the recorded processes of an earlier manager. Each is taken over if it still lives and is
        verifiably the same process; all others of that manager are ended. One that was started from another
        `log_dir` is left alone. Started when that is done.

        Raises `ServiceGivenUp`, after a shutdown, for a service that was started with `on_give_up="raise"`;
        `ManagerError` where the system lacks what looking after processes needs.
        """
        if self._log_dir is not None:
            system.check()
        with children_get_defaults():
            async with trio.open_nursery() as outside:
                with trio.CancelScope() as scope:
                    async with trio.open_nursery() as nursery:
                        self._nursery = nursery
                        nursery.start_soon(self._look_after)
                        await self._adopt(adopt)
                        # From here on a cancellation goes no further than `_wait_for_the_end`, and what runs
                        # ends in order.
                        scope.shield = True
                        outside.start_soon(self._wait_for_the_end)
                        task_status.started()
                        await self._closed.wait()
                        nursery.cancel_scope.cancel()
                outside.cancel_scope.cancel()
        if self._failure is not None:
            raise self._failure

    async def _wait_for_the_end(self) -> None:
        """By cancellation, or by the failure of a service that must not fail."""
        try:
            await self._failed.wait()
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
        """Brings the service to `config.instances` instances; those that run are left alone.

        `service`: a `ServiceSpec` for one or more processes, or a function, by `in_process`. With
        `on_give_up="raise"`, giving the service up shuts down the supervisor, and `run` (or the `async with`
        block) raises `ServiceGivenUp`. Otherwise only `instances` shows it.

        With `wait`, returns when all instances are ready; the services it starts `after` are waited for.
        Raises `ServiceFailedToStart` or `PortNotAvailable` when one does not become ready, which is tried
        again all the same, by its restart policy, and `WrongState` when the service is stopped meanwhile.
        """
        spec, launcher = (
            (service.spec, service.launcher)
            if isinstance(service, InProcessService)
            else (service, self._launcher)
        )
        refuse_cycles(self._services, spec)
        async with self._command(spec) as known:
            known.launcher, known.raises = launcher, on_give_up == "raise"
            await known.end([life for life in known.lives if life.finished or life.outdated(spec)])
            lives = known.fill(spec, self._begin)
        if wait:
            for life in lives:
                await life.started()

    async def stop(self, service_id: str, *, force: bool = False, wait: bool = True) -> None:
        """Ends all its instances: sessions first (unless by `force`), then the processes.

        It wins over any pending start or restart of the service.
        """
        service = self._services.get(service_id)
        if service is None:
            return
        service.stops += 1
        service.command.cancel()
        await service.end(service.lives, force=force, wait=wait, for_good=True)

    def forget(self, service_id: str) -> None:
        """A service that was stopped will not be started again."""
        self._services.pop(service_id, None)

    async def restart(
        self, spec: ServiceSpec, *, rolling: bool = True, force: bool = False, wait: bool = True
    ) -> None:
        """Replaces each instance by one that runs `spec`; goes on even when the caller is cancelled.

        Rolling: the new one is started first; when it is ready, the old one is drained and ended. If it does
        not become ready, the old one stays and `ServiceFailedToStart` is raised. With a fixed port, which
        only one process can have, the old one is stopped first.
        """
        outcome = Outcome()
        nursery = self._open_nursery()
        stops = self._known(spec).stops  # those that are asked for from here on win
        nursery.start_soon(self._restart, spec, stops, rolling and spec.port is None, force, outcome)
        if wait:
            await outcome.wait()

    async def _restart(
        self, spec: ServiceSpec, stops: int, rolling: bool, force: bool, outcome: Outcome
    ) -> None:
        try:
            async with self._command(spec, stops) as service:
                await service.end(
                    [life for life in service.lives if not (rolling and life.serving)], force=force
                )
                for old in list(service.lives):
                    if old.view.slot < spec.config.instances:
                        new = self._begin(service, spec, old.view.slot)
                        await service.replace(old, new, force=force)
                lives = service.fill(spec, self._begin)
            for life in lives:
                await life.started()
            outcome.succeed()
        except AgentManagerError as error:  # whoever waits is told, and `status` shows it
            log.warning("restart of %s: %s", spec.name, error)
            outcome.fail(error)
        except Exception:  # a wall, as around each instance: our own mistake must not reach a sibling
            log.exception("restart of %s failed", spec.name)
        finally:
            outcome.fail(WrongState(f"the restart of {spec.name} did not come to its end"))

    async def shutdown(self, *, leave_running: bool = False, force: bool = False, kill: bool = False) -> None:
        """Ends all services, or leaves them to the next manager; then `run` returns.

        A service ends after those that depend on it; independent ones end together, the last started first.
        A second call with `force`, while the first one waits, cuts the draining short; one with `kill` also
        kills processes at once.
        """
        self._closing = True
        for service in self._services.values():
            service.stops += 1
            service.command.cancel()
        for wave in stop_waves(self._services):
            lives = [life for service in wave for life in service.lives]
            for life in lives:
                if leave_running:
                    life.leave()
                else:
                    life.stop(force=force, kill=kill, for_good=True)
            for life in lives:
                await life.over.wait()
        self._closed.set()

    async def check(self, service_id: str) -> tuple[HealthCheck, ...]:
        """Probes each of its instances now."""
        checks: list[HealthCheck] = []

        async def check(life: Life) -> None:
            if (result := await life.check()) is not None:
                checks.append(result)

        async with trio.open_nursery() as nursery:
            for life in self._lives(service_id):
                nursery.start_soon(check, life)
        return tuple(checks)

    def instances(self, service_id: str | None = None) -> tuple[Instance, ...]:
        """The present state of all instances but stopped ones; those that were given up are included."""
        return tuple(life.seen() for life in self._lives(service_id))

    def tokens(self) -> dict[str, str]:
        """The token of each hosted agent's latest process, by instance id. For the gateway; never shown."""
        return {life.view.instance_id: life.token for life in self._lives(None) if life.token}

    async def drain_idle_s(self, instance_id: str) -> float | None:
        """While it drains: the seconds of silence that make a session idle; None: the instance ends them."""
        for life in self._lives(None):
            if life.view.instance_id == instance_id:
                return await life.drain_idle_s()
        return None

    def troubles(self) -> tuple[str, ...]:
        """Faults that are going on and recover by themselves; services keep running."""
        unwritten = sum(life.entry.fails for life in self._lives(None))
        what = "1 instance" if unwritten == 1 else f"{unwritten} instances"
        records = (f"{what} could not be written down",) if unwritten else ()
        return records + self._launcher.troubles()

    def usage(self, instance_id: str) -> tuple[Usage, ...]:
        """Its resource use over the last hour: a sample every 10 s, oldest first."""
        return self._launcher.usage(instance_id)

    def log_path(self, name: str, slot: int = 0) -> Path:
        """The file that this instance of the service writes its output to."""
        if self._log_dir is None:
            raise WrongState("this supervisor has no log_dir, and so no logs")
        return logs.path(self._log_dir, name, slot)

    def move_logs(self, old: str, new: str) -> None:
        """Lets a service that is called `new` from now on keep its logs."""
        if self._log_dir is not None:
            try:
                logs.move(self._log_dir, old, new)
            except OSError as error:  # no reason to keep the old name
                log.warning("the logs of %s stay under its old name %s: %s", new, old, error)

    # How they are carried out

    @asynccontextmanager
    async def _command(self, spec: ServiceSpec, stops: int | None = None) -> AsyncIterator[Service]:
        """The service's turn for one command; raises `WrongState` when a stop has come in between.

        `stops`: how many there had been when the command was given; as many as now, if None.
        """
        self._open_nursery()
        service = self._known(spec)
        stops = service.stops if stops is None else stops
        async with service.turn:
            if stops == service.stops:
                with trio.CancelScope() as service.command:
                    yield service
        if stops != service.stops:
            raise WrongState(f"service {spec.name} was stopped meanwhile")

    def _known(self, spec: ServiceSpec) -> Service:
        return self._services.setdefault(spec.service_id, Service(spec, self._launcher))

    def _open_nursery(self) -> trio.Nursery:
        if self._closing or self._nursery is None:
            raise WrongState(
                "the supervisor is shutting down" if self._closing else "the supervisor does not run"
            )
        return self._nursery

    def _begin(self, service: Service, spec: ServiceSpec, slot: int) -> Life:
        instance_id = new_id("ins")
        return self._go(service, spec, instance_id, slot, service.launcher.place(spec, instance_id, slot))

    def _go(
        self, service: Service, spec: ServiceSpec, instance_id: str, slot: int, place: Place,
        adopted: Child | None = None,
    ) -> Life:  # fmt: skip
        view = Instance(instance_id, spec.service_id, slot, ServiceStatus.STOPPED, spec_version=spec.version)
        life = Life(spec, view, place, self._around, adopted)
        service.spec = spec
        service.lives.append(life)
        self._open_nursery().start_soon(self._run, service, life, name=f"{spec.name}/{slot}")
        self._open_nursery().start_soon(self._keep_entry, life)
        return life

    async def _run(self, service: Service, life: Life) -> None:
        try:
            await life.run()
        finally:
            if life.stopped and life in service.lives:
                service.lives.remove(life)
        if service.raises and life.view.status is ServiceStatus.ERROR and self._failure is None:
            self._failure = ServiceGivenUp(
                f"service {life.spec.name} was given up: {life.view.error_message}"
            )
            self._failed.set()

    async def _look_after(self) -> None:
        """What looks after logs and figures must not take the instances with it when it fails."""
        while True:
            try:
                await self._launcher.run()
            except* Exception:
                log.exception("looking after the instances failed, and begins again")
                await trio.sleep(1)

    async def _keep_entry(self, life: Life) -> None:
        """A task of its own, because a stop must not wait for a disk, nor an entry be lost by a stop."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(life.entry.keep)
            await life.over.wait()
            nursery.cancel_scope.cancel()

    async def _adopt(self, known: Sequence[tuple[ServiceSpec, Sequence[InstanceRecord]]]) -> None:
        tokens = set()
        gone = []
        for spec, records in known:
            service = self._services.setdefault(spec.service_id, Service(spec, self._launcher))
            for record in sorted(records, key=lambda record: record.started_at):
                if (whose := self._launcher.stranger(record)) is not None:
                    # The records came with a copy of the database. They stay, so that it can be looked up.
                    log.warning("service %s: this database records %s: it is left alone", spec.name, whose)
                    continue
                place = self._launcher.place(spec, record.instance_id, record.slot)
                child = place.adopt(record)
                if child is None:
                    place.close()
                    gone.append(record.instance_id)
                    continue
                tokens.add(record.token)
                older = [life for life in service.lives if life.view.slot == record.slot]
                life = self._go(service, spec, record.instance_id, record.slot, place, child)
                if spec.desired_status is DesiredStatus.STOPPED:
                    life.stop(for_good=True)
                else:
                    self._open_nursery().start_soon(self._go_on_draining, spec, life)
                for old in older:  # that manager was killed in the middle of a rolling restart
                    self._open_nursery().start_soon(self._finish_replacement, service, old, life)
        await self._launcher.sweep(frozenset(tokens))
        for instance_id in gone:
            await self._around.owner.instance_gone(instance_id)

    async def _finish_replacement(self, service: Service, old: Life, new: Life) -> None:
        try:
            await service.replace(old, new, force=False)
        except AgentManagerError as error:
            log.warning("restart of %s: %s", new.spec.name, error)

    async def _go_on_draining(self, spec: ServiceSpec, life: Life) -> None:
        """Replaces one that takes no new clients, because a manager that was killed asked it to drain."""
        try:
            await life.started()
            if not await life.is_draining():
                return
            slot = life.view.slot
            async with self._command(spec) as service:
                taken = any(other.view.slot == slot for other in service.lives if other is not life)
                if life.stopped or taken or slot >= spec.config.instances:
                    return  # whatever else the other manager was about has been gone on with
                if spec.port is None:
                    await service.replace(life, self._begin(service, spec, slot), force=False)
                else:
                    await service.end([life])
                    service.fill(spec, self._begin)
        except AgentManagerError as error:
            log.warning("restart of %s: %s", spec.name, error)

    def _lives(self, service_id: str | None) -> list[Life]:
        services = self._services.values() if service_id is None else [self._services.get(service_id)]
        return [
            life
            for service in services
            if service is not None
            for life in sorted(service.lives, key=lambda life: life.view.slot)
        ]
