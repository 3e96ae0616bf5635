"""The values that the layers hand each other.

All are frozen. Durations are seconds and sizes are bytes, also where the guide's name does not say so.
Times are aware datetimes in UTC. A value that is out of range raises `InvalidRequest` when it is made,
so nothing further in has to check it again.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from attrs import Attribute, Factory, evolve, field, frozen

from .choices import OnDisconnect as OnDisconnect
from .choices import Runtime as Runtime
from .choices import WhenBusy as WhenBusy
from .errors import FieldProblem, InvalidRequest


class ServiceStatus(StrEnum):
    """Where an instance is in its life; a service shows the status of its best instance."""

    STOPPED = "stopped"
    STARTING = "starting"
    RUNNING = "running"
    UNHEALTHY = "unhealthy"  #: alive, and failing its checks
    DRAINING = "draining"  #: takes no new sessions, and finishes those it has
    STOPPING = "stopping"
    BACKOFF = "backoff"  #: will start again at a known time
    ERROR = "error"  #: given up; `error_message` says why


class DesiredStatus(StrEnum):
    """What the user wants; the manager works towards it, also after a crash of its own."""

    RUNNING = "running"
    STOPPED = "stopped"


class HealthStatus(StrEnum):
    HEALTHY = "healthy"
    DEGRADED = "degraded"  #: failed a check lately, not often enough to be unhealthy
    UNHEALTHY = "unhealthy"
    UNKNOWN = "unknown"  #: not checked yet


class RestartMode(StrEnum):
    ALWAYS = "always"
    ON_FAILURE = "on-failure"
    NEVER = "never"


class OnManagerDeath(StrEnum):
    KEEP = "keep"  #: the instance serves on, and the next manager adopts it
    DIE = "die"


class RoutingStrategy(StrEnum):
    ROUND_ROBIN = "round_robin"
    LEAST_CONNECTIONS = "least_connections"
    WEIGHTED_RANDOM = "weighted_random"
    HASH_BASED = "hash_based"
    TAG_BASED = "tag_based"
    MANUAL = "manual"


class ConditionOperator(StrEnum):
    EQUALS = "equals"
    NOT_EQUALS = "not_equals"
    CONTAINS = "contains"
    NOT_CONTAINS = "not_contains"
    STARTS_WITH = "starts_with"
    ENDS_WITH = "ends_with"
    REGEX_MATCH = "regex_match"
    IN_LIST = "in_list"
    NOT_IN_LIST = "not_in_list"
    IN_CIDR = "in_cidr"
    EXISTS = "exists"
    NOT_EXISTS = "not_exists"


def utc_now() -> datetime:
    return datetime.now(UTC)


def new_id(kind: str) -> str:
    """A fresh id such as `svc_3f0c…`; 64 random bits, so ids never meet."""
    return f"{kind}_{secrets.token_hex(8)}"


# Validators. The problem begins with the field's name, because it goes to the user as it is.

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_ID = re.compile(r"[a-z]+_[0-9a-f]{16}")  # as `new_id` makes them; a name must never be taken for one
_TAG = re.compile(r"[^\s,\x00-\x1f\x7f]{1,64}")

Check = Callable[[Any, "Attribute[Any]", Any], None]


def _invalid(name: str, problem: str) -> InvalidRequest:
    return InvalidRequest(f"{name} {problem}", fields=[FieldProblem(name, problem)])


def _name(_: Any, attribute: Attribute[Any], value: str) -> None:
    if _ID.fullmatch(value):
        raise _invalid(attribute.name, f"must not look like an id: {value!r}")
    if not _NAME.fullmatch(value):
        raise _invalid(
            attribute.name,
            f"must be 1 to 63 of letters, digits and '._-', beginning with a letter or digit, not {value!r}",
        )


def _printable(_: Any, attribute: Attribute[Any], value: str) -> None:
    # Names and descriptions reach log lines and terminals: no line breaks, no escape sequences.
    if not value.isprintable() or len(value) > 1000:
        raise _invalid(attribute.name, "must be at most 1000 printable characters on one line")


def _tags(_: Any, attribute: Attribute[Any], value: Iterable[str]) -> None:
    for tag in value:
        if not _TAG.fullmatch(tag):
            raise _invalid(
                attribute.name, f"must have no spaces, no commas and 64 characters at most: {tag!r}"
            )


def _command(_: Any, attribute: Attribute[Any], value: tuple[str, ...]) -> None:
    if value and not value[0]:
        raise _invalid(attribute.name, "must begin with the program to run, not with an empty word")
    if any("\0" in word for word in value):
        raise _invalid(attribute.name, "must have no NUL characters")


def _environment(_: Any, attribute: Attribute[Any], value: Mapping[str, str]) -> None:
    for name, text in value.items():
        if not name or "=" in name or "\0" in name:
            raise _invalid(attribute.name, f"must have names without '=' and NUL characters, not {name!r}")
        if "\0" in text:
            raise _invalid(attribute.name, f"must have no NUL characters in {name}")


def _between(low: float, high: float) -> Check:
    def check(_: Any, attribute: Attribute[Any], value: float | None) -> None:
        if value is not None and not low <= value <= high:
            raise _invalid(attribute.name, f"must be from {low:.12g} to {high:.12g}, not {value!r}")

    return check


def _words(value: Iterable[str] | str) -> tuple[str, ...]:
    if isinstance(value, str):  # tuple("abc") would be ('a', 'b', 'c')
        raise InvalidRequest(f"a list of strings is needed here, not the string {value!r}")
    return tuple(value)


def _word_set(value: Iterable[str] | str) -> frozenset[str]:
    return frozenset(_words(value))


_PORT = _between(1, 65535)
_DAY_S = 86400.0


@frozen
class ServiceConfig:
    """What to run and how to keep it running. All durations are in seconds.

    Either `agent_factory_path` (`agent.py`, `agent.py:factory` or `package.module:factory`) or `command`
    (any program that serves WebSockets; `{host}` and `{port}` in it are filled in) says what to run.
    """

    agent_factory_path: str | None = None
    command: tuple[str, ...] = field(default=(), converter=_words, validator=_command)
    python: str | None = None  #: interpreter for an agent file; the manager's own when None
    cwd: str | None = None  #: working directory; that of the one who registered when None
    env: Mapping[str, str] = field(
        factory=dict, validator=_environment
    )  #: added to the manager's environment
    env_file: str | None = None  #: `NAME=value` lines, read at each launch; `env` goes before it
    runtime: Runtime = Runtime.AUTO

    instances: int = field(default=1, validator=_between(1, 1000))
    weight: int = field(default=1, validator=_between(1, 1000))
    max_sessions: int = field(default=0, validator=_between(0, 1_000_000))  #: per instance; 0: unlimited
    session_timeout: float = field(default=1800.0, validator=_between(0, 30 * _DAY_S))  #: idle; 0: never
    max_message_bytes: int = field(default=2**20, validator=_between(0, 2**31))  #: 0: unlimited
    turn_timeout: float = field(default=0.0, validator=_between(0, 30 * _DAY_S))  #: 0: none
    confirm_timeout: float = field(default=300.0, validator=_between(0.1, 30 * _DAY_S))  #: then it means no
    on_disconnect: OnDisconnect = OnDisconnect.CONTINUE
    disconnect_grace: float = field(default=0.0, validator=_between(0, _DAY_S))
    when_busy: WhenBusy = WhenBusy.QUEUE

    auto_restart: bool = True  #: False: like `restart=never`, whatever `restart` says
    restart: RestartMode = RestartMode.ON_FAILURE
    max_restart_count: int = field(default=3, validator=_between(0, 1_000_000))  #: within `restart_window`
    restart_window: float = field(default=300.0, validator=_between(1, 30 * _DAY_S))
    restart_delay: float = field(default=5.0, validator=_between(0, _DAY_S))  #: the first; then doubling
    restart_delay_max: float = field(default=60.0, validator=_between(0, _DAY_S))
    stable_after: float = field(default=60.0, validator=_between(0, _DAY_S))  #: ready so long: all forgiven
    startup_timeout: float = field(default=30.0, validator=_between(0.1, _DAY_S))
    stop_timeout: float = field(default=10.0, validator=_between(0, _DAY_S))  #: from TERM to KILL
    drain_timeout: float = field(default=30.0, validator=_between(0, _DAY_S))
    on_manager_death: OnManagerDeath = OnManagerDeath.KEEP
    after: tuple[str, ...] = field(
        default=(), converter=_words
    )  #: names of services that must be ready first

    memory_limit_mb: int | None = field(default=None, validator=_between(1, 2**30))
    cpu_limit_percent: int | None = field(default=None, validator=_between(1, 100_000))  #: of one core
    max_open_files: int | None = field(default=None, validator=_between(16, 2**30))  #: per process
    max_processes: int | None = field(default=None, validator=_between(1, 2**22))
    """These four limit an instance with all that it starts; `Instance.unenforced` says which do not."""

    log_max_bytes: int = field(default=10 * 2**20, validator=_between(2**16, 2**40))
    log_files: int = field(default=4, validator=_between(1, 100))  #: with the one being written

    health_check_interval: float | None = field(default=None, validator=_between(0.05, _DAY_S))
    """None: the manager's (`daemon --interval`, 10 s)."""
    health_check_timeout: float = field(default=5.0, validator=_between(0.01, 3600))
    unhealthy_threshold: int = field(default=3, validator=_between(1, 1000))  #: failures in a row
    recovery_threshold: float = field(default=30.0, validator=_between(0, _DAY_S))
    """Unhealthy for longer than this: restarted, if the restart policy allows."""

    @property
    def restart_mode(self) -> RestartMode:
        return self.restart if self.auto_restart else RestartMode.NEVER


