"""What is registered, how it is to run, and how that is shown."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum
from typing import Any

from attrs import Factory, evolve, field, frozen

from ..errors import InvalidRequest
from .checks import HEALTH_KINDS, READY_KINDS, CheckKind, CheckMethod, check_method
from .choices import OnDisconnect, Runtime, WhenBusy
from .fields import (
    PORT,
    between,
    check_command,
    check_environment,
    check_name,
    check_printable,
    check_tags,
    check_text,
    check_texts,
    check_variable_names,
    new_id,
    to_word_set,
    to_words,
    utc_now,
)


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
    """What the checks of an instance have shown."""

    HEALTHY = "healthy"
    DEGRADED = "degraded"  #: failed a check lately, not often enough to be unhealthy
    UNHEALTHY = "unhealthy"
    UNKNOWN = "unknown"  #: not checked yet


class RestartMode(StrEnum):
    """After which ends an instance is started again."""

    ALWAYS = "always"
    ON_FAILURE = "on-failure"
    NEVER = "never"


class OnManagerDeath(StrEnum):
    """What becomes of an instance whose manager was killed."""

    KEEP = "keep"  #: the instance serves on, and the next manager adopts it
    DIE = "die"


_DAY_S = 86400.0


@frozen
class ServiceConfig:
    """What to run and how to keep it running. All durations are in seconds.

    Either `agent_factory_path` (`agent.py`, `agent.py:factory` or `package.module:factory`) or `command`
    (any program; `{host}` and `{port}` in it are filled in) says what to run.
    """

    agent_factory_path: str | None = field(default=None, validator=check_text)
    command: tuple[str, ...] = field(default=(), converter=to_words, validator=check_command)
    python: str | None = field(default=None, validator=check_text)
    """Interpreter for an agent file; the manager's own when None."""
    cwd: str | None = field(default=None, validator=check_text)
    """Working directory; that of the one who registered when None."""
    env: Mapping[str, str] = field(factory=dict, validator=check_environment)  #: added to the manager's
    env_public: frozenset[str] = field(
        default=frozenset(), converter=to_word_set, validator=check_variable_names
    )
    """Names in `env` whose values every interface may show; those of the others are hidden."""
    env_file: str | None = field(default=None, validator=check_text)
    """A `.env` file, read at each launch; `env` goes before it."""
    runtime: Runtime = Runtime.AUTO

    instances: int = field(default=1, validator=between(1, 1000))
    weight: int = field(default=1, validator=between(1, 1000))
    max_sessions: int = field(default=0, validator=between(0, 1_000_000))
    """Connections of one instance at a time through the gateway; 0: unlimited."""
    max_conversations: int | None = field(default=None, validator=between(0, 1_000_000))
    """Sessions that a hosted instance keeps, also of clients that are away; None: as `max_sessions`."""
    idle_timeout: float | None = field(default=None, validator=between(0, 30 * _DAY_S))
    """The gateway ends a connection after so long without a message; 0: never, None: as `session_timeout`."""
    session_timeout: float = field(default=1800.0, validator=between(0, 30 * _DAY_S))
    """A hosted instance keeps a session for so long after its client has disconnected; 0: for ever."""
    max_message_bytes: int = field(default=2**20, validator=between(0, 2**31))  #: 0: unlimited
    turn_timeout: float = field(default=0.0, validator=between(0, 30 * _DAY_S))  #: 0: none
    confirm_timeout: float = field(default=300.0, validator=between(0.1, 30 * _DAY_S))  #: then it means no
    on_disconnect: OnDisconnect = OnDisconnect.CONTINUE
    disconnect_grace: float = field(default=0.0, validator=between(0, _DAY_S))
    when_busy: WhenBusy = WhenBusy.QUEUE

    auto_restart: bool = True  #: False: like `restart=never`, whatever `restart` says
    restart: RestartMode = RestartMode.ON_FAILURE
    max_restart_count: int = field(default=3, validator=between(0, 1_000_000))  #: within `restart_window`
    restart_window: float = field(default=300.0, validator=between(1, 30 * _DAY_S))
    restart_delay: float = field(default=5.0, validator=between(0, _DAY_S))  #: the first; then doubling
    restart_delay_max: float = field(default=60.0, validator=between(0, _DAY_S))
    stable_after: float = field(default=60.0, validator=between(0, _DAY_S))  #: ready so long: all forgiven
    startup_timeout: float = field(default=30.0, validator=between(0.1, _DAY_S))
    stop_timeout: float = field(default=10.0, validator=between(0, _DAY_S))  #: from TERM to KILL
    drain_timeout: float = field(default=30.0, validator=between(0, _DAY_S))
    drain_idle: float = field(default=10.0, validator=between(0, _DAY_S))
    """No message for so long ends a session that drains, where the agent cannot be asked: of a command."""
    on_manager_death: OnManagerDeath = OnManagerDeath.KEEP
    after: tuple[str, ...] = field(
        default=(), converter=to_words, validator=check_texts
    )  #: names of services that must be ready first

    memory_limit_mb: int | None = field(default=None, validator=between(1, 2**30))
    cpu_limit_percent: int | None = field(default=None, validator=between(1, 100_000))  #: of one core
    max_open_files: int | None = field(default=None, validator=between(16, 2**30))  #: per process
    max_processes: int | None = field(default=None, validator=between(1, 2**22))
    """These four limit an instance with all that it starts; `Instance.unenforced` says which do not."""

    log_max_bytes: int = field(default=10 * 2**20, validator=between(2**16, 2**40))
    log_files: int = field(default=4, validator=between(1, 100))  #: with the one being written

    ready: str = field(default="auto", validator=check_method(READY_KINDS))
    """How a command shows that it is ready: `KIND` or `KIND:PATH` of `CheckKind`."""
    health: str = field(default="auto", validator=check_method(HEALTH_KINDS))
    health_check_interval: float | None = field(default=None, validator=between(0.05, _DAY_S))
    """None: the manager's (`daemon --interval`, 10 s)."""
    health_check_timeout: float = field(default=5.0, validator=between(0.01, 3600))
    unhealthy_threshold: int = field(default=3, validator=between(1, 1000))  #: failures in a row
    recovery_threshold: float = field(default=30.0, validator=between(0, _DAY_S))
    """Unhealthy for longer than this: restarted, if the restart policy allows."""

    @property
    def conversation_limit(self) -> int:
        """0: unlimited."""
        return self.max_sessions if self.max_conversations is None else self.max_conversations

    @property
    def idle_limit(self) -> float:
        """0: none."""
        return self.session_timeout if self.idle_timeout is None else self.idle_timeout

    @property
    def restart_mode(self) -> RestartMode:
        return self.restart if self.auto_restart else RestartMode.NEVER

    @property
    def ready_method(self) -> CheckMethod:
        return CheckMethod.parse(self.ready)

    @property
    def health_method(self) -> CheckMethod:
        return CheckMethod.parse(self.health)


