"""Keeps the number of instances of each service that has a range as its load needs it.

It looks when something has happened that may change what is needed, and once a second; at those services of
which an instance runs. `core.scaling` decides, the supervisor starts and ends. That none runs, and that the
first one starts again, is not decided here.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Collection, Mapping, Sequence

import trio
from attrs import evolve

from ..core import scaling
from ..core.scaling import Load, Needs, Share, Standing, Turns
from ..errors import AgentManagerError
from ..models import DesiredStatus, Event, Instance, ServiceSpec
from ..supervisor import Supervisor
from .events import EventLog
from .registry import Registry

logger = logging.getLogger(__name__)

LOOK_S = 1.0  #: between looks, and between questions to agents for their turns
_GATHER_S = 0.05  #: clients that come together are looked at together

_UNKNOWN, _AT_REST = Turns(1), (None, Turns(0))


class Scaler:
    def __init__(
        self,
        registry: Registry,
        supervisor: Supervisor,
        events: EventLog,
        *,
        taken: Callable[[], Mapping[str, int]],
        waiting: Callable[[Collection[str]], int],
    ) -> None:
        """`taken`: connections, by instance id. `waiting`: clients that wait for a seat at one of these."""
        self._registry, self._supervisor, self._events = registry, supervisor, events
        self._taken, self._waiting = taken, waiting
        self._active: set[str] = set()  # services with a range, of which an instance may run
        self._needs: dict[str, Needs] = {}
        self._turns: dict[str, dict[str, Turns | None]] = {}  # by service and instance, as last answered
        self._problems: dict[str, str] = {}  # that were logged
        self._news = trio.Event()

    def load_changed(self, service_id: str) -> None:
        """A client of it came, or an instance or its configuration has changed."""
        spec = self._registry.by_id.get(service_id)
        if spec is not None and not spec.config.instance_range.is_fixed:
            self._active.add(service_id)
            self._news.set()

    def look_now(self) -> None:
        """Clients wait for a seat."""
        self._news.set()

    async def run(self) -> None:
        """Until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._keep_asking)
            while True:
                with trio.move_on_after(LOOK_S if self._active else math.inf):
                    await self._news.wait()
                self._news = trio.Event()
                for service_id in tuple(self._active):
                    try:
                        self._look(service_id)
                    except Exception:  # the boundary: the other services, and the manager, must go on
                        logger.exception("internal error: the load of service %s was not judged", service_id)
                await trio.sleep(_GATHER_S)

    def _look(self, service_id: str) -> None:
        spec = self._registry.by_id.get(service_id)
        instances = self._supervisor.instances(service_id)
        running = scaling.counted(instances)
        wanted = spec is not None and spec.desired_status is DesiredStatus.RUNNING
        if spec is None or not wanted or spec.config.instance_range.is_fixed or not running:
            self._active.discard(service_id)
            for known in (self._needs, self._turns, self._problems):
                known.pop(service_id, None)
            return
        now, config = trio.current_time(), spec.config
        share, load = self._load(spec, instances)
        needs = self._needs.get(service_id) or Needs.since(now, len(running))
        needs, step = scaling.decide(config.instance_range, share, load, len(running), needs, now)
        self._needs[service_id] = needs
        if step is not None:
            too_many = len(running) - step.count
            surplus = scaling.surplus(config, self._standings(running), too_many) if too_many > 0 else ()
            self._scale(spec, step.count, surplus, step.reason)

    def _scale(self, spec: ServiceSpec, count: int, surplus: Sequence[str], reason: str) -> None:
        try:
            before, after = self._supervisor.scale(spec, count, surplus)
        except AgentManagerError as error:
            if self._problems.get(spec.service_id) != error.message:
                self._problems[spec.service_id] = error.message
                logger.warning("service %s was not scaled: %s", spec.name, error)
            return
        self._problems.pop(spec.service_id, None)
        if before != after:
            logger.info("service %s: from %d to %d instances: %s", spec.name, before, after, reason)
            detail: dict[str, str | int] = {"name": spec.name, "from": before, "to": after, "reason": reason}
            self._events.announce(Event("service.scaled", service_id=spec.service_id, detail=detail))

    def _load(self, spec: ServiceSpec, instances: Sequence[Instance]) -> tuple[Share, Load]:
        share, live = scaling.share(spec.config), self._taken()
        if share.unit == "connections":
            waiting = self._waiting([i.instance_id for i in instances])
            return share, Load(sum(live.get(i.instance_id, 0) for i in instances), waiting)
        # Without a limit clients wait only until one instance serves: more would not serve them sooner. Turns
        # of an instance that drains end there, and are no load of the others.
        ids = [i.instance_id for i in scaling.counted(instances)]
        turns = self._turns.get(spec.service_id, {})
        known = [turns[name] for name in ids if name in turns]
        if None in known:  # an agent whose turns cannot be seen
            return evolve(share, unit="connections"), Load(sum(live.get(name, 0) for name in ids))
        return share, Load(sum(each.at_work for each in known if each))

    def _standings(self, running: Sequence[Instance]) -> list[Standing]:
        live, service_id = self._taken(), running[0].service_id
        turns, conversations = self._turns.get(service_id, {}), self._supervisor.sessions(service_id)
        return [
            Standing(
                instance,
                connections=live.get(instance.instance_id, 0),
                turns=turns.get(instance.instance_id),
                conversations=conversations.get(instance.instance_id),
            )
            for instance in running
        ]

    async def _keep_asking(self) -> None:
        """Asks agents for their turns, where these are what counts."""
        while True:
            await trio.sleep(LOOK_S)
            async with trio.open_nursery() as nursery:
                for service_id in self._active:
                    spec = self._registry.by_id.get(service_id)
                    if spec is not None and scaling.share(spec.config).unit == "turns":
                        nursery.start_soon(self._ask, service_id)

    async def _ask(self, service_id: str) -> None:
        live, known = self._taken(), self._turns.get(service_id, {})
        there = [instance.instance_id for instance in self._supervisor.instances(service_id)]
        # Without a client, and with no turn when it was asked last, none has begun that counts here.
        busy = [name for name in there if live.get(name) or known.get(name, _UNKNOWN) not in _AT_REST]
        if busy:
            answers = await self._supervisor.ask_turns(service_id, busy, LOOK_S)
            known |= answers  # one that does not answer has what it had
            self._turns[service_id] = {name: known[name] for name in there if name in known}
            self._news.set()
