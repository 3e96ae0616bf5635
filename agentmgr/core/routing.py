"""Who may take a client: from a request and a table of rules and instances to the candidates.

The table is a value. The gateway is handed a new one whenever a service, a rule or an instance's state
changes; connections that are open are not touched by that.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import StrEnum
from functools import cached_property, lru_cache
from typing import Any

from attrs import Factory, field, frozen

from ..errors import InvalidRequest, ServiceNotFound
from ..models import RoutingCondition, RoutingRule, RoutingStrategy
from .conditions import Predicate, compile_conditions
from .lookup import in_order
from .request import ClientRequest
from .strategies import Rotation
from .verdicts import RuleVerdict


class BackendState(StrEnum):
    ROUTABLE = "routable"
    COMING = "coming"  #: starting, or restarting at a known time: worth waiting for
    SUSPECT = "suspect"  #: lives and fails its checks: keeps its sessions, is worth waiting for
    DRAINING = "draining"  #: keeps its sessions and gets no new ones
    DOWN = "down"
    NO_LISTENER = "no_listener"  #: it runs and serves no connections, as a worker does
    ASLEEP = "asleep"  #: nothing of its service runs, or will in a moment: a client has it started

    @property
    def keeps_sessions(self) -> bool:
        """Whether a process is there that may hold sessions; one that is starting holds none yet."""
        return self in (BackendState.ROUTABLE, BackendState.SUSPECT, BackendState.DRAINING)

    @property
    def worth_waiting(self) -> bool:
        return self in (
            BackendState.ROUTABLE,
            BackendState.SUSPECT,
            BackendState.COMING,
            BackendState.ASLEEP,
        )


@frozen
class Backend:
    """An instance, as far as the gateway has to know it; of a service that is asleep, the one to come."""

    instance_id: str
    service_id: str
    service_name: str
    host: str
    port: int
    tags: frozenset[str] = frozenset()
    weight: int = 1
    max_sessions: int = 0  #: 0: unlimited
    idle_timeout: float = 1800.0  #: seconds without a data frame; 0: never
    max_message_bytes: int = 0  #: 0: unlimited
    state: BackendState = BackendState.ROUTABLE
    starts_within: float = 0.0
    """Seconds that a client waits for it while it is asleep or starts; 0: it does not start on demand."""
    resume_within: float = 0.0
    """Seconds in which another instance may go on with a connection that it loses; 0: none does."""
    token: str = field(default="", repr=False)
    """Of a hosted agent: by it gateway and agent know each other (`core.proof`). Never shown."""
    node_id: str = ""  #: of the machine on whose loopback it listens; "": the manager's own

    @classmethod
    def at(cls, host: str, port: int, service: str = "default", **facts: Any) -> Backend:
        """One that is not supervised, known by its address; `facts`: the other fields."""
        return cls(f"{host}:{port}", service, service, host, port, **facts)


@frozen
class Gate:
    """Where gateways of other nodes reach the instances of a node (`proxy.gate`)."""

    host: str
    port: int


@frozen
class RoutingTable:
    """All that decides where a client goes. `service_names` has those without a running instance too."""

    backends: tuple[Backend, ...] = ()
    rules: tuple[RoutingRule, ...] = ()
    service_names: frozenset[str] = frozenset()
    default_strategy: RoutingStrategy = RoutingStrategy.ROUND_ROBIN
    own_pages: frozenset[str] = frozenset()  #: origins that are let in besides those that are allowed
    http_services: frozenset[str] = frozenset()  #: names of those that answer HTTP requests too
    portless_services: frozenset[str] = frozenset()  #: names of those that need not listen, as jobs
    gates: Mapping[str, Gate] = Factory(dict)
    """By node id, "" for the manager's; none on one machine. A gate lets in gateways of these nodes only."""

    def takes_any_client(self, backend: Backend) -> bool:
        """Whether it takes clients that name no service: one that may not listen does once it is seen to."""
        name = backend.service_name
        listens = backend.state is BackendState.ROUTABLE or name not in self.portless_services
        return listens and name not in self.http_services


