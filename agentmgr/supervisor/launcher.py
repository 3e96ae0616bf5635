"""The supervisor's interface to what runs the instances: child processes, or functions of this program.

A `Launcher` gives an instance a `Slot`, which keeps its address over all its restarts. A `Slot` launches
a `Child`, one at a time. A `Child` has an address, an exit, a way to ask it how it is, and a way to end it.

What a child process gets, and what it has to do (`agentmgr.agent` is one; any command can be):

* it gets a session and process group of its own, default signal dispositions, `/dev/null` as stdin, and its
  log file, opened for appending, as stdout and stderr, so that it can outlive the manager;
* it gets the manager's environment and the service's, and `HOST`, `PORT`, `AGENTMGR_SERVICE`,
  `AGENTMGR_INSTANCE_ID`, `AGENTMGR_INSTANCE_TOKEN` (secret) and `PYTHONUNBUFFERED=1`;
* an agent file is run as `PYTHON -P bootstrap.py agentmgr.agent PATH --fd N` (`agentmgr.bootstrap`): N is a
  bound and listening socket. What differs from the defaults of `HostConfig` follows as `--options JSON`. With
  `--lifeline-fd M` it ends as on SIGTERM at the end of the pipe M: the manager is gone. It answers at
  `HEALTH_PATH` with a proof that it holds the token (`core.proof`);
* a command finds `{host}` and `{port}` filled in, `NOTIFY_SOCKET` for sd_notify(3), and `WATCHDOG_USEC` if
  `health` is `watchdog`. `agentmgr.supervisor.child` says how it is found ready and well;
* it inherits one more descriptor, which it need not know: the lock that shows that it lives
  (`agentmgr.supervisor.instance_lock`);
* on SIGTERM it ends within `stop_timeout`, else it gets SIGKILL. Exit code 78 means that it can never start;
  the last lines of its output say why.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import trio

from ..core.health import ProbeResult
from ..core.restart import Cause, Exit
from ..core.scaling import Turns
from ..models import ForkServerState, InstanceRecord, ServiceSpec, Usage
from .log_source import LogSource

MAX_CONCURRENT_STARTS = 16  #: on one machine
MAX_CONCURRENT_PROBES = 64

GpuIds = tuple[str, ...] | None
"""The GPUs that an instance may use, as its machine numbers them; None: what its environment says."""


class CannotLaunch(Exception):
    """The child could not be started, and why. It does not leave the supervisor."""

    def __init__(self, cause: Cause, reason: str) -> None:
        """`Cause.NODE_LOST`: whether it was started before its node was lost is not known."""
        super().__init__(reason)
        self.cause = cause
        self.reason = reason


class Child(Protocol):
    """One launched (or adopted) instance, until it has ended."""

    @property
    def record(self) -> InstanceRecord: ...

    @property
    def unenforced(self) -> tuple[str, ...]:
        """The limits of its configuration that are not enforced, and why."""

    @property
    def completes(self) -> bool:
        """Whether exit code 0 means that its work is done. A hosted agent never ends by itself."""

    @property
    def said(self) -> str | None:
        """The status text that it last reported, as by sd_notify's `STATUS=`."""

    @property
    def silent(self) -> str:
        """Why it cannot be asked anything now, as in `node b is silent`; empty while it can."""

    async def wait_heard(self) -> None:
        """Returns as soon as it can be asked, which is at once unless it is `silent`."""

    @property
    def serves(self) -> bool:
        """Whether clients can be sent to it: a process of it was seen to listen on its port."""

    async def wait_serving(self) -> None:
        """Returns when it serves, which some never do."""

    async def wait_ready(self) -> None:
        """Returns when it has shown that it is ready; the deadline is the caller's. May change `record`."""

    async def unready(self) -> str:
        """Why it is not ready yet: what was seen, and which option helps if that is no fault."""

    async def wait_exit(self) -> Exit:
        """Returns as soon as it has exited by itself, or is lost with its node; one waiter at a time.

        With `on_node_loss=wait` a lost node ends nothing: it returns when that node is back without it.
        """

    async def probe(self, timeout_s: float, *, fresh: bool = True) -> ProbeResult | None:
        """Checks it once; never raises. None: it cannot be asked now (`silent`), and no verdict follows.

        Unless it is to be `fresh`, the answer may be what its node found out lately.
        """

    async def turns(self) -> Turns | None:
        """Those that are under way; None: that cannot be seen. Raises OSError; the deadline is the
        caller's.
        """

    async def drain(self, code: int, answered: Callable[[bool], None]) -> None:
        """Makes it begin no sessions, and end each open one with this close code when the session is idle.

        Calls `answered`, at least once, with whether it knows when a session is idle. Returns when no session
        is left, or when it does not know; the deadline is the caller's.
        """

    async def is_draining(self) -> bool:
        """Whether it was asked to drain, perhaps by an earlier manager."""

    async def change_close_code(self, code: int) -> None:
        """Has one that drains close its connections with this code instead."""

    async def end(self, grace_s: float) -> Exit:
        """Ends it and its descendants: asks, waits `grace_s` seconds, kills. Returns when none is left.

        It is called after the child has exited, too. It raises nothing, and is shielded from cancellation.
        What is left on a lost node is ended when that is back: nothing waits for it here.
        """

    def kill(self) -> None:
        """Makes `end`, now or later, kill without waiting."""

    def release(self) -> None:
        """Leaves it running, for the next manager to adopt."""

    def last_words(self) -> str:
        """The last lines of its output since its launch; empty if there are none."""

    async def last_output(self) -> str:
        """The last lines of its output since its launch, as it wrote them, to be kept with its end."""

    def out_of_memory(self, exit: Exit) -> str | None:
        """How its memory limit has ended it; None if that did not."""

    async def misfortune(self) -> tuple[Cause, str] | None:
        """Why it cannot become ready, if that is not its fault, such as a taken port; for the user."""


