"""What an operator can do with services."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import trio
from attrs import evolve

from ..core.secrets import restored
from ..core.view import matching
from ..errors import InvalidRequest, StorageError, WrongState
from ..models import (
    DesiredStatus,
    Event,
    HealthCheck,
    Service,
    ServiceConfig,
    ServiceSpec,
    ServiceStatus,
)
from .control_plane import ControlPlane
from .factory_path import settled
from .life import ManagerLife


class ServiceCommands(ManagerLife):
    """The part of `AgentManager` that registers services, steers them and looks at them."""

    async def register_service(
        self,
        name: str,
        agent_factory_path: str | None = None,
        *,
        command: Sequence[str] = (),
        description: str = "",
        tags: Iterable[str] = (),
        host: str = "localhost",
        port: int | None = None,
        config: ServiceConfig | None = None,
        auto_start: bool = False,
        wait: bool = True,
    ) -> Service:
        """Register an agent file, or any command that serves WebSockets.

        With `auto_start` it is started too; a failure to start raises `ServiceFailedToStart` and leaves it
        registered, with the status `error`.

        Raises `InvalidRequest`, `AgentFileNotFound`, `NameTaken`, `PortNotAvailable`.
        """
        plane = self._supervising() if auto_start else self._live()
        config = config or ServiceConfig()
        if agent_factory_path is not None:
            if config.agent_factory_path not in (None, agent_factory_path):
                raise InvalidRequest("agent_factory_path and config.agent_factory_path name different agents")
            config = evolve(config, agent_factory_path=agent_factory_path)
        if command:
            config = evolve(config, command=command)
        restored(config.env, {})  # a hidden value is none
        spec = ServiceSpec(
            name=name, config=settled(config), description=description, tags=tags, host=host, port=port
        )
        await plane.registry.add_service(spec)
        plane.events.announce(Event("service.registered", service_id=spec.service_id, detail={"name": name}))
        plane.changed()
        if auto_start:
            return await self.start_service(spec.service_id, wait=wait)
        return plane.view(spec)

    async def update_service(
        self, ref: str, changes: Mapping[str, Any], *, expected_version: int | None = None
    ) -> Service:
        """Change fields by name: the registration's own, or those of its `ServiceConfig`.

        Running instances keep what they were started with until they are restarted; how many there are
        follows at once.

        Raises `ServiceNotFound`, `InvalidRequest`, `VersionMismatch`, `NameTaken`, `PortNotAvailable`.
        """
        plane = self._live()
        before = plane.registry.service(ref)
        spec = await plane.registry.change_service(ref, changes, expected_version=expected_version)
        if spec.name != before.name:
            plane.supervisor.move_logs(before.name, spec.name)
        plane.events.announce(
            Event("service.changed", service_id=spec.service_id, detail={"fields": ",".join(sorted(changes))})
        )
        plane.changed()
        scaled = spec.config.instances != before.config.instances
        if self._supervise and scaled and spec.desired_status is DesiredStatus.RUNNING:
            await plane.supervisor.start(spec, wait=False)
        return plane.view(spec)

    async def unregister_service(self, ref: str, *, force: bool = False) -> Service:
        """Stop it and forget it; `force` skips the draining of its sessions. Returns what it was."""
        plane = self._live()
        spec = plane.registry.service(ref)
        last = plane.view(spec)
        if spec.service_id in self._leaving:
            raise WrongState(f"service {spec.name!r} is being unregistered already")
        self._leaving.add(spec.service_id)
        try:
            # Shielded: a client that goes away stops waiting for the work, it does not leave it half done.
            with trio.CancelScope(shield=True):
                await plane.registry.want(spec.service_id, DesiredStatus.STOPPED)
                if self._supervise:
                    await plane.supervisor.stop(spec.service_id, force=force)
                await plane.registry.remove_service(spec.service_id)
                plane.supervisor.forget(spec.service_id)
        finally:
            self._leaving.discard(spec.service_id)
        plane.forget(spec.service_id)
        plane.events.announce(
            Event("service.unregistered", service_id=spec.service_id, detail={"name": spec.name})
        )
        plane.changed()
        return last

    async def start_service(self, ref: str, *, wait: bool = True) -> Service:
        """Start it; no error when it runs already.

        With `wait` it returns when all instances are ready, and raises `ServiceFailedToStart` when one gave
        up. Without, it returns at once.
        """
        plane = self._supervising()
        spec = await self._want(plane, ref, DesiredStatus.RUNNING)
        await plane.supervisor.start(spec, wait=wait)
        await plane.published()
        return plane.view(spec)

    async def stop_service(self, ref: str, *, force: bool = False, wait: bool = True) -> Service:
        """Drain its sessions, stop it, and keep it stopped; `force` skips the draining."""
        plane = self._live()
        unwritten: StorageError | None = None
        try:
            spec = await self._want(plane, ref, DesiredStatus.STOPPED)
        except StorageError as error:  # a full disk must not prevent stopping the service that filled it
            spec, unwritten = plane.registry.service(ref), error
        if self._supervise:
            await plane.supervisor.stop(spec.service_id, force=force, wait=wait)
        if unwritten is not None:
            raise StorageError(
                f"service {spec.name!r} was stopped, and the next manager will start it again, because that "
                f"could not be written down: {unwritten.message}"
            )
        return plane.view(spec)

    async def restart_service(
        self, ref: str, *, rolling: bool = True, force: bool = False, wait: bool = True
    ) -> Service:
        """Start anew from the present registration. Rolling: the new instance is ready before the old stops.

        Raises `ServiceFailedToStart` when the new one does not become ready; the old one stays then.
        """
        plane = self._supervising()
        spec = await self._want(plane, ref, DesiredStatus.RUNNING)
        await plane.supervisor.restart(spec, rolling=rolling, force=force, wait=wait)
        await plane.published()
        return plane.view(spec)

    async def scale_service(self, ref: str, instances: int, *, wait: bool = True) -> Service:
        """Run it with so many instances from now on."""
        plane = self._live()
        spec = await plane.registry.change_service(ref, {"instances": instances})
        plane.events.announce(
            Event("service.changed", service_id=spec.service_id, detail={"fields": "instances"})
        )
        if self._supervise and spec.desired_status is DesiredStatus.RUNNING:
            await plane.supervisor.start(spec, wait=wait)
        return plane.view(spec)

    async def _want(self, plane: ControlPlane, ref: str, desired: DesiredStatus) -> ServiceSpec:
        # Between the end of this and the supervisor's taking of the command there is no checkpoint, so
        # commands reach the supervisor in the order in which the wishes were written down.
        spec = plane.registry.service(ref)
        if spec.service_id in self._leaving:
            raise WrongState(f"service {spec.name!r} is being unregistered")
        spec = await plane.registry.want(spec.service_id, desired)
        if spec.service_id in self._leaving:
            raise WrongState(f"service {spec.name!r} is being unregistered")
        return spec

    def get_service(self, ref: str) -> Service:
        """Raises `ServiceNotFound`."""
        plane = self._live()
        return plane.view(plane.registry.service(ref))

    def get_environments(self) -> dict[str, dict[str, str]]:
        """The variables of each service, by its name, with their values: not for every eye."""
        return {spec.name: dict(spec.config.env) for spec in self._live().registry.services()}

    def list_services(
        self, *, status: ServiceStatus | str | None = None, tags: Iterable[str] = (), name: str | None = None
    ) -> list[Service]:
        """All, by name; or those with this status, any of these tags, this text in their name."""
        return matching(self._live().views(), status=status, tags=tags, name=name)

    async def check_service_health(self, ref: str) -> HealthCheck:
        """Probe every instance now, and return the worst result.

        Raises `WrongState` when none is running.
        """
        plane = self._supervising()
        spec = plane.registry.service(ref)
        checks = await plane.supervisor.check(spec.service_id)
        if not checks:
            raise WrongState(f"service {spec.name!r} is not running; `agentmgr start {spec.name}` starts it")
        return min(checks, key=lambda check: check.ok)

    async def get_health_history(self, ref: str, *, limit: int = 100) -> tuple[HealthCheck, ...]:
        """Past probes, the newest first."""
        plane = self._live()
        return await plane.store.health_history(plane.registry.service(ref).service_id, limit=limit)

    def log_path(self, ref: str, slot: int = 0) -> Path:
        """The file that holds what this instance wrote; it may not exist yet."""
        plane = self._live()
        return plane.supervisor.log_path(plane.registry.service(ref).name, slot)