@frozen
class ServiceSpec:
    """A registration: what the user asked for, as it stands in the database."""

    name: str = field(validator=check_name)
    config: ServiceConfig
    description: str = field(default="", validator=check_printable)
    tags: frozenset[str] = field(default=frozenset(), converter=to_word_set, validator=check_tags)
    host: str = field(default="localhost", validator=check_printable)
    port: int | None = field(default=None, validator=PORT)  #: None: chosen at each start
    service_id: str = Factory(lambda: new_id("svc"))
    desired_status: DesiredStatus = DesiredStatus.STOPPED
    version: int = 1  #: counts the changes, for `If-Match`
    created_at: datetime = Factory(utc_now)
    updated_at: datetime = Factory(utc_now)

    def __attrs_post_init__(self) -> None:
        config = self.config
        if bool(config.agent_factory_path) == bool(config.command):
            raise InvalidRequest(f"service {self.name}: give either an agent file or a command to run")
        for name, value, allowed in (
            ("ready", config.ready, (CheckKind.AUTO, CheckKind.WEBSOCKET)),
            ("health", config.health, (CheckKind.AUTO, CheckKind.WEBSOCKET, CheckKind.NONE)),
        ):
            if config.agent_factory_path and value not in allowed:
                raise InvalidRequest(
                    f"service {self.name}: {name} is for commands; an agent file is always asked by its own "
                    f"protocol: {name} may be {' or '.join(allowed)} here, not {value!r}"
                )
        if self.port is not None and config.instances > 1:
            raise InvalidRequest(
                f"service {self.name}: a fixed port allows one instance; leave the port out to run more"
            )

    def changed(self, **changes: Any) -> ServiceSpec:
        """The next version of it."""
        return evolve(self, version=self.version + 1, updated_at=utc_now(), **changes)


@frozen
class Usage:
    """What an instance used of the machine, with all that it has started, at one moment."""

    at: datetime
    cpu_percent: float  #: of one core, since the sample before; of the first one, since its start
    memory_bytes: int  #: resident; memory that processes share is counted for each
    processes: int
    threads: int
    open_files: int


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
    adopted: bool = False  #: its process was started by an earlier manager
    restart_count: int = 0  #: unplanned ones, since an operator last started it
    restarts_left: int | None = None  #: None: no limit applies
    next_restart_at: datetime | None = None
    last_exit: str | None = None  #: as in "exit code 1", "SIGKILL", "unknown"
    unenforced: tuple[
        str, ...
    ] = ()  #: limits of its configuration that this machine does not enforce, and why
    error_message: str | None = None
    serves: bool | None = True
    """Whether clients can be sent to it: something of it listens. None: not seen yet, and worth a wait."""
    said: str | None = None  #: by itself, as a command does with sd_notify's `STATUS=`
    usage: Usage | None = None  #: the latest sample; None before there is one


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