class Slot(Protocol):
    """Where one instance runs, over all its restarts: its address, environment and limits."""

    async def place(self, waits: Callable[[str], None]) -> trio.Semaphore:
        """The start permits of the machine that `launch` will use. Waits until there is such a machine.

        `waits` is called with what it waits for, for the user, each time that changes.
        """

    def gains_by_end_of(self, instance_id: str) -> bool:
        """Whether `place` waits for what that instance has reserved, so that it must end first."""

    async def launch(self, gpus: GpuIds = None) -> Child:
        """Raises `CannotLaunch`."""

    def adopt(self, record: InstanceRecord) -> Child | None:
        """The child that `record` describes, if it still lives and is verifiably the same process."""

    def close(self, *, lease: bool = False, leave: bool = False) -> None:
        """Gives the address up; the instance will not be launched again.

        With `lease` its port is kept, without a socket, for the next slot of the same instance id. With
        `leave` its child, if it has one, lives on for the next manager.
        """


class Launcher(Protocol):
    """Makes slots for instances, and keeps what all instances share."""

    async def run(self) -> None:
        """Housekeeping while instances run; until cancelled."""

    def slot(self, spec: ServiceSpec, instance_id: str, position: int) -> Slot:
        """Where the instance will run. `position`: in its service's list. Raises `AgentManagerError`."""

    def end_lease(self, instance_id: str) -> None:
        """Gives up the port that was kept for the instance, if one was."""

    def stranger(self, record: InstanceRecord) -> str | None:
        """If the recorded process lives and another manager started it: which and whose, for the user."""

    async def sweep(self, keep: frozenset[str]) -> int:
        """Ends all processes that an earlier manager left, except holders of a token in `keep`; returns how
        many there were.
        """

    def troubles(self) -> tuple[str, ...]:
        """Faults that last now and end by themselves, such as a full disk; for the user."""

    def fork_servers(self) -> tuple[ForkServerState, ...]:
        """The processes that fork instances."""

    def forget(self, service_id: str) -> None:
        """The service is no more."""

    def preloaded(self, service_id: str) -> str | None:
        """What the next start of an agent finds imported, or why nothing; for the user."""

    def usage(self, instance_id: str) -> tuple[Usage, ...]:
        """What the instance has used lately, oldest first."""

    def open_log(self, spec: ServiceSpec, position: int) -> LogSource:
        """What the instances at that position wrote. Raises `AgentManagerError`."""

    def move_logs(self, old: str, new: str) -> None:
        """Lets a service that is called `new` from now on keep its logs."""

    def node_name(self, node_id: str) -> str:
        """What people call that node; empty where there is no cluster."""
