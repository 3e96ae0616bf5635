"""What is registered, and how it is to run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from enum import StrEnum
from functools import cached_property
from typing import Any

from attrs import Factory, evolve, field, frozen

from ..errors import FieldProblem, InvalidRequest
from .checks import HEALTH_KINDS, READY_KINDS, CheckKind, CheckMethod, check_method, shown
from .fields import (
    DAY_S,
    PORT,
    about,
    between,
    check_command,
    check_environment,
    check_hook,
    check_name,
    check_preload,
    check_printable,
    check_tags,
    check_text,
    check_texts,
    check_variable_names,
    invalid,
    new_id,
    option,
    to_word_set,
    to_words,
    utc_now,
)
from .host_config import Sessions
from .instance_range import InstanceRange, check_instances, instance_range
from .jobs import JobConfig
from .network_journal import SESSIONS_URL, check_sessions
from .nodes import OnNodeLoss, Spread, check_resources, check_selectors


class ServiceStatus(StrEnum):
    """Where an instance is in its life; a service shows the status of its best instance."""

    STOPPED = "stopped"
    STARTING = "starting"
    RUNNING = "running"
    UNHEALTHY = "unhealthy"  #: alive, and failing its checks
    DRAINING = "draining"  #: takes no new sessions, and finishes those it has
    STOPPING = "stopping"
    BACKOFF = "backoff"  #: will start again at a known time
    COMPLETED = "completed"  #: a job whose command has done its work
    SCHEDULED = "scheduled"  #: of a service only: it waits for its next run
    ASLEEP = "asleep"  #: of a service only: nothing of it runs, and the next client starts it
    ERROR = "error"  #: given up; `error_message` says why


SERVING = frozenset({ServiceStatus.RUNNING, ServiceStatus.UNHEALTHY})
"""In these an instance has connections."""


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


class StartMode(StrEnum):
    """When the instances of a service that should run do run."""

    ALWAYS = "always"
    ON_DEMAND = "on-demand"  #: while something uses them


class StopSignal(StrEnum):
    TERM = "SIGTERM"
    INT = "SIGINT"
    QUIT = "SIGQUIT"
    HUP = "SIGHUP"
    USR1 = "SIGUSR1"
    USR2 = "SIGUSR2"
    WINCH = "SIGWINCH"  #: nginx and Apache finish their requests on it


class OnManagerDeath(StrEnum):
    """What becomes of an instance whose manager was killed."""

    KEEP = "keep"  #: the instance serves on, and the next manager adopts it
    DIE = "die"


IDLE_STOP_S = 300.0


def _watched(value: Iterable[str] | str) -> tuple[str, ...]:
    words = to_words(value)
    return () if words == ("none",) else words


@frozen
class ServiceConfig(JobConfig):
    """What to run and how to keep it running. All durations are in seconds.

    Either `agent_factory_path` or `command` says what to run. A new option is a field here, and nothing else:
    the command line and the API are made of these fields.
    """

    command: tuple[str, ...] = field(
        default=(),
        converter=to_words,
        validator=check_command,
        metadata=about(
            "The program to run, in place of an agent; {host} and {port} in it are filled in.", argument=True
        ),
    )
    python: str | None = option(
        None,
        "The Python for an agent file, as .venv/bin/python. It needs no agentmgr; where it lacks what else a "
        "host imports, the error says how to install that.",
        check_text,
        unset="the manager's",
        metavar="FILE",
    )
    cwd: str | None = option(
        None, "Its working directory.", check_text, unset="the current directory", metavar="DIR"
    )
    ship: str | None = option(
        None,
        "In a cluster, the directory that is sent to a node along with it, less what its `.agentmgrignore` "
        "names; off: nothing, the nodes have all it needs.",
        check_text,
        unset="that of the agent file; of a module or a command, nothing",
        metavar="DIR|off",
    )
    user: str | None = option(
        None,
        "The user it runs as, with that user's groups; only root can choose one.",
        check_text,
        unset="the manager's",
        metavar="USER",
    )
    env: Mapping[str, str] = option(
        Factory(dict),
        "A variable of its environment, beside the manager's; its value is hidden everywhere.",
        check_environment,
        metavar="KEY=VALUE",
    )
    env_public: frozenset[str] = field(
        default=frozenset(),
        converter=to_word_set,
        validator=check_variable_names,
        metadata=about("A variable of `env` whose value may be shown.", metavar="NAME", live=True),
    )
    env_file: str | None = option(
        None,
        "A .env file, read at each start by python-dotenv's rules: quotes, comments, escapes, several lines; "
        "${NAME} is a variable that was set before. `env` takes precedence.",
        check_text,
        metavar="FILE",
    )

    required_env: frozenset[str] = field(
        default=frozenset(),
        converter=to_word_set,
        validator=check_variable_names,
        metadata=about(
            "A variable without which it is not started: of `env`, the `env_file` or the manager. One that a "
            "shell gave it stays when a file is applied that does not.",
            metavar="NAME",
        ),
    )

    watch: tuple[str, ...] = field(
        default=(),
        converter=_watched,
        validator=check_texts,
        metadata=about(
            "A file or directory; when something in it is saved, the service is restarted, each new instance "
            "before an old one. Without a value, or auto: the Python files beside the agent's and its "
            "`env_file`; of a command, its `cwd`. none: nothing.",
            metavar="PATH",
            bare="auto",
            live=True,
        ),
    )

    preload: str = option(
        "auto",
        "What its next starts find imported: auto, the installed packages that its host has imported at an "
        "earlier start, never its own files; off, the host alone; or these modules. Of an agent file.",
        check_preload,
        metavar="auto|off|MODULE,…",
        live=True,
    )

    sessions: str = field(
        default=Sessions.DURABLE.value,
        converter=str,  # of a `Sessions`
        validator=check_sessions,
        metadata=about(
            "Where an agent's sessions are kept, so that they outlive its instances. durable: on disk, or in "
            "the manager's AGENTMGR_SESSIONS_URL; a URL: in that Redis; memory: nowhere. A command's never.",
            metavar="durable|memory|URL",
        ),
    )
    instances: int | str = option(
        1,
        "How many to run: a number, or a range such as 2..8, within which `sessions_per_instance` decides; "
        "0..8: none while it has no clients.",
        check_instances,
        metavar="N|LOW..HIGH",
        live=True,
    )
    sessions_per_instance: int | None = option(
        None,
        "Connections of one instance on average: with more, a range of `instances` runs another one at once. "
        "An instance that was not needed for two minutes ends.",
        between(1, 1_000_000),
        unset="70 % of `max_sessions`; without that, 4 turns under way",
        live=True,
    )
    weight: int = option(1, "Its share in weighted routing.", between(1, 1000), live=True)
    max_sessions: int = option(
        0, "Connections of one instance at a time; 0: any number.", between(0, 1_000_000)
    )
    idle_timeout: float | None = option(
        None,
        "Seconds without a message until the gateway ends a connection; 0: never.",
        between(0, 30 * DAY_S),
        unset="`session_timeout`",
        live=True,
    )

    seamless: bool = option(
        True,
        "Whether the gateway keeps a client's connection while another instance takes over its sessions: of "
        "an agent whose sessions are durable.",
        live=True,
    )
    resume_within: float = option(
        30.0,
        "Seconds that it waits for that until it is asked to come back.",
        between(0, DAY_S),
        live=True,
    )

    start: StartMode = option(
        StartMode.ALWAYS,
        "on-demand: nothing of it runs until a client comes, a health check is asked for or a turn has to be "
        "retried; its status is then asleep.",
        live=True,
    )
    idle_stop: float | None = option(
        None,
        "Seconds without a connection, a turn or an open question until it falls asleep, where it starts "
        "on-demand.",
        between(0.1, 30 * DAY_S),
        unset="300",
        live=True,
    )

    auto_restart: bool = option(True, "Restart it when it fails; if not, `restart` has no effect.")
    restart: RestartMode = option(
        RestartMode.ON_FAILURE, "When to restart it; never: it is a job, and has completed with exit code 0."
    )
    max_restart_count: int = option(
        3, "Restarts within the window before it is given up.", between(0, 1_000_000)
    )
    restart_window: float = option(300.0, "Seconds in which restarts are counted.", between(1, 30 * DAY_S))
    restart_delay: float = option(
        5.0, "Seconds before the first restart; doubles each time.", between(0, DAY_S)
    )
    restart_delay_max: float = option(
        60.0, "The longest delay before a restart, in seconds.", between(0, DAY_S)
    )
    stable_after: float = option(
        60.0, "Seconds without a failure, after which past ones are forgotten.", between(0, DAY_S)
    )
    startup_timeout: float = option(30.0, "Seconds until it must be ready.", between(0.1, DAY_S))
    stop_timeout: float = option(10.0, "Seconds from `stop_signal` to SIGKILL.", between(0, DAY_S))
    stop_signal: StopSignal = option(StopSignal.TERM, "The signal that asks a command to end.")
    drain_timeout: float = option(
        30.0, "Seconds for its sessions to end: for a turn that runs.", between(0, DAY_S)
    )
    drain_idle: float = option(
        10.0,
        "Seconds without a message that end a draining session, where turns cannot be seen: of a command.",
        between(0, DAY_S),
    )
    on_failure: str | None = option(
        None,
        "A command (no shell reads it, but it may be `sh -c '…'`) or an http(s) URL that gets a JSON object, "
        "on stdin or by POST, when an instance is given up or unhealthy, when new code does not start, and "
        "when a durable session asks a question.",
        check_hook,
        metavar="COMMAND|URL",
        live=True,
    )
    on_manager_death: OnManagerDeath = option(OnManagerDeath.KEEP, "Whether it outlives a killed manager.")
    after: tuple[str, ...] = field(
        default=(),
        converter=to_words,
        validator=check_texts,
        metadata=about(
            "A service that must be ready first; NAME:completed: a job that must have completed.",
            metavar="SERVICE",
        ),
    )

    cpus: float | None = option(
        None,
        "CPUs of a node that are reserved for an instance, in a cluster whose engine reserves them; "
        "`cpu_limit_percent` limits them.",
        between(0.001, 100_000),
        unit="CPUs",
    )
    gpus: float | None = option(
        None,
        "GPUs that are reserved for an instance, and shown to it alone; 0.5: half of one.",
        between(0.001, 1000),
        unit="GPUs",
    )
    memory_mb: int | None = option(
        None,
        "Memory of a node that is reserved for an instance; `memory_limit_mb` limits it.",
        between(1, 2**30),
    )
    resources: tuple[str, ...] = field(
        default=(),
        converter=to_words,
        validator=check_resources,
        metadata=about(
            "What else of a node is reserved for an instance, as in licence=1.", metavar="NAME=NUMBER"
        ),
    )
    place_on: tuple[str, ...] = field(
        default=(),
        converter=to_words,
        validator=check_selectors,
        metadata=about(
            "A label of the nodes that may run it: zone=b, zone=!b, zone=in(a,b), zone=!in(a,b), node=NAME. "
            "With several, all must match.",
            metavar="LABEL=VALUE",
        ),
    )
    spread: Spread = option(
        Spread.NODES,
        "nodes: its instances are on as many nodes of a cluster as there are; pack: on as few.",
    )
    on_node_loss: OnNodeLoss = option(
        OnNodeLoss.REPLACE,
        "When the node of an instance is lost: replace: it starts on another one at once, while the old one "
        "may live on where it cannot be seen; wait: it waits for its node, so that it is never there twice.",
    )

    memory_limit_mb: int | None = option(
        None, "Of an instance with all that it starts; where the platform enforces it.", between(1, 2**30)
    )
    cpu_limit_percent: int | None = option(
        None, "Of one core; where the platform enforces it.", between(1, 100_000)
    )
    max_open_files: int | None = option(None, "Open files of each of its processes.", between(16, 2**30))
    max_processes: int | None = option(None, "Processes of one instance.", between(1, 2**22))

    log_max_bytes: int = option(10 * 2**20, "The size at which its log is rotated.", between(2**16, 2**40))
    log_files: int = option(4, "Log files that are kept, with the current one.", between(1, 100))

    session_retention: float = option(
        30 * DAY_S,
        "Seconds after its last use until a durable session is erased; 0: never.",
        between(0, 36500 * DAY_S),
        live=True,
    )
    sessions_max_bytes: int = option(
        2**30,
        "What durable sessions may take on disk; the longest unused are erased first. 0: any size.",
        between(0, 2**50),
        live=True,
    )

    ready: str = option(
        "auto",
        f"How a command shows that it is ready: {shown(READY_KINDS)}.",
        check_method(READY_KINDS),
        metavar="HOW",
    )
    health: str = option(
        "auto",
        f"How it shows that it is healthy: {shown(HEALTH_KINDS)}.",
        check_method(HEALTH_KINDS),
        metavar="HOW",
    )
    health_check_interval: float | None = option(
        None, "Seconds between checks.", between(0.05, DAY_S), unset="the manager's"
    )
    health_check_timeout: float = option(5.0, "Seconds to wait for a check's answer.", between(0.01, 3600))
    unhealthy_threshold: int = option(3, "Failed checks in a row that make it unhealthy.", between(1, 1000))
    recovery_threshold: float = option(
        30.0, "Seconds of being unhealthy before it is restarted.", between(0, DAY_S)
    )

    @property
    def instance_range(self) -> InstanceRange:
        return instance_range(self.instances)

    @property
    def conversation_limit(self) -> int:
        """0: unlimited."""
        return self.max_sessions if self.max_conversations is None else self.max_conversations

    @property
    def resumes_within(self) -> float:
        """0: its clients' connections end with their instance."""
        return self.resume_within if self.seamless and self.keeps_sessions else 0.0

    @property
    def keeps_sessions(self) -> bool:
        """Whether they outlive its instances."""
        return self.agent_factory_path is not None and self.sessions != Sessions.MEMORY

    def journal_url(self, default: str | None) -> str | None:
        """Of the network journal that has its sessions, `default` being the manager's; None: a file, if any
        does.
        """
        if not self.keeps_sessions:
            return None
        return default if self.sessions == Sessions.DURABLE else self.sessions

    @property
    def idle_limit(self) -> float:
        """0: none."""
        return self.session_timeout if self.idle_timeout is None else self.idle_timeout

    @cached_property
    def on_demand(self) -> bool:
        """Whether none of it runs while nothing uses it."""
        return self.start == StartMode.ON_DEMAND or self.instance_range.least == 0

    @property
    def idle_stop_s(self) -> float:
        return IDLE_STOP_S if self.idle_stop is None else self.idle_stop

    @property
    def restart_mode(self) -> RestartMode:
        return self.restart if self.auto_restart else RestartMode.NEVER

    @property
    def is_job(self) -> bool:
        """Whether exit code 0, at whatever moment, is the end of its work."""
        return self.schedule is not None or self.restart_mode is RestartMode.NEVER

    @property
    def ready_method(self) -> CheckMethod:
        return CheckMethod.parse(self.ready)

    # Each routing table asks these two of each service: with ten thousand, that is most of what it takes.

    @cached_property
    def speaks_http(self) -> bool:
        return self.ready_method.kind is CheckKind.HTTP

    @cached_property
    def needs_no_port(self) -> bool:
        """Whether it may be well without a port that it listens on."""
        return bool(self.command) and (self.is_job or self.ready_method.kind is CheckKind.STARTED)

    @property
    def health_method(self) -> CheckMethod:
        return CheckMethod.parse(self.health)


