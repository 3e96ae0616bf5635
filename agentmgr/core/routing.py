"""Who may take a client: from a request and a table of rules and instances to the candidates.

The table is a value. The gateway is handed a new one, or how it differs from the one before
(`core.table_change`), whenever a service, a rule or an instance's state changes; connections that are open
are not touched by that.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Iterable, Mapping
from enum import StrEnum
from functools import cached_property, lru_cache, partial
from typing import TYPE_CHECKING, Any

from attrs import Factory, evolve, field, frozen

from ..errors import InvalidRequest, ServiceNotFound
from ..models import RoutingCondition, RoutingRule, RoutingStrategy
from .conditions import Predicate, compile_conditions
from .lookup import in_order
from .moves import Moved, where
from .request import ClientRequest
from .strategies import Rotation
from .verdicts import RuleVerdict

if TYPE_CHECKING:
    from .table_change import TableChange


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
    journaled: bool = False  #: its sessions are in a journal on that machine, and can go on there only

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
    nodes: frozenset[str] = frozenset()  #: ids of those that are neither lost nor forgotten
    gates: Mapping[str, Gate] = Factory(dict)
    """By node id, "" for the manager's; none on one machine. A gate lets in gateways of these nodes only. A
    lost node's is there some time longer.
    """
    moved: Mapping[str, Mapping[str, Moved]] = Factory(dict)
    """Where sessions are that were begun on a node, by service id and node id; absent: there."""

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
    moving: bool = False  #: that session is on its way to another node, where one will take the client
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
        return self.home or self.moving or any(b.state.worth_waiting for b in self.backends)

    @cached_property
    def by_id(self) -> Mapping[str, Backend]:
        return {b.instance_id: b for b in self.backends}

    @cached_property
    def weights(self) -> Mapping[str, float]:
        return {b.instance_id: b.weight for b in self.backends}

    def key_of(self, request: ClientRequest) -> str | None:
        """What `hash_based` goes by: the value of the rule's key, else the client's address."""
        return request.client_ip if self.hash_key is None else request.first(self.hash_key)


Takes = Callable[[Backend], object]  #: whether a backend is a member of a pool


class Router:
    """A table made ready for use: rules compiled and in order, pools made when first needed.

    `change` makes it that of the next table. `rotations` keeps whose turn it is; it is passed from each
    router to the next, so that a change of the table does not start every rotation again.
    """

    def __init__(
        self, table: RoutingTable, *, hints: bool = True, rotations: dict[str, Rotation] | None = None
    ) -> None:
        self._made_of = table  # in all but backends it is as this one
        self._takes_anyone = table.takes_any_client
        self._table: RoutingTable | None = table
        self.by_id = {backend.instance_id: backend for backend in table.backends}
        self._services: dict[str, dict[str, Backend]] = {}  # by name, by id; in the order of the table
        for backend in table.backends:
            self._services.setdefault(backend.service_name, {})[backend.instance_id] = backend
        self._names = list(self._services)
        self._limits: set[int] | None = None  # of messages, of all; None: not looked at since a change
        self.rotations: dict[str, Rotation] = {} if rotations is None else rotations
        self._hints = hints
        self._of_service: dict[str, Pool] = {}  # by its name
        self._pools: dict[str, tuple[Pool, Takes]] = {}  # all others
        self._rules = [
            (rule, holds)
            for rule in in_order(table.rules)
            if rule.enabled and (holds := _compiled(rule.conditions)) is not None
        ]
        for rotation in self.rotations.values():
            rotation.forget_all_but(self.by_id.keys())

    @property
    def table(self) -> RoutingTable:
        """All of it; made anew after a change, which takes its time where there are many backends."""
        if self._table is None:
            found = tuple(b for name in self._names for b in self._services[name].values())
            self._table = evolve(self._made_of, backends=found)
        return self._table

    @property
    def most_message_bytes(self) -> int | None:
        """What the one that takes the most may be sent in one message; 0: unlimited; None: there is none."""
        if self._limits is None:
            self._limits = {backend.max_message_bytes for backend in self.by_id.values()}
        return 0 if 0 in self._limits else max(self._limits, default=None)

    @property
    def own_pages(self) -> frozenset[str]:
        return self._made_of.own_pages

    @property
    def gates(self) -> Mapping[str, Gate]:
        return self._made_of.gates

    def journal_at(self, service_id: str, node_id: str, generation: int | None) -> tuple[str, bool]:
        """See `core.moves.where`."""
        of_service = self._made_of.moved.get(service_id)
        return (node_id, False) if of_service is None else where(of_service, node_id, generation)

    def journal_left_for(self, service_id: str, node_id: str) -> str | None:
        """Where the last journal went that has left that node; None: none has."""
        found = self._made_of.moved.get(service_id, {}).get(node_id)
        return found.spans[-1].at if found is not None and found.spans else None

    def has_node(self, node_id: str) -> bool:
        """Whether what is on that node may be reached, now or later: also while it has no gate, as when its
        gateway is started anew, or the manager.
        """
        return not node_id or node_id in self._made_of.nodes

    def change(self, change: TableChange) -> None:
        """Routes by the next table, as a router that is made of it, at the cost of what has changed."""
        touched: list[Backend] = []
        inserted: dict[
            str, dict[str, list[Backend]]
        ] = {}  # by service, by the id of that which is behind them
        for instance_id in change.gone:
            touched.append(backend := self.by_id.pop(instance_id))
            del self._services[backend.service_name][instance_id]
        for backend in change.backends:
            name, instance_id = backend.service_name, backend.instance_id
            if (known := self.by_id.get(instance_id)) is not None:
                touched.append(known)
            touched.append(backend)
            self.by_id[instance_id] = backend
            if name not in self._services:
                self._services[name] = {}
                insort(self._names, name)
            if (behind := change.before.get(instance_id)) is None:
                self._services[name][instance_id] = backend
            else:
                inserted.setdefault(name, {}).setdefault(behind, []).append(backend)
        for name, new in inserted.items():
            self._services[name] = {
                each.instance_id: each
                for instance_id, backend in self._services[name].items()
                for each in (*new.get(instance_id, ()), backend)
            }
        for name in {backend.service_name for backend in touched}:
            self._of_service.pop(name, None)
            if not self._services[name]:
                del self._services[name]
                del self._names[bisect_left(self._names, name)]
        self._pools = {
            key: (pool, takes) for key, (pool, takes) in self._pools.items() if not any(map(takes, touched))
        }
        self._table = self._limits = None

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
        found = self._of_anyone("default", self._made_of.default_strategy, why)
        if found.backends:
            return found
        if not self.by_id:
            why = "no service is running"
        else:
            why += ", and only services that must be named are running: connect to /services/NAME"
        return evolve(found, reason=why)

    def service_named_by(self, request: ClientRequest) -> str | None:
        """The service that the client asks for by name, in the path or as a hint; there may be none such."""
        name, _ = request.address
        if name is None and self._hints and "?" in request.path:
            name = next(iter(request.query.get("service", ())), None)
        return name

    def knows(self, service_name: str) -> bool:
        return service_name in self._made_of.service_names or service_name in self._services

    def peers(self, backend: Backend) -> Iterable[Backend]:
        """All of its service, or of what that is called now; itself too, while it is in the table."""
        known = self.by_id.get(backend.instance_id, backend)
        return self._services.get(known.service_name, {}).values()

    def home(self, backend: Backend) -> Pool:
        """For a client that names a session which `backend` holds: no rule, hint or check matters to it."""
        reason = "the client names a session that this instance holds"
        return Pool((backend,), self._made_of.default_strategy, reason=reason, home=True)

    def service_of(self, backend: Backend) -> Pool:
        """For a client that names a session of an instance that is not there now: its service takes it up."""
        return self._service(backend.service_name, "the client names a session of the service")

    def _service(self, name: str, why: str) -> Pool:
        if not self.knows(name):
            raise ServiceNotFound(
                f"there is no service named {name!r}; `agentmgr list` shows those there are"
            )
        pool = self._of_service.get(name)
        if pool is None:
            members = self._services.get(name, {}).values()
            strategy = self._made_of.default_strategy
            pool = self._of_service[name] = self._pool(f"service:{name}", members, strategy, f"{why} {name}")
        return pool

    def _tagged(self, tag: str) -> Pool:
        strategy, why = self._made_of.default_strategy, f"the query asks for the tag {tag!r}"
        if (known := self._pools.get(f"tag:{tag}")) is not None:
            return known[0]
        if not any(tag in b.tags for b in self.table.backends):
            return Pool((), strategy, reason=why)  # not remembered: clients could name any number of tags
        return self._made(f"tag:{tag}", lambda backend: tag in backend.tags, strategy, why)

    def _targets(self, rule: RoutingRule) -> Pool:
        if not (rule.target_services or rule.target_tags):
            return self._of_anyone(f"rule:{rule.rule_id}", rule.target_strategy, "the rule matched", rule)
        return self._made(
            f"rule:{rule.rule_id}", partial(_is_target, rule), rule.target_strategy, "the rule matched", rule
        )

    def _fallback(self, rule: RoutingRule, strategy: RoutingStrategy) -> Pool:
        why = "the rule matched, and none of its targets can take a client: its fallback applies"
        return self._of_anyone(f"fallback:{rule.rule_id}", strategy, why, rule)

    def _of_anyone(
        self, key: str, strategy: RoutingStrategy, why: str, rule: RoutingRule | None = None
    ) -> Pool:
        return self._made(key, self._takes_anyone, strategy, why, rule)

    def _made(
        self, key: str, takes: Takes, strategy: RoutingStrategy, why: str, rule: RoutingRule | None = None
    ) -> Pool:
        if (known := self._pools.get(key)) is not None:
            return known[0]
        members = tuple(filter(takes, self.table.backends))
        if rule is not None and takes is not self._takes_anyone:  # `manual` goes by the order of its targets
            members = _in_order_of_targets(rule, members)
        pool = self._pool(key, members, strategy, why, rule)
        self._pools[key] = pool, takes
        return pool

    def _pool(
        self,
        key: str,
        members: Iterable[Backend],
        strategy: RoutingStrategy,
        why: str,
        rule: RoutingRule | None = None,
    ) -> Pool:
        pool = Pool(
            tuple(members),
            strategy,
            rule=rule.name if rule else None,
            hash_key=rule.hash_key if rule else None,
            reason=why,
            rotation=self.rotations.setdefault(key, Rotation()),
        )
        pool.rotation.forget_all_but(pool.by_id.keys())
        return pool


# A table is made whenever an instance changes, and its rules are nearly always the same.
@lru_cache(maxsize=1024)
def _compiled(conditions: tuple[RoutingCondition, ...]) -> Predicate | None:
    try:
        return compile_conditions(conditions)
    except InvalidRequest:  # stored by a version that took it: one bad rule must not stop the others
        return None


def _is_target(rule: RoutingRule, backend: Backend) -> bool:
    if rule.target_services:
        return backend.service_name in rule.target_services or backend.service_id in rule.target_services
    common = rule.target_tags & backend.tags
    return bool(common) and (common == rule.target_tags or not rule.match_all_tags)


def _in_order_of_targets(rule: RoutingRule, backends: tuple[Backend, ...]) -> tuple[Backend, ...]:
    if not rule.target_services:
        return backends
    return tuple(
        b for target in rule.target_services for b in backends if target in (b.service_name, b.service_id)
    )