@frozen
class ServiceSpec:
    """A registration: what the user asked for, as it stands in the database."""

    name: str = field(validator=_name)
    config: ServiceConfig
    description: str = field(default="", validator=_printable)
    tags: frozenset[str] = field(default=frozenset(), converter=_word_set, validator=_tags)
    host: str = field(default="localhost", validator=_printable)
    port: int | None = field(default=None, validator=_PORT)  #: None: chosen at each start
    service_id: str = Factory(lambda: new_id("svc"))
    desired_status: DesiredStatus = DesiredStatus.STOPPED
    version: int = 1  #: counts the changes, for `If-Match`
    created_at: datetime = Factory(utc_now)
    updated_at: datetime = Factory(utc_now)

    def __attrs_post_init__(self) -> None:
        config = self.config
        if bool(config.agent_factory_path) == bool(config.command):
            raise InvalidRequest(f"service {self.name}: give either an agent file or a command to run")
        if self.port is not None and config.instances > 1:
            raise InvalidRequest(
                f"service {self.name}: a fixed port allows one instance; leave the port out to run more"
            )

    def changed(self, **changes: Any) -> ServiceSpec:
        """The next version of it."""
        return evolve(self, version=self.version + 1, updated_at=utc_now(), **changes)


@frozen
class InstanceRecord:
    """What the database knows of a process, so that the next manager can tell it from a stranger's."""

    instance_id: str
    service_id: str
    slot: int  #: which of the service's instances: 0 … instances-1
    pid: int
    process_start: int  #: clock ticks since boot (`/proc/PID/stat`, field 22)
    boot_id: str
    token: str = field(repr=False)  #: in the child's environment; never shown
    host: str
    port: int
    spec_version: int  #: the version of the registration that it runs
    started_at: datetime


