"""Restarts services when files that they `watch` are saved.

A restart is a rolling one: code that does not start costs nothing, as the instances before serve on. Why it
did not start is in the service's `reload_error`, and in the event `service.reload_failed`.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path

import trio

from ..core.on_demand import is_asleep
from ..errors import AgentManagerError, WrongState, leaves
from ..models import SERVING, DesiredStatus, Event, ServiceConfig, ServiceSpec
from ..process.paths import file_of
from ..process.watching import Saves, Watched, named, require_watchfiles, watch
from ..supervisor import Supervisor
from .events import EventLog
from .hooks import Hooks
from .registry import Registry

logger = logging.getLogger(__name__)

_AGAIN_S = 10.0  #: after a failure to watch, as where the system has no watches left

AUTO = "auto"


def watched(config: ServiceConfig, paths: Sequence[str]) -> tuple[Watched, ...]:
    """What `paths`, as in `ServiceConfig.watch`, mean for this service."""
    directory, found = config.cwd or ".", list[Watched]()
    for path in paths:
        if path != AUTO:
            found.append(Watched(os.path.normpath(os.path.join(directory, path))))
        elif config.agent_factory_path is None:
            found.append(Watched(directory))
        else:
            file = file_of(config.agent_factory_path)
            found.append(Watched(directory if file is None else os.path.dirname(file), ".py"))
        if path == AUTO and config.env_file is not None:
            found.append(Watched(os.path.normpath(os.path.join(directory, config.env_file))))
    return tuple(found)


class Reloads:
    def __init__(
        self,
        registry: Registry,
        supervisor: Supervisor,
        events: EventLog,
        hooks: Hooks,
        ignored: Sequence[Path],
    ) -> None:
        self._registry, self._supervisor, self._events = registry, supervisor, events
        self._hooks, self._ignored = hooks, ignored
        self._asked: set[str] = set()
        self._errors: dict[str, str] = {}
        self._saves: dict[str, Saves] = {}  # of services whose files were saved, until they run the new code
        self._changed = trio.Event()

    def error(self, service_id: str) -> str | None:
        """Why its latest code does not run; None where it does."""
        return self._errors.get(service_id)

    def ask(self, service_id: str) -> None:
        """Watches it while this manager runs, whatever its registration says. Raises `InvalidRequest`."""
        require_watchfiles()
        self._asked.add(service_id)
        self.look_again()

    def loaded(self, service_id: str) -> None:
        """An operator has it start, and learns why it does not."""
        self._errors.pop(service_id, None)
        self.look_again()

    def look_again(self) -> None:
        """A service was changed, started, or stopped."""
        self._changed.set()
        self._changed = trio.Event()

    async def run(self) -> None:
        """Watches, and restarts, until cancelled."""
        async with trio.open_nursery() as nursery:
            while True:
                changed, places = self._changed, self._places()
                async with trio.open_nursery() as watching:
                    if places:
                        watching.start_soon(self._watch, places, nursery)
                    while self._places() == places:
                        await changed.wait()
                        changed = self._changed
                    watching.cancel_scope.cancel()

    def _places(self) -> dict[str, tuple[Watched, ...]]:
        found = {}
        for spec in self._registry.by_id.values():
            paths = spec.config.watch or ((AUTO,) if spec.service_id in self._asked else ())
            if paths and _should_run(spec):
                found[spec.service_id] = watched(spec.config, paths)
        return found

    async def _watch(self, places: dict[str, tuple[Watched, ...]], nursery: trio.Nursery) -> None:
        def saved(service_id: str, path: str) -> None:
            if service_id not in self._saves:
                self._saves[service_id] = Saves()
                nursery.start_soon(self._reload, service_id)
            self._saves[service_id].add(path)

        while True:
            unwatched: dict[str, str] = {}
            try:
                require_watchfiles()
                await watch(places, saved, self._loaded_at, ignored=self._ignored)
            except* (OSError, AgentManagerError, RuntimeError) as problems:  # the last one is watchfiles' own
                reason = f"its files are not watched: {next(leaves(problems))}"
                logger.error("files are not watched; trying again in %g s: %s", _AGAIN_S, reason)
                unwatched = dict.fromkeys(places, reason)
            self._errors |= unwatched
            await trio.sleep(_AGAIN_S)
            for service_id in unwatched:
                self._errors.pop(service_id, None)

    def _loaded_at(self, service_id: str) -> float | None:
        began = [instance.started_at for instance in self._supervisor.instances(service_id)]
        return max((at.timestamp() for at in began if at is not None), default=None)

    async def _reload(self, service_id: str) -> None:
        """Restarts it until it runs what was saved last, or that does not start."""
        saves = self._saves[service_id]
        while saves:
            files = await saves.settled()
            spec = self._registry.by_id.get(service_id)
            if spec is None or not _should_run(spec) or self._is_asleep(spec):
                break
            detail: dict[str, str | bool] = {"name": spec.name, "files": named(files)}
            try:
                await self._supervisor.restart(spec)
            except WrongState:  # it was stopped meanwhile, or all is
                break
            except AgentManagerError as error:
                self._errors[service_id] = error.message
                serving = self._serving(service_id)
                detail |= {"reason": error.message, "serving": serving}
                self._hooks.reload_failed(spec, error.message, serving=serving)
                self._events.announce(Event("service.reload_failed", service_id=service_id, detail=detail))
            else:
                self._errors.pop(service_id, None)
                self._events.announce(Event("service.reloaded", service_id=service_id, detail=detail))
        del self._saves[service_id]

    def _is_asleep(self, spec: ServiceSpec) -> bool:
        """Then its next start loads what was saved."""
        return is_asleep(spec, (one.status for one in self._supervisor.instances(spec.service_id)))

    def _serving(self, service_id: str) -> bool:
        return any(one.status in SERVING for one in self._supervisor.instances(service_id))


def _should_run(spec: ServiceSpec) -> bool:
    return spec.desired_status is DesiredStatus.RUNNING and spec.config.schedule is None
