"""Moves instances to where their launcher puts new ones, as before their node is taken away.

For each one a new instance is started at its position; when that is ready, the old one is drained and ended.
All that are named are moved at once: unlike in a restart, where they run is about to go.
"""

from __future__ import annotations

from collections.abc import Collection

import trio

from ..errors import AgentManagerError, ServiceFailedToStart
from ..models import ServiceStatus
from .instance import InstanceTask
from .service import ServiceInstances
from .tasks import InstanceTasks


async def move(
    tasks: InstanceTasks, service_id: str, instance_ids: Collection[str], left: dict[str, str]
) -> None:
    """`left` says of each one that is still there why, by its id; also when this is cancelled: then new ones
    that are not ready are ended again, and the old ones stay.

    Raises `WrongState` when the service is stopped meanwhile.
    """
    if (known := tasks.services.get(service_id)) is None:
        return
    left |= dict.fromkeys(instance_ids, "another command of its service is under way")
    async with tasks.command(known.spec) as service, trio.open_nursery() as nursery:
        for instance_id in instance_ids:
            del left[instance_id]
        for old in list(service.tasks):
            if old.view.instance_id in instance_ids and not old.finished:
                nursery.start_soon(_move, tasks, service, old, left)


async def _move(
    tasks: InstanceTasks, service: ServiceInstances, old: InstanceTask, left: dict[str, str]
) -> None:
    instance_id, position = old.view.instance_id, old.view.slot
    new: InstanceTask | None = None
    try:
        if old.serving:
            new = tasks.begin(service, service.spec, position)
            await _ready(tasks, new)
        left[instance_id] = "it drains: its turns have not ended yet"
        await service.end([old])
        if new is None:  # no client misses it meanwhile
            tasks.begin(service, service.spec, position)
        del left[instance_id]
    except AgentManagerError as error:
        left[instance_id] = error.message
        if new is not None:
            await service.end([new], force=True)
    except trio.Cancelled:
        if new is not None and not old.stopped:
            waits = new.view.error_message or "is not ready yet"
            left[instance_id] = f"the instance that is to take its place {waits}"
            new.stop(force=True)
        raise


async def _ready(tasks: InstanceTasks, new: InstanceTask) -> None:
    """Waits until it is. Raises why a start of it has failed; to wait for a node is none."""
    while True:
        try:
            await new.started()
            return
        except ServiceFailedToStart:
            if new.view.status is not ServiceStatus.STARTING or new.view.pid is not None:
                raise
        await tasks.recorder.news.park()