@frozen
class ServiceSpec:
    """A registration: what the user asked for, as it stands in the database."""

    name: str = field(validator=check_name, metadata=about("Its name.", argument=True, live=True))
    config: ServiceConfig
    description: str = option("", "What it is for.", check_printable, live=True)
    tags: frozenset[str] = field(
        default=frozenset(),
        converter=to_word_set,
        validator=check_tags,
        metadata=about("Its tags, for routing and for lists.", metavar="A,B", live=True),
    )
    host: str = option("localhost", "The address it listens on.", check_printable)
    port: int | None = option(
        None,
        "Its port. With a fixed one a restart ends the old instance before the new one starts.",
        PORT,
        unset="a free one at each start",
    )
    service_id: str = Factory(lambda: new_id("svc"))
    desired_status: DesiredStatus = DesiredStatus.STOPPED
    version: int = 1  #: counts the changes, for `If-Match`
    created_at: datetime = Factory(utc_now)
    updated_at: datetime = Factory(utc_now)

    def __attrs_post_init__(self) -> None:
        config = self.config
        if bool(config.agent_factory_path) == bool(config.command):
            problem = "give either an agent file or a command to run"
            fields = [FieldProblem("agent_factory_path", f"is one of two: {problem}")]
            raise InvalidRequest(f"service {self.name}: {problem}", fields=fields)
        for name, value, allowed in (
            ("ready", config.ready, (CheckKind.AUTO, CheckKind.WEBSOCKET)),
            ("health", config.health, (CheckKind.AUTO, CheckKind.WEBSOCKET, CheckKind.NONE)),
        ):
            if config.agent_factory_path and value not in allowed:
                raise InvalidRequest(
                    f"service {self.name}: {name} is for commands; an agent file is always asked by its own "
                    f"protocol: {name} may be {' or '.join(allowed)} here, not {value!r}",
                    fields=[FieldProblem(name, f"may be {' or '.join(allowed)} for an agent file")],
                )
        if not config.env.get(SESSIONS_URL, self.service_id).endswith(self.service_id):
            raise invalid(
                "env", f"cannot have {SESSIONS_URL}, which is the manager's: give the URL as sessions"
            )
        if config.schedule is not None:
            for name, misfit, problem in (
                ("agent_factory_path", config.agent_factory_path, "never ends: a schedule is for a command"),
                ("instances", config.instances != 1, "must be 1 with a schedule"),
                ("restart", config.restart_mode is RestartMode.ALWAYS, "cannot be always with a schedule"),
            ):
                if misfit:
                    raise invalid(name, problem)
        if config.on_demand and config.schedule is not None:
            raise invalid("start", "cannot be on demand with a schedule, which says when it runs")
        if config.on_demand and config.command and config.is_job:
            named = "start" if config.start == StartMode.ON_DEMAND else "instances"
            raise invalid(named, "cannot be on demand for a job (restart=never): no client waits for one")
        if config.command and config.preload not in ("auto", "off"):
            raise invalid("preload", "is for agent files: the manager does not run a command's imports")
        if config.agent_factory_path and config.stop_signal is not StopSignal.TERM:
            raise invalid("stop_signal", "is for commands: an agent's host ends on SIGTERM")
        if config.agent_factory_path and config.user and config.sessions == Sessions.DURABLE:
            raise invalid("user", "cannot write the journals of durable sessions: add --sessions memory")
        if config.command and config.instance_range.most > config.instance_range.least_awake:
            if config.is_job:
                raise invalid("instances", "must be a number for a job: a range follows clients")
            if not (config.sessions_per_instance or config.max_sessions):
                raise invalid(
                    "instances",
                    "as a range needs to know for how many connections one instance of a command is: add "
                    "sessions_per_instance or max_sessions",
                )
        if self.port is not None and config.instance_range.most > 1:
            raise InvalidRequest(
                f"service {self.name}: a fixed port allows one instance; leave the port out to run more",
                fields=[FieldProblem("port", "allows one instance only: leave it out to run more")],
            )

    def changed(self, **changes: Any) -> ServiceSpec:
        """The next version of it."""
        return evolve(self, version=self.version + 1, updated_at=utc_now(), **changes)
