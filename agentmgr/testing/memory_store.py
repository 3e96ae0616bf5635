"""A store that forgets, for tests of what uses one."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import TypeVar, cast

import trio
from attrs import evolve

from ..core.moves import JournalPlace
from ..core.stats import Histogram, counted
from ..errors import Conflict, StorageError
from ..models import (
    Event,
    HealthCheck,
    InstanceEnd,
    InstanceRecord,
    JobState,
    JoinSecret,
    MinuteFigures,
    NodeRecord,
    RoutingRule,
    ServiceSpec,
    ServiceTotals,
    Token,
    TokenPolicy,
)
from ..storage.minutes import KEPT_MINUTES
from ..storage.store import RULES, SERVICES, TOKENS, F, HistoryLimits, Kind, Snapshot, event_id

Thing = TypeVar("Thing", ServiceSpec, RoutingRule, Token)


class MemoryStore:
    """Behaves as `Store` says, without a file. Facts are there as soon as they are recorded, at any age.

    Set `failure` to have every write fail with that `StorageError`, as if the disk were full.
    """

    def __init__(self, *, limits: HistoryLimits | None = None) -> None:
        self.failure: StorageError | None = None
        self._limits = limits or HistoryLimits()
        self._services: dict[str, ServiceSpec] = {}
        self._rules: dict[str, RoutingRule] = {}
        self._tokens: dict[str, Token] = {}
        self._token_policy = TokenPolicy()
        self._instances: dict[str, InstanceRecord] = {}
        self._jobs: dict[str, JobState] = {}
        self._nodes: dict[str, NodeRecord] = {}
        self._journal_places: dict[tuple[str, str], JournalPlace] = {}
        self._join_secrets: dict[str, JoinSecret] = {}
        self._totals: dict[str, ServiceTotals] = {}
        self._health: dict[str, deque[HealthCheck]] = {}
        self._ends: dict[str, deque[InstanceEnd]] = {}
        self._minutes: dict[int, dict[str, MinuteFigures]] = {}
        self._events = deque[Event](maxlen=self._limits.events)
        self._last_event_id = 0
        self._dropped = 0
        self.timings: Mapping[str, Histogram] = {}  #: no caller waits for a disk here

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
            dict(self._jobs),
            tuple(self._nodes.values()),
            tuple(self._journal_places.values()),
        )

    async def add_service(self, spec: ServiceSpec) -> None:
        await self._writable()
        _add(SERVICES, self._services, spec.service_id, spec)

    async def update_service(self, spec: ServiceSpec) -> None:
        await self._writable()
        _update(SERVICES, self._services, spec.service_id, spec)

    async def delete_service(self, service_id: str) -> None:
        await self._writable()
        _delete(SERVICES, self._services, service_id)
        self._totals.pop(service_id, None)
        self._jobs.pop(service_id, None)
        self._health.pop(service_id, None)
        self._ends.pop(service_id, None)
        for figures in self._minutes.values():
            figures.pop(service_id, None)
        self._instances = {i: r for i, r in self._instances.items() if r.service_id != service_id}
        self._journal_places = {key: it for key, it in self._journal_places.items() if key[0] != service_id}

    async def add_rule(self, rule: RoutingRule) -> None:
        await self._writable()
        _add(RULES, self._rules, rule.rule_id, rule)

    async def update_rule(self, rule: RoutingRule) -> None:
        await self._writable()
        _update(RULES, self._rules, rule.rule_id, rule)

    async def delete_rule(self, rule_id: str) -> None:
        await self._writable()
        _delete(RULES, self._rules, rule_id)

    async def tokens(self) -> tuple[Token, ...]:
        return tuple(self._tokens.values())

    async def add_token(self, token: Token, policy: TokenPolicy | None = None) -> None:
        await self._writable()
        _add(TOKENS, self._tokens, token.token_id, token)
        if policy is not None:
            self._token_policy = policy

    async def delete_token(self, token_id: str) -> None:
        await self._writable()
        _delete(TOKENS, self._tokens, token_id)

    async def token_policy(self) -> TokenPolicy:
        return self._token_policy

    async def set_token_policy(self, policy: TokenPolicy) -> None:
        await self._writable()
        self._token_policy = policy

    async def put_instance(self, record: InstanceRecord) -> None:
        await self._writable()
        if record.service_id not in self._services:
            raise SERVICES.not_found(record.service_id)
        self._instances[record.instance_id] = record

    async def delete_instance(self, instance_id: str) -> None:
        await self._writable()
        self._instances.pop(instance_id, None)

    async def put_job(self, service_id: str, state: JobState) -> None:
        await self._writable()
        if service_id not in self._services:
            raise SERVICES.not_found(service_id)
        self._jobs[service_id] = state

    async def put_node(self, node: NodeRecord) -> None:
        await self._writable()
        self._nodes[node.node_id] = node

    async def delete_node(self, node_id: str) -> None:
        await self._writable()
        self._nodes.pop(node_id, None)

    async def put_journal_places(self, places: Iterable[JournalPlace]) -> None:
        await self._writable()
        known = {it.service_id for it in self._services.values()}
        self._journal_places |= {(it.service_id, it.node_id): it for it in places if it.service_id in known}

    async def join_secrets(self) -> tuple[JoinSecret, ...]:
        await trio.lowlevel.checkpoint()
        return tuple(self._join_secrets.values())

    async def put_join_secret(self, secret: JoinSecret, *, with_node: NodeRecord | None = None) -> None:
        await self._writable()
        self._join_secrets[secret.digest] = secret
        if with_node is not None:
            self._nodes[with_node.node_id] = with_node

    async def delete_join_secret(self, digest: str) -> None:
        await self._writable()
        self._join_secrets.pop(digest, None)

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
        if isinstance(fact, HealthCheck):
            self._health.setdefault(service_id, deque(maxlen=self._limits.health_checks)).append(fact)
        if isinstance(fact, InstanceEnd):
            self._ends.setdefault(service_id, deque(maxlen=self._limits.ends)).append(fact)
        totals = counted(self._totals.get(service_id, ServiceTotals()), fact)
        if totals != ServiceTotals():
            self._totals[service_id] = totals
        return fact

    async def flush(self) -> None:
        await self._writable()

    async def health_history(self, service_id: str, *, limit: int = 100) -> tuple[HealthCheck, ...]:
        await trio.lowlevel.checkpoint()
        return tuple(reversed(self._health.get(service_id, ())))[:limit]

    async def ends(self, service_id: str, *, limit: int = 50) -> tuple[InstanceEnd, ...]:
        await trio.lowlevel.checkpoint()
        return tuple(reversed(self._ends.get(service_id, ())))[:limit]

    async def add_minute(self, minute: int, figures: Mapping[str, MinuteFigures]) -> None:
        await self._writable()
        known = {service_id: one for service_id, one in figures.items() if service_id in self._services}
        self._minutes[minute] = self._minutes.get(minute, {}) | known
        for old in [one for one in self._minutes if one <= minute - KEPT_MINUTES]:
            del self._minutes[old]

    async def minutes(
        self, service_ids: Collection[str], first: int, last: int
    ) -> Mapping[str, Mapping[int, MinuteFigures]]:
        await trio.lowlevel.checkpoint()
        return {
            service_id: {
                minute: figures[service_id]
                for minute, figures in sorted(self._minutes.items())
                if first <= minute <= last and service_id in figures
            }
            for service_id in service_ids
        }

    async def events(self, *, after: int = 0, limit: int = 1000) -> tuple[Event, ...]:
        await trio.lowlevel.checkpoint()
        return tuple(event for event in self._events if event.event_id > after)[:limit]

    async def backup(self, destination: Path) -> None:
        """There is nothing to copy; only checks what `SqliteStore` checks."""
        await trio.lowlevel.checkpoint()
        if await trio.Path(destination).exists():
            raise Conflict(f"{destination} is there already: name a file that is not")

    async def _writable(self) -> None:
        await trio.lowlevel.checkpoint()
        if self.failure is not None:
            raise self.failure


def _add(kind: Kind, things: dict[str, Thing], key: str, thing: Thing) -> None:
    if key in things:
        raise kind.id_taken(key)
    _check_name(kind, things, key, thing)
    things[key] = thing


def _update(kind: Kind, things: dict[str, Thing], key: str, thing: Thing) -> None:
    if key not in things:
        raise kind.not_found(key)
    if things[key].version != thing.version - 1:
        raise kind.stale(thing, things[key].version)
    _check_name(kind, things, key, thing)
    things[key] = thing


def _delete(kind: Kind, things: dict[str, Thing], key: str) -> None:
    if things.pop(key, None) is None:
        raise kind.not_found(key)


def _check_name(kind: Kind, things: dict[str, Thing], key: str, thing: Thing) -> None:
    if any(other.name == thing.name for other_key, other in things.items() if other_key != key):
        raise kind.name_taken(thing.name)
