"""What the rest may ask of the storage, and the kinds of named, versioned things in it.

`SqliteStore` keeps it in a file; `agentmgr.testing.MemoryStore` in memory, for tests. Both pass
`tests/storage/test_store_contract.py`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Protocol, TypeVar

from attrs import Factory, frozen

from ..core.moves import JournalPlace
from ..core.stats import Histogram
from ..errors import (
    Conflict,
    NameTaken,
    NotFound,
    RuleNotFound,
    ServiceNotFound,
    TokenNotFound,
    VersionMismatch,
)
from ..models import (
    Event,
    Fact,
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

F = TypeVar("F", bound=Fact)


@frozen
class Snapshot:
    """Everything a manager has to know when it starts."""

    services: tuple[ServiceSpec, ...] = ()  #: oldest first
    rules: tuple[RoutingRule, ...] = ()  #: oldest first
    instances: tuple[InstanceRecord, ...] = ()
    totals: Mapping[str, ServiceTotals] = Factory(dict)  #: by service id; absent: nothing counted yet
    jobs: Mapping[str, JobState] = Factory(dict)  #: by service id; absent: it has no runs yet
    nodes: tuple[NodeRecord, ...] = ()  #: oldest first
    journal_places: tuple[JournalPlace, ...] = ()


@frozen
class HistoryLimits:
    """How much history is kept; what is beyond goes soon after, not at once.

    Of health checks only those are recorded that found something else than the one before.
    """

    health_checks: int = 1000  #: per service
    events: int = 10_000
    ends: int = 50  #: of instances, per service
    max_age_s: float = 30 * 86400.0


class Store(Protocol):
    """A write is durable when it returns. Where it fails it raises `StorageError`, and nothing has changed;
    where the wait for it is cancelled it is done or not done, never half done.
    """

    @property
    def degraded(self) -> str | None:
        """Why recorded facts cannot be written at present; None when all is well."""

    @property
    def dropped(self) -> int:
        """How many recorded facts were lost, because too many waited or they could not be kept."""

    @property
    def timings(self) -> Mapping[str, Histogram]:
        """How long callers have waited, by what for: `read` or `write`."""

    async def load(self) -> Snapshot:
        """All of it, its totals including what was recorded just now."""

    async def add_service(self, spec: ServiceSpec) -> None:
        """Raises `NameTaken`."""

    async def update_service(self, spec: ServiceSpec) -> None:
        """Puts the next version (`spec.version`) in the place of the one before it.

        Raises `ServiceNotFound`, `NameTaken`, and `VersionMismatch` where another version is stored.
        """

    async def delete_service(self, service_id: str) -> None:
        """Also deletes its instances, totals, health and ends. Raises `ServiceNotFound`."""

    async def add_rule(self, rule: RoutingRule) -> None:
        """Raises `NameTaken`."""

    async def update_rule(self, rule: RoutingRule) -> None:
        """Like `update_service`; raises `RuleNotFound`, `NameTaken`, `VersionMismatch`."""

    async def delete_rule(self, rule_id: str) -> None:
        """Raises `RuleNotFound`."""

    async def tokens(self) -> tuple[Token, ...]:
        """All, oldest first."""

    async def add_token(self, token: Token, policy: TokenPolicy | None = None) -> None:
        """With `policy` that is set in the same transaction. Raises `NameTaken`."""

    async def delete_token(self, token_id: str) -> None:
        """It leaves the policy as it is. Raises `TokenNotFound`."""

    async def token_policy(self) -> TokenPolicy:
        """Whether the API and the gateway ask for tokens."""

    async def set_token_policy(self, policy: TokenPolicy) -> None:
        """From now on they ask as it says."""

    async def put_instance(self, record: InstanceRecord) -> None:
        """Raises `ServiceNotFound`."""

    async def delete_instance(self, instance_id: str) -> None:
        """No error when it is not there."""

    async def put_job(self, service_id: str, state: JobState) -> None:
        """Raises `ServiceNotFound`."""

    async def put_node(self, node: NodeRecord) -> None:
        """Its name is no other node's: the caller sees to that."""

    async def delete_node(self, node_id: str) -> None:
        """No error when it is not there."""

    async def put_journal_places(self, places: Iterable[JournalPlace]) -> None:
        """All in one transaction; of services that are not there none. They go with their service."""

    async def join_secrets(self) -> tuple[JoinSecret, ...]:
        """All, oldest first."""

    async def put_join_secret(self, secret: JoinSecret, *, with_node: NodeRecord | None = None) -> None:
        """With a node that is put in the same transaction."""

    async def delete_join_secret(self, digest: str) -> None:
        """No error when it is not there."""

    def record(self, fact: F) -> F:
        """Takes a fact to be written within a second; never blocks, never raises.

        Returns the fact as it is kept: an event has its id, which rises, also over restarts. A fact about a
        service that is not there is forgotten, except for events.
        """

    async def flush(self) -> None:
        """Writes what was recorded so far."""

    async def health_history(self, service_id: str, *, limit: int = 100) -> tuple[HealthCheck, ...]:
        """The newest first, including what was recorded just now."""

    async def ends(self, service_id: str, *, limit: int = 50) -> tuple[InstanceEnd, ...]:
        """Of its instances, the newest first, including what was recorded just now."""

    async def add_minute(self, minute: int, figures: Mapping[str, MinuteFigures]) -> None:
        """What each service did in a minute (since 1970), by service id. The last 24 hours are kept."""

    async def minutes(
        self, service_ids: Collection[str], first: int, last: int
    ) -> Mapping[str, Mapping[int, MinuteFigures]]:
        """By service id and minute, of the minutes from `first` to `last`; absent: not measured."""

    async def events(self, *, after: int = 0, limit: int = 1000) -> tuple[Event, ...]:
        """Those with an id above `after`, oldest first."""

    async def backup(self, destination: Path) -> None:
        """A consistent copy, while all goes on. Raises `Conflict` when `destination` exists."""


def event_id(event: Event, last: int) -> int:
    """The id of an event that follows one with the id `last`.

    It begins as milliseconds since 1970, so that a manager killed with events unwritten does not hand out
    again the ids that a client may have seen.
    """
    return max(last + 1, int(event.at.timestamp() * 1000))


@frozen
class Kind:
    table: str
    noun: str
    missing: type[NotFound]

    def not_found(self, key: str) -> NotFound:
        return self.missing(f"no {self.noun} has the id {key}")

    def id_taken(self, key: str) -> Conflict:
        return Conflict(f"a {self.noun} with the id {key} is there already")

    def name_taken(self, name: str) -> NameTaken:
        return NameTaken(f"a {self.noun} named {name} is there already: choose another name")

    def stale(self, thing: ServiceSpec | RoutingRule | Token, stored_version: int) -> VersionMismatch:
        return VersionMismatch(
            f"the {self.noun} {thing.name} was changed in between (it is at version {stored_version} now): "
            "read it again and repeat the change"
        )


SERVICES = Kind("services", "service", ServiceNotFound)
RULES = Kind("rules", "routing rule", RuleNotFound)
TOKENS = Kind("tokens", "token", TokenNotFound)
