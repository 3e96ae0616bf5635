"""A store that forgets, for tests of what uses one."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from itertools import chain
from operator import itemgetter
from pathlib import Path
from typing import cast

import trio
from attrs import evolve

from ..core.totals import counted
from ..errors import (
    Conflict,
    NameTaken,
    RuleNotFound,
    ServiceNotFound,
    StorageError,
    VersionMismatch,
)
from ..models import (
    Event,
    HealthCheck,
    InstanceRecord,
    RoutingRule,
    ServiceSpec,
    ServiceTotals,
    SessionEnd,
)
from ..storage.store import F, HistoryLimits, Snapshot, event_id


class MemoryStore:
    """Behaves as `Store` says, without a file. Facts are there as soon as they are recorded, at any age.

    Set `failure` to have every write fail with that `StorageError`, as if the disk were full.
    """

    def __init__(self, *, limits: HistoryLimits | None = None) -> None:
        self.failure: StorageError | None = None
        self._limits = limits or HistoryLimits()
        self._services: dict[str, ServiceSpec] = {}
        self._rules: dict[str, RoutingRule] = {}
        self._instances: dict[str, InstanceRecord] = {}
        self._totals: dict[str, ServiceTotals] = {}
        self._health: dict[str, deque[HealthCheck]] = {}
        self._session_ends: dict[str, deque[tuple[int, SessionEnd]]] = {}  # with a running number
        self._events = deque[Event](maxlen=self._limits.events)
        self._recorded = 0
        self._last_event_id = 0
        self._dropped = 0

    @property
    def degraded(self) -> str | None:
        return None if self.failure is None else self.failure.message

    @property
    def dropped(self) -> int:
        return self._dropped

    async def load(self) -> Snapshot:
        await trio.lowlevel.checkpoint()
        return Snapshot(
            tuple(self._services.values()),
            tuple(self._rules.values()),
            tuple(self._instances.values()),
            dict(self._totals),
        )

    async def add_service(self, spec: ServiceSpec) -> None:
        await self._writable()
        _check_name("service", spec.name, self._services.values())
        self._services[spec.service_id] = spec

    async def update_service(self, spec: ServiceSpec) -> None:
        await self._writable()
        stored = self._services.get(spec.service_id)
        if stored is None:
            raise ServiceNotFound(f"no service has the id {spec.service_id}")
        _check_version(stored, spec)
        others = (other for other in self._services.values() if other is not stored)
        _check_name("service", spec.name, others)
        self._services[spec.service_id] = spec

    async def delete_service(self, service_id: str) -> None:
        await self._writable()
        if self._services.pop(service_id, None) is None:
            raise ServiceNotFound(f"no service has the id {service_id}")
        self._totals.pop(service_id, None)
        self._health.pop(service_id, None)
        self._session_ends.pop(service_id, None)
        self._instances = {i: r for i, r in self._instances.items() if r.service_id != service_id}

    async def add_rule(self, rule: RoutingRule) -> None:
        await self._writable()
        _check_name("routing rule", rule.name, self._rules.values())
        self._rules[rule.rule_id] = rule

    async def update_rule(self, rule: RoutingRule) -> None:
        await self._writable()
        stored = self._rules.get(rule.rule_id)
        if stored is None:
            raise RuleNotFound(f"no routing rule has the id {rule.rule_id}")
        _check_version(stored, rule)
        _check_name("routing rule", rule.name, (r for r in self._rules.values() if r is not stored))
        self._rules[rule.rule_id] = rule

    async def delete_rule(self, rule_id: str) -> None:
        await self._writable()
        if self._rules.pop(rule_id, None) is None:
            raise RuleNotFound(f"no routing rule has the id {rule_id}")

    async def put_instance(self, record: InstanceRecord) -> None:
        await self._writable()
        if record.service_id not in self._services:
            raise ServiceNotFound(f"no service has the id {record.service_id}")
        self._instances[record.instance_id] = record

    async def delete_instance(self, instance_id: str) -> None:
        await self._writable()
        self._instances.pop(instance_id, None)

    def record(self, fact: F) -> F:
        if isinstance(fact, Event):
            self._last_event_id = event_id(fact, self._last_event_id)
            fact = cast(F, evolve(fact, event_id=self._last_event_id))
        if self.failure is not None:
            self._dropped += 1
            return fact
        if isinstance(fact, Event):
            self._events.append(fact)
        service_id = fact.service_id
        if service_id is None or service_id not in self._services:
            return fact
        self._recorded += 1
        match fact:
            case HealthCheck():
                checks = self._health.setdefault(service_id, deque(maxlen=self._limits.health_checks))
                checks.append(fact)
            case SessionEnd():
                ends = self._session_ends.setdefault(service_id, deque(maxlen=self._limits.session_ends))
                ends.append((self._recorded, fact))
        totals = counted(self._totals.get(service_id, ServiceTotals()), fact)
        if totals != ServiceTotals():
            self._totals[service_id] = totals
        return fact

    async def flush(self) -> None:
        await self._writable()

    async def health_history(self, service_id: str, *, limit: int = 100) -> tuple[HealthCheck, ...]:
        await trio.lowlevel.checkpoint()
        return tuple(reversed(self._health.get(service_id, ())))[:limit]

    async def events(self, *, after: int = 0, limit: int = 1000) -> tuple[Event, ...]:
        await trio.lowlevel.checkpoint()
        return tuple(event for event in self._events if event.event_id > after)[:limit]

    async def session_ends(self, service_id: str | None, *, limit: int = 100) -> tuple[SessionEnd, ...]:
        await trio.lowlevel.checkpoint()
        of_all = (ends for key, ends in self._session_ends.items() if service_id in (None, key))
        newest_first = sorted(chain.from_iterable(of_all), key=itemgetter(0), reverse=True)
        return tuple(end for _, end in newest_first[:limit])

    async def backup(self, destination: Path) -> None:
        """There is nothing to copy; only checks what `SqliteStore` checks."""
        await trio.lowlevel.checkpoint()
        if await trio.Path(destination).exists():
            raise Conflict(f"{destination} is there already: name a file that is not")

    async def _writable(self) -> None:
        await trio.lowlevel.checkpoint()
        if self.failure is not None:
            raise self.failure


def _check_name(noun: str, name: str, others: Iterable[ServiceSpec] | Iterable[RoutingRule]) -> None:
    if any(other.name == name for other in others):
        raise NameTaken(f"a {noun} named {name} is there already: choose another name")


def _check_version(stored: ServiceSpec | RoutingRule, new: ServiceSpec | RoutingRule) -> None:
    if stored.version != new.version - 1:
        raise VersionMismatch(
            f"{new.name} was changed in between (it is at version {stored.version} now): "
            "read it again and repeat the change"
        )