@frozen
class RoutingDecision:
    """What `rules test` shows for a sample request."""

    rule: str | None  #: the name of the rule that matched
    strategy: RoutingStrategy | None
    candidates: tuple[str, ...]  #: instance ids of all that the client may reach, whatever their state
    chosen: str | None  #: the instance id that a client would get now
    service: str | None  #: the name of the chosen one's service
    code: str | None  #: of the refusal, when no backend was chosen
    reason: str
    rules: tuple[RuleVerdict, ...] = ()  #: what each rule makes of the request, in their order


@frozen(slots=False)  # for cached_property
class Pool:
    """Those that may take a client, and how one of them is chosen."""

    backends: tuple[Backend, ...]
    strategy: RoutingStrategy
    rule: str | None = None  #: the name of the rule that chose them
    hash_key: str | None = None
    reason: str = ""  #: why these, for people
    home: bool = False  #: its only member holds the session that the client names: no other will do
    rotation: Rotation = Factory(Rotation)

    @cached_property
    def routable(self) -> tuple[Backend, ...]:
        return tuple(b for b in self.backends if b.state is BackendState.ROUTABLE)

    @cached_property
    def asleep(self) -> tuple[Backend, ...]:
        return tuple(b for b in self.backends if b.state is BackendState.ASLEEP)

    @cached_property
    def starts_within(self) -> float:
        """Seconds that a client waits here for one that starts on demand; 0: none is to come."""
        coming = (b for b in self.backends if b.state in (BackendState.ASLEEP, BackendState.COMING))
        return max((b.starts_within for b in coming), default=0.0)

    @cached_property
    def coming(self) -> bool:
        """Is it worth waiting until one of them can take a client?"""
        return self.home or any(b.state.worth_waiting for b in self.backends)

    @cached_property
    def by_id(self) -> Mapping[str, Backend]:
        return {b.instance_id: b for b in self.backends}

    @cached_property
    def weights(self) -> Mapping[str, float]:
        return {b.instance_id: b.weight for b in self.backends}

    def key_of(self, request: ClientRequest) -> str | None:
        """What `hash_based` goes by: the value of the rule's key, else the client's address."""
        return request.client_ip if self.hash_key is None else request.first(self.hash_key)