@frozen
class Instance:
    """One instance as the supervisor sees it now."""

    instance_id: str
    service_id: str
    slot: int
    status: ServiceStatus
    health: HealthStatus = HealthStatus.UNKNOWN
    pid: int | None = None
    host: str = "localhost"
    port: int | None = None
    spec_version: int = 1
    started_at: datetime | None = None
    ready_at: datetime | None = None
    restart_count: int = 0  #: unplanned ones, since an operator last started it
    restarts_left: int | None = None  #: None: no limit applies
    next_restart_at: datetime | None = None
    last_exit: str | None = None  #: as in "exit code 1", "SIGKILL", "unknown"
    unenforced: tuple[
        str, ...
    ] = ()  #: limits of its configuration that this machine does not enforce, and why
    error_message: str | None = None


@frozen
class Service:
    """A registration together with what is running of it: what every interface shows."""

    service_id: str
    name: str
    description: str
    agent_factory_path: str | None
    command: tuple[str, ...]
    host: str
    port: int | None
    endpoint: str | None  #: where its first running instance answers, as in `ws://localhost:8081`
    tags: frozenset[str]
    status: ServiceStatus
    desired_status: DesiredStatus
    health: HealthStatus
    error_message: str | None
    version: int
    created_at: datetime
    updated_at: datetime
    started_at: datetime | None
    restart_count: int
    next_restart_at: datetime | None
    active_sessions: int
    config: ServiceConfig
    instances: tuple[Instance, ...]
    port_is_fixed: bool = False  #: by the registration; else a free one is chosen at each start


@frozen
class Usage:
    """What an instance used of the machine, with all that it has started, at one moment."""

    at: datetime
    cpu_percent: float  #: of one core, since the sample before
    memory_bytes: int  #: resident; memory that processes share is counted for each
    processes: int
    threads: int
    open_files: int


@frozen
class HealthCheck:
    """The result of one probe of one instance."""

    service_id: str
    instance_id: str
    status: HealthStatus  #: the verdict after this probe
    checked_at: datetime
    ok: bool
    latency_s: float | None = None
    reason: str | None = None  #: why it failed


@frozen
class Event:
    """Something that happened, for people and for `GET /events`."""

    kind: str  #: as in `service.registered`, `instance.running`, `session.closed`
    at: datetime = Factory(utc_now)
    service_id: str | None = None
    instance_id: str | None = None
    detail: Mapping[str, str | int | float | bool | None] = Factory(dict)
    event_id: int = 0  #: given by the store, rising


