"""What is registered: services and routing rules, in memory and in the store, never apart."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from types import MappingProxyType
from typing import Any

import trio
from attrs import evolve

from ..codec import from_plain, to_plain
from ..core import conditions, dependencies, lookup
from ..core.bodies import OWN_FIELDS, NewRule, NewService, rule_fields, service_fields
from ..core.secrets import restored, restored_hook
from ..errors import FieldProblem, InvalidRequest, NameTaken, PortNotAvailable, VersionMismatch, WrongState
from ..models import CheckKind, DesiredStatus, RoutingRule, ServiceSpec
from ..models.fields import is_url
from ..process.command import misread
from ..process.watching import require_watchfiles
from ..process.zones import zone
from ..storage.store import Store
from ..supervisor.accounts import unusable
from .factory_path import settled

_PATH_FIELDS = frozenset({"agent_factory_path", "cwd"})


class Registry:
    """Makes all changes of services and rules. Each is durable before it is visible here."""

    def __init__(
        self,
        store: Store,
        services: Iterable[ServiceSpec],
        rules: Iterable[RoutingRule],
        *,
        check_fields: Callable[[ServiceSpec], None] | None = None,
    ) -> None:
        """`check_fields` raises `InvalidRequest` for what the manager cannot do."""
        self._store = store
        self._services = {spec.service_id: spec for spec in services}
        self._leaving: set[str] = set()  # ids of services that are being unregistered
        self._rules = {rule.rule_id: rule for rule in rules}
        self._check_fields = check_fields
        # A change reads, decides and writes; two of them must not interleave.
        self._changing = trio.Lock()

    # Services

    def services(self) -> tuple[ServiceSpec, ...]:
        """All, by name."""
        return tuple(sorted(self._services.values(), key=lambda spec: spec.name))

    @property
    def by_id(self) -> Mapping[str, ServiceSpec]:
        return MappingProxyType(self._services)

    def service(self, ref: str) -> ServiceSpec:
        """The one with this id or name; raises `ServiceNotFound`."""
        return self._services.get(ref) or lookup.service(self._services.values(), ref)

    async def add_service(self, spec: ServiceSpec) -> ServiceSpec:
        """Raises `NameTaken`, `PortNotAvailable`."""
        async with self._changing:
            self.check_service(spec)
            await self._store.add_service(spec)
            self._services[spec.service_id] = spec
        return spec

    async def change_service(
        self, ref: str, changes: Mapping[str, Any], *, expected_version: int | None = None
    ) -> ServiceSpec:
        """Change fields of the registration and of its configuration, named flat.

        Raises `InvalidRequest`, `ServiceNotFound`, `AgentFileNotFound`, `VersionMismatch`, `NameTaken`,
        `PortNotAvailable`.
        """
        async with self._changing:
            spec = self.service(ref)
            asked = from_plain(service_fields(spec) | to_plain(dict(changes)), NewService)
            _check_version(spec.name, spec.version, expected_version)  # a request that is wrong is so first
            config = evolve(
                asked.config,
                env=restored(asked.env, spec.config.env),
                on_failure=restored_hook(asked.on_failure, spec.config.on_failure),
            )
            if changes.keys() & _PATH_FIELDS:  # else an agent file that is gone would forbid a new tag
                config = settled(config)
            changed = spec.changed(config=config, **{name: getattr(asked, name) for name in OWN_FIELDS})
            if evolve(changed, version=spec.version, updated_at=spec.updated_at) == spec:
                return spec  # as it was: no new version, and so no restart
            self.check_service(changed)
            return await self._replace(changed)

    async def want(self, ref: str, desired: DesiredStatus) -> ServiceSpec:
        """Remember what the user wants of the service, for this manager and the next.

        Raises `ServiceNotFound`, `WrongState` while it is being unregistered.
        """
        async with self._changing:
            spec = self.service(ref)
            if spec.service_id in self._leaving:
                raise WrongState(f"service {spec.name!r} is being unregistered")
            return await self._want(spec, desired)

    async def _want(self, spec: ServiceSpec, desired: DesiredStatus) -> ServiceSpec:
        if spec.desired_status is desired:
            return spec
        return await self._replace(spec.changed(desired_status=desired))

    @asynccontextmanager
    async def leaving(self, ref: str) -> AsyncIterator[ServiceSpec]:
        """Stops a service for good: it takes no commands within the block, and is gone after it.

        Raises `ServiceNotFound`, `WrongState` where it is being unregistered already.
        """
        service_id = self.service(ref).service_id
        if service_id in self._leaving:
            raise WrongState(f"service {self.service(ref).name!r} is being unregistered already")
        self._leaving.add(service_id)
        try:
            async with self._changing:
                spec = await self._want(self.service(service_id), DesiredStatus.STOPPED)
            yield spec
            async with self._changing:
                await self._store.delete_service(service_id)
                del self._services[service_id]
        finally:
            self._leaving.discard(service_id)

    async def _replace(self, spec: ServiceSpec) -> ServiceSpec:
        await self._store.update_service(spec)
        self._services[spec.service_id] = spec
        return spec

    def check_service(self, spec: ServiceSpec) -> None:
        """Whether it can be registered beside the others. Raises `NameTaken`, `PortNotAvailable`,
        `InvalidRequest`.
        """
        for other in self._services.values():
            if other.service_id == spec.service_id:
                continue
            if other.name == spec.name:
                raise NameTaken(
                    f"a service called {spec.name!r} is registered already; "
                    f"choose another name or `agentmgr unregister {spec.name}` first",
                    fields=[FieldProblem("name", "is taken by another service")],
                )
            if spec.port is not None and other.port == spec.port:
                raise PortNotAvailable(
                    f"port {spec.port} is registered to service {other.name!r}; "
                    "choose another, or leave --port out to have one chosen",
                    fields=[FieldProblem("port", f"is registered to service {other.name!r}")],
                )

        if (user := spec.config.user) is not None and (why := unusable(user)) is not None:
            raise InvalidRequest(f"user {why}", fields=[FieldProblem("user", why)])
        hook, health = spec.config.on_failure, spec.config.health_method
        for name, command in (
            ("on_failure", None if hook is None or is_url(hook) else hook),
            ("health", health.path if health.kind is CheckKind.COMMAND else None),
        ):
            if command is not None and (why := misread(command)) is not None:
                raise InvalidRequest(f"{name}: {why}", fields=[FieldProblem(name, why)])
        if self._check_fields is not None:
            self._check_fields(spec)
        if spec.config.watch:
            require_watchfiles()
        if spec.config.schedule is not None:
            zone(spec.config.timezone)
        if not spec.config.after:  # a service that waits for none closes no circle
            return
        for word in spec.config.after:
            try:
                dependencies.Dependency.parse(word)
            except ValueError:
                known = "must be a service's name, or NAME:completed"
                problem = FieldProblem("after", f"{known}, not {word!r}")
                raise InvalidRequest(f"after {problem.message}", fields=[problem]) from None
        needs = {other.name: dependencies.named(other.config.after) for other in self._services.values()}
        if found := dependencies.cycle(needs | {spec.name: dependencies.named(spec.config.after)}):
            circle = " after ".join(found)
            problem = FieldProblem("after", f"closes a circle: {circle}")
            raise InvalidRequest(f"services would wait for each other: {circle}", fields=[problem])

    # Routing rules

    def rules(self) -> tuple[RoutingRule, ...]:
        """All, in the order in which they are tried."""
        return lookup.in_order(self._rules.values())

    def rule(self, ref: str) -> RoutingRule:
        """The one with this id or name; raises `RuleNotFound`."""
        return self._rules.get(ref) or lookup.rule(self._rules.values(), ref)

    def check_rule(self, rule: RoutingRule) -> None:
        """Raises `NameTaken`, and `InvalidRequest` for a condition that could never hold."""
        if any(other.name == rule.name and other.rule_id != rule.rule_id for other in self._rules.values()):
            raise NameTaken(f"a routing rule called {rule.name!r} is there already; choose another name")
        conditions.check_rule(rule)

    async def add_rule(self, rule: RoutingRule) -> RoutingRule:
        """Raises `NameTaken`."""
        async with self._changing:
            self.check_rule(rule)
            await self._store.add_rule(rule)
            self._rules[rule.rule_id] = rule
        return rule

    async def change_rule(
        self, ref: str, changes: Mapping[str, Any], *, expected_version: int | None = None
    ) -> RoutingRule:
        """Raises `InvalidRequest`, `RuleNotFound`, `VersionMismatch`, `NameTaken`."""
        async with self._changing:
            rule = self.rule(ref)
            asked = from_plain(rule_fields(rule) | to_plain(dict(changes)), NewRule).rule
            _check_version(rule.name, rule.version, expected_version)
            changed = evolve(
                asked, rule_id=rule.rule_id, created_at=rule.created_at, version=rule.version + 1
            )
            self.check_rule(changed)
            await self._store.update_rule(changed)
            self._rules[rule.rule_id] = changed
        return changed

    async def remove_rule(self, ref: str) -> RoutingRule:
        """Raises `RuleNotFound`."""
        async with self._changing:
            rule = self.rule(ref)
            await self._store.delete_rule(rule.rule_id)
            del self._rules[rule.rule_id]
        return rule


def _check_version(name: str, current: int, expected: int | None) -> None:
    if expected is not None and expected != current:
        raise VersionMismatch(
            f"{name!r} was changed in between: it is at version {current}, not {expected}; read it again"
        )
