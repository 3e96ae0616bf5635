"""What an earlier manager left: which processes are taken over, and what it had begun and not finished.

A process is adopted if it lives and is surely the recorded one. One on another node is taken to live until
that node says otherwise.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence

from attrs import Factory, define, frozen

from ..errors import AgentManagerError
from ..models import DesiredStatus, InstanceEnd, InstanceRecord, ServiceSpec, ServiceStatus, new_id, utc_now
from .instance import InstanceTask
from .launcher import Child, Launcher, Slot
from .log_source import Selection
from .logs import LAST_OUTPUT_BYTES, LAST_OUTPUT_LINES
from .service import ServiceInstances
from .tasks import InstanceTasks

log = logging.getLogger("agentmgr.supervisor")

Recorded = Iterable[tuple[ServiceSpec, Sequence[InstanceRecord]]]


@frozen
class Adopted:
    spec: ServiceSpec
    record: InstanceRecord
    slot: Slot
    child: Child


@define
class Adoption:
    adopted: list[Adopted] = Factory(list)  #: of each service, the one that was started first comes first
    gone: list[tuple[ServiceSpec, InstanceRecord]] = Factory(list)  #: whose process has ended

    @property
    def tokens(self) -> frozenset[str]:
        return frozenset(it.record.token for it in self.adopted)


def take_over(recorded: Recorded, launcher: Launcher) -> Adoption:
    """Processes that another manager started are in neither list: it is for that manager to end them."""
    found = Adoption()
    for spec, records in recorded:
        for record in sorted(records, key=lambda record: record.started_at):
            if (whose := launcher.stranger(record)) is not None:
                # The records came with a copy of the database. They stay, so that it can be looked up.
                log.warning("service %s: not adopting %s: this database is a copy", spec.name, whose)
                continue
            slot = launcher.slot(spec, record.instance_id, record.slot)
            child = slot.adopt(record)
            if child is None:
                slot.close()
                found.gone.append((spec, record))
            else:
                found.adopted.append(Adopted(spec, record, slot, child))
    return found


async def adopt(recorded: Recorded, tasks: InstanceTasks) -> None:
    """Takes over what lives, ends what else that manager has left, and reports what is gone."""
    for spec, records in recorded:
        if records:
            tasks.known(spec)
    found = take_over(recorded, tasks.launcher)
    for it in found.adopted:
        service = tasks.known(it.spec)
        older = [task for task in service.tasks if task.view.slot == it.record.slot]
        task = tasks.begin_in(it.slot, service, it.spec, it.record.instance_id, it.record.slot, it.child)
        if it.spec.desired_status is DesiredStatus.STOPPED:
            task.stop(for_good=True)
        else:
            tasks.nursery.start_soon(_replace_if_draining, tasks, it.spec, task)
        for old in older:  # that manager was killed in the middle of a rolling restart
            tasks.nursery.start_soon(_finish_replacement, service, old, task)
    await tasks.launcher.sweep(found.tokens)
    for spec, record in found.gone:
        tasks.recorder.instance_ended(
            InstanceEnd(
                service_id=spec.service_id,
                instance_id=record.instance_id,
                slot=record.slot,
                at=utc_now(),
                planned=False,
                reason="found gone: its process ended while no manager ran",
                pid=record.pid,
                output=await _last_output(tasks.launcher, spec, record.slot),
            )
        )
        await tasks.recorder.instance_gone(record.instance_id)


def remember(completed: Iterable[ServiceSpec], tasks: InstanceTasks) -> None:
    """Has these jobs count as completed."""
    for spec in completed:
        service = tasks.known(spec)
        if service.tasks:  # one of its processes lives
            continue
        for position in service.positions(spec):
            instance_id = new_id("ins")
            slot = tasks.launcher.slot(spec, instance_id, position)
            task = tasks.made(slot, spec, instance_id, position, ServiceStatus.COMPLETED)
            task.rest()
            service.tasks.append(task)


async def _last_output(launcher: Launcher, spec: ServiceSpec, position: int) -> str:
    try:
        lines, _ = await launcher.open_log(spec, position).last(
            Selection(LAST_OUTPUT_LINES), LAST_OUTPUT_BYTES
        )
    except AgentManagerError:  # there are no logs
        return ""
    return b"".join(line.data for line in lines).decode(errors="replace")


async def _finish_replacement(service: ServiceInstances, old: InstanceTask, new: InstanceTask) -> None:
    try:
        await service.replace(old, new, force=False)
    except AgentManagerError as error:
        log.warning("service %s was not restarted: %s", new.spec.name, error)


async def _replace_if_draining(tasks: InstanceTasks, spec: ServiceSpec, task: InstanceTask) -> None:
    """Replaces an adopted instance that drains, as its killed manager asked: it takes no new clients."""
    try:
        await task.started()
        if not await task.is_draining():
            return
        position = task.view.slot
        async with tasks.command(spec) as service:
            taken = any(other.view.slot == position for other in service.tasks if other is not task)
            if task.stopped or taken or position >= spec.config.instance_range.most:
                return  # it is being replaced or stopped already
            await task.promise_another()
            bounds = spec.config.instance_range
            others = [other for other in service.tasks if not other.stopped and other is not task]
            if not bounds.is_fixed and len(others) >= bounds.least_awake:
                task.retire()  # the load decides whether another one starts
                return
            if spec.port is None:
                await service.replace(task, tasks.begin(service, spec, position), force=False)
            else:
                await service.end([task])
                service.fill(spec, service.positions(spec), tasks.begin)
    except AgentManagerError as error:
        log.warning("service %s was not restarted: %s", spec.name, error)