@frozen
class RoutingCondition:
    """One test of a client's request; a rule's conditions must all hold.

    `field` is `client_ip`, `client_port`, `user_agent`, `path`, `host`, `origin`, `subprotocol`,
    `query.NAME`, `header.NAME` or `cookie.NAME`.
    """

    field: str
    operator: ConditionOperator
    value: str | tuple[str, ...] = ""  #: several for `in_list`, `not_in_list` and `in_cidr`
    case_sensitive: bool = True


@frozen
class RoutingRule:
    """Sends the clients that meet all conditions to some of the services. Lowest priority number first."""

    name: str = field(validator=_name)
    conditions: tuple[RoutingCondition, ...] = field(default=(), converter=tuple)
    priority: int = field(default=100, validator=_between(-1_000_000, 1_000_000))
    target_services: tuple[str, ...] = field(default=(), converter=_words)  #: names or ids, in order
    target_tags: frozenset[str] = field(default=frozenset(), converter=_word_set, validator=_tags)
    match_all_tags: bool = False
    target_strategy: RoutingStrategy = RoutingStrategy.ROUND_ROBIN
    fallback_strategy: RoutingStrategy | None = None  #: over all services, when the targets have nobody
    hash_key: str | None = None  #: a condition field; None: the client's address
    enabled: bool = True
    description: str = field(default="", validator=_printable)
    rule_id: str = Factory(lambda: new_id("rule"))
    version: int = 1
    created_at: datetime = Factory(utc_now)


@frozen
class Connection:
    """One live session through the gateway."""

    connection_id: str
    client_ip: str
    client_port: int
    service_id: str
    service_name: str
    instance_id: str
    rule: str | None  #: the name of the rule that chose, if one did
    path: str  #: without the query, which may carry secrets
    started_at: datetime
    idle_s: float
    bytes_from_client: int
    bytes_to_client: int
    messages_from_client: int
    messages_to_client: int


@frozen
class SessionEnd:
    """How a session through the gateway ended."""

    connection_id: str
    service_id: str
    instance_id: str
    started_at: datetime
    ended_at: datetime
    ended_by: str  #: `client`, `backend` or `gateway`
    code: int | None  #: the close code that was seen or sent; None where the stream just ended
    reason: str
    bytes_from_client: int
    bytes_to_client: int
    messages_from_client: int
    messages_to_client: int

    @property
    def failed(self) -> bool:
        """Did the service's side break it off? A client that vanished is not the service's failure.

        Going away, a policy's refusal, a restart and the application's own codes (RFC 6455, 7.4) are ends
        that somebody meant.
        """
        meant = self.code is not None and (self.code in (1000, 1001, 1005, 1008, 1012) or self.code >= 3000)
        return self.ended_by != "client" and not meant


def _scopes(_: Any, attribute: Attribute[Any], value: frozenset[str]) -> None:
    for scope in value:
        kind, _colon, name = scope.partition(":")
        if scope not in ("admin", "read", "connect") and not (kind == "connect" and _NAME.fullmatch(name)):
            raise _invalid(
                attribute.name, f"must be of admin, read, connect and connect:SERVICE, not {scope!r}"
            )
    if not value:
        raise _invalid(attribute.name, "must name at least one of admin, read, connect, connect:SERVICE")


@frozen
class Token:
    """A key to the API and the gateway. The key itself is shown once and kept by nobody here."""

    name: str = field(validator=_name)
    scopes: frozenset[str] = field(converter=_word_set, validator=_scopes)
    digest: str = field(repr=False)  #: SHA-256 of the key, which has 256 random bits: no salt is needed
    token_id: str = Factory(lambda: new_id("tok"))
    created_at: datetime = Factory(utc_now)
    expires_at: datetime | None = None
    version: int = 1

    def allows(self, scope: str, now: datetime) -> bool:
        """Whether it opens what needs `scope`; `admin` opens everything."""
        if self.expires_at is not None and now >= self.expires_at:
            return False
        return scope in self.scopes or "admin" in self.scopes


Fact = HealthCheck | Event | SessionEnd
"""What is recorded in batches: it may be lost when the power fails within a second."""


@frozen
class ServiceTotals:
    """What a service has done since it was registered."""

    sessions_total: int = 0  #: those that have ended
    sessions_failed: int = 0
    session_seconds: float = 0.0  #: the sum of their durations
    bytes_from_client: int = 0
    bytes_to_client: int = 0
    restarts: int = 0  #: unplanned ones
    errors: int = 0  #: times that an instance was given up