class Router:
    """A table made ready for use: rules compiled and in order, pools made when first needed.

    `rotations` keeps whose turn it is; it is passed from each router to the next, so that a change of the
    table does not start every rotation again.
    """

    def __init__(
        self, table: RoutingTable, *, hints: bool = True, rotations: dict[str, Rotation] | None = None
    ) -> None:
        self.table = table
        self.by_id = {backend.instance_id: backend for backend in table.backends}
        self.rotations: dict[str, Rotation] = {} if rotations is None else rotations
        self._hints = hints
        self._pools: dict[str, Pool] = {}
        self._known = table.service_names | {backend.service_name for backend in table.backends}
        self._anyone = tuple(filter(table.takes_any_client, table.backends))
        self._rules = [
            (rule, holds)
            for rule in in_order(table.rules)
            if rule.enabled and (holds := _compiled(rule.conditions)) is not None
        ]
        for rotation in self.rotations.values():
            rotation.forget_all_but(self.by_id.keys())

    def pool(self, request: ClientRequest) -> Pool:
        """The candidates for this client; there may be none. Raises `ServiceNotFound`.

        An address `/services/NAME` comes first, then the hints `?service=NAME` and `?tag=TAG`, then the
        rules, then the default strategy over all that take clients which name none.
        """
        name = self.service_named_by(request)
        if name is not None:
            where = "query" if request.address[0] is None else "path"
            return self._service(name, f"the {where} names the service")
        if self._hints and "?" in request.path and (tags := request.query.get("tag")):
            return self._tagged(tags[0])
        for rule, holds in self._rules:
            if holds(request):
                pool = self._targets(rule)
                if rule.fallback_strategy is not None and not pool.coming:
                    return self._fallback(rule, rule.fallback_strategy)
                return pool
        why = "no rule matched" if self._rules else "there are no routing rules"
        if not self.table.backends:
            why = "no service is running"
        elif not self._anyone:
            why += ", and only services that must be named are running: connect to /services/NAME"
        return self._made("default", self._anyone, self.table.default_strategy, why)

    def service_named_by(self, request: ClientRequest) -> str | None:
        """The service that the client asks for by name, in the path or as a hint; there may be none such."""
        name, _ = request.address
        if name is None and self._hints and "?" in request.path:
            name = next(iter(request.query.get("service", ())), None)
        return name

    def knows(self, service_name: str) -> bool:
        return service_name in self._known

    def home(self, backend: Backend) -> Pool:
        """For a client that names a session which `backend` holds: no rule, hint or check matters to it."""
        reason = "the client names a session that this instance holds"
        return Pool((backend,), self.table.default_strategy, reason=reason, home=True)

    def service_of(self, backend: Backend) -> Pool:
        """For a client that names a session of an instance that is not there now: its service takes it up."""
        return self._service(backend.service_name, "the client names a session of the service")

    def _service(self, name: str, why: str) -> Pool:
        if name not in self._known:
            raise ServiceNotFound(
                f"there is no service named {name!r}; `agentmgr list` shows those there are"
            )
        members = (b for b in self.table.backends if b.service_name == name)
        return self._made(f"service:{name}", members, self.table.default_strategy, f"{why} {name}")

    def _tagged(self, tag: str) -> Pool:
        strategy, why = self.table.default_strategy, f"the query asks for the tag {tag!r}"
        if not any(tag in b.tags for b in self.table.backends):
            return Pool((), strategy, reason=why)  # not remembered: clients could name any number of tags
        return self._made(f"tag:{tag}", (b for b in self.table.backends if tag in b.tags), strategy, why)

    def _targets(self, rule: RoutingRule) -> Pool:
        named = rule.target_services or rule.target_tags
        members = _members(rule, self.table.backends) if named else self._anyone
        return self._made(f"rule:{rule.rule_id}", members, rule.target_strategy, "the rule matched", rule)

    def _fallback(self, rule: RoutingRule, strategy: RoutingStrategy) -> Pool:
        why = "the rule matched, and none of its targets can take a client: its fallback applies"
        return self._made(f"fallback:{rule.rule_id}", self._anyone, strategy, why, rule)

    def _made(
        self,
        key: str,
        members: Iterable[Backend],
        strategy: RoutingStrategy,
        why: str,
        rule: RoutingRule | None = None,
    ) -> Pool:
        pool = self._pools.get(key)
        if pool is None:
            pool = self._pools[key] = Pool(
                tuple(members),
                strategy,
                rule=rule.name if rule else None,
                hash_key=rule.hash_key if rule else None,
                reason=why,
                rotation=self.rotations.setdefault(key, Rotation()),
            )
        return pool


# A table is made whenever an instance changes, and its rules are nearly always the same.
@lru_cache(maxsize=1024)
def _compiled(conditions: tuple[RoutingCondition, ...]) -> Predicate | None:
    try:
        return compile_conditions(conditions)
    except InvalidRequest:  # stored by a version that took it: one bad rule must not stop the others
        return None


def _members(rule: RoutingRule, backends: Iterable[Backend]) -> Iterable[Backend]:
    if rule.target_services:
        found = list(backends)
        for target in rule.target_services:  # in the order of the rule: `manual` goes by it
            yield from (b for b in found if target in (b.service_name, b.service_id))
    else:
        for backend in backends:
            common = rule.target_tags & backend.tags
            if common and (common == rule.target_tags or not rule.match_all_tags):
                yield backend
