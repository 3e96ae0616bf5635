"""What an operator asks of services: written down in the registry, done by the supervisor, announced."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import trio

from ..errors import Conflict, StorageError
from ..models import DesiredStatus, Event, Service, ServiceSpec
from .control_plane import ControlPlane


async def register(plane: ControlPlane, spec: ServiceSpec) -> Service:
    await plane.registry.add_service(spec)
    _announce(plane, "service.registered", spec, name=spec.name)
    plane.publisher.changed()
    return plane.view(spec)


async def change(
    plane: ControlPlane, ref: str, changes: Mapping[str, Any], *, expected_version: int | None = None
) -> Service:
    before = plane.registry.service(ref)
    spec = await plane.registry.change_service(ref, changes, expected_version=expected_version)
    if spec.name != before.name:
        plane.supervisor.move_logs(before.name, spec.name)
    _announce(plane, "service.changed", spec, fields=",".join(sorted(changes)))
    plane.publisher.changed()
    plane.scheduler.look_again()
    plane.reloads.look_again()
    plane.on_demand.look_again(spec)
    plane.scaler.load_changed(spec.service_id)
    unscheduled = before.config.schedule is not None and spec.config.schedule is None
    if unscheduled:
        plane.scheduler.stop(spec.service_id)
    always = before.config.on_demand and not spec.config.on_demand
    if unscheduled or always or spec.config.instances != before.config.instances:
        await _fill(plane, spec, wait=False)
    return plane.view(spec)


async def scale(plane: ControlPlane, ref: str, instances: int | str, *, wait: bool) -> Service:
    spec = await plane.registry.change_service(ref, {"instances": instances})
    _announce(plane, "service.changed", spec, fields="instances")
    plane.on_demand.look_again(spec)
    plane.scaler.load_changed(spec.service_id)
    await _fill(plane, spec, wait=wait)
    return plane.view(spec)


async def _fill(plane: ControlPlane, spec: ServiceSpec, *, wait: bool) -> None:
    if (
        plane.supervises
        and spec.desired_status is DesiredStatus.RUNNING
        and spec.config.schedule is None
        and not plane.on_demand.is_asleep(spec)
    ):
        spec = await plane.on_demand.wake_needed(spec)
        await plane.supervisor.start(spec, wait=wait)


async def unregister(plane: ControlPlane, ref: str, *, force: bool) -> Service:
    registered = plane.registry.service(ref)
    last = plane.view(registered)
    if not force:
        refuse_to_erase(last.name, *await plane.sessions.kept(registered))
    # Shielded: a client that goes away stops waiting for the work, it does not leave it half done.
    with trio.CancelScope(shield=True):
        async with plane.registry.leaving(ref) as spec:
            plane.scheduler.stop(spec.service_id)
            await plane.supervisor.stop(spec.service_id, force=force)
            await plane.sessions.remove(spec)
    plane.supervisor.forget(spec.service_id)
    plane.recorder.forget(spec.service_id)
    plane.jobs.forget(spec.service_id)
    plane.reloads.loaded(spec.service_id)
    _announce(plane, "service.unregistered", spec, name=spec.name)
    plane.publisher.changed()
    return last


def refuse_to_erase(name: str, sessions: int, not_in_backup: int, unread: Sequence[str]) -> None:
    """Raises `Conflict` where a service has sessions, or may have, as `StoredSessions.kept` says."""
    does_it = f"`agentmgr unregister --force {name}` does it (over REST, force=true)"
    if sessions:
        saves = (
            "`agentmgr sessions export`"
            if not_in_backup
            else "`agentmgr backup` and `agentmgr sessions export`"
        )
        raise Conflict(
            f"{'1 session' if sessions == 1 else f'{sessions} sessions'} of {name!r} would be erased: "
            f"{does_it}; {saves} {'saves' if not_in_backup else 'save'} them before"
        )
    if unread:
        raise Conflict(
            f"sessions of {name!r} may be kept where none can be read now ({', '.join(unread)}), and "
            f"would be erased there: {does_it}"
        )


# Between the end of `want` and the supervisor's taking of the command there is no checkpoint, so commands
# reach the supervisor in the order in which the wishes were written down. `wake_needed` has some, and looks
# afterwards whether a stop came.


async def start(plane: ControlPlane, ref: str, *, wait: bool) -> Service:
    spec = await plane.registry.want(ref, DesiredStatus.RUNNING)
    plane.reloads.loaded(spec.service_id)
    if spec.config.schedule is not None:
        plane.scheduler.look_again()
        return plane.view(spec)
    if plane.on_demand.is_asleep(spec):
        plane.publisher.changed()
        await plane.publisher.published()
        await plane.on_demand.wake_unfinished([spec])
        return plane.view(spec)
    spec = await plane.on_demand.wake_needed(spec)
    await plane.supervisor.start(spec, wait=wait)
    await plane.publisher.published()
    return plane.view(spec)


async def restart(plane: ControlPlane, ref: str, *, rolling: bool, force: bool, wait: bool) -> Service:
    if plane.registry.service(ref).config.schedule is not None:  # it begins anew, and so does its schedule
        await stop(plane, ref, force=force, wait=True)
        return await start(plane, ref, wait=wait)
    spec = await plane.registry.want(ref, DesiredStatus.RUNNING)
    plane.reloads.loaded(spec.service_id)
    if plane.on_demand.is_asleep(spec):  # the next start is one from the present registration
        return await start(plane, ref, wait=wait)
    spec = await plane.on_demand.wake_needed(spec)
    await plane.supervisor.restart(spec, rolling=rolling, force=force, wait=wait)
    await plane.publisher.published()
    return plane.view(spec)


async def stop(plane: ControlPlane, ref: str, *, force: bool, wait: bool) -> Service:
    unwritten: StorageError | None = None
    try:
        spec = await plane.registry.want(ref, DesiredStatus.STOPPED)
    except StorageError as error:  # a full disk must not prevent stopping the service that filled it
        spec, unwritten = plane.registry.service(ref), error
    plane.scheduler.stop(spec.service_id)
    plane.reloads.loaded(spec.service_id)
    plane.publisher.changed()  # one that is asleep has no instance whose end would say so
    await plane.supervisor.stop(spec.service_id, force=force, wait=wait)
    if unwritten is not None:
        raise StorageError(
            f"service {spec.name!r} was stopped, and the next manager will start it again, because that "
            f"could not be written down: {unwritten.message}"
        )
    return plane.view(spec)


async def run_now(plane: ControlPlane, ref: str) -> Service:
    spec = plane.registry.service(ref)
    plane.scheduler.run_now(spec)
    await plane.jobs.written()
    return plane.view(spec)


def _announce(plane: ControlPlane, kind: str, spec: ServiceSpec, **detail: str) -> None:
    plane.events.announce(Event(kind, service_id=spec.service_id, detail=detail))
