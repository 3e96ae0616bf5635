"""What runs of a service, and how the service is shown."""

from __future__ import annotations

from datetime import datetime

from attrs import frozen

from .jobs import JobRun
from .services import DesiredStatus, HealthStatus, ServiceConfig, ServiceStatus


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
class ForkServerState:
    """A process that starts hosted agents by forking (`agentmgr.fork_server`)."""

    python: str
    user: str | None  #: whose instances it forks; None: the manager's own user
    pid: int | None  #: None while none runs: a problem ended it, and another one is tried later
    forks: int
    memory_bytes: int  #: resident; each instance shares most of it
    problem: str | None  #: why the last one ended
    imported: int = 0  #: modules that its instances find imported beside their host (`preload` of a service)


@frozen
class Instance:
    """One instance as the supervisor sees it now."""

    instance_id: str
    service_id: str
    slot: int
    status: ServiceStatus
    health: HealthStatus = HealthStatus.UNKNOWN
    node_id: str = ""  #: of the node that it runs on; empty: the manager's own machine
    node: str = ""  #: that node's name; empty where there is no cluster
    gpus: tuple[str, ...] = ()  #: the GPUs of that node that are reserved for it, as its node numbers them
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
    journal_degraded: bool = False  #: its sessions are in memory only, as their journal cannot be written
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
    endpoint: str | None
    """Where its first running instance on the manager's machine answers, as in `ws://localhost:8081`."""
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
    wanted_instances: int = 1  #: how many are to run now: of a range, as many as its load needs
    port_is_fixed: bool = False  #: by the registration; else a free one is chosen at each start
    last_run: JobRun | None = None  #: of a job
    next_run_at: datetime | None = None  #: of one with a schedule
    journal: str | None = (
        None  #: the network journal of its sessions, without a password; None: a file, or none
    )
    preloaded: str | None = None  #: what its next start finds imported, or why nothing; of an agent file
    reload_error: str | None = None  #: why what was saved last does not run, where its files are watched
    remarks: tuple[str, ...] = ()  #: what of its registration has no effect now, and why

    @property
    def is_wanted(self) -> bool:
        """Whether it should run now: it was not stopped, has not completed, and waits for no next run
        or client.
        """
        resting = (ServiceStatus.COMPLETED, ServiceStatus.SCHEDULED, ServiceStatus.ASLEEP)
        return self.desired_status is DesiredStatus.RUNNING and self.status not in resting

    @property
    def is_offered(self) -> bool:
        """Whether it should run now, or as soon as a client comes."""
        return self.is_wanted or self.status is ServiceStatus.ASLEEP
