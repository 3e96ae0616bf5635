"""The supervisor's interface to what runs the instances: child processes, or functions of this program.

A `Launcher` gives an instance a `Slot`, which keeps its address over all its restarts. A `Slot` launches
a `Child`, one at a time. A `Child` has an address, an exit, a way to ask it how it is, and a way to end it.

What a child process gets, and what it owes (`agentmgr.agent` is one; any command can be):

* a session and process group of its own, default signal dispositions, `/dev/null` as stdin, and its log
  file, opened for appending, as stdout and stderr, so that it can outlive the manager;
* the manager's environment and the service's, and `HOST`, `PORT`, `AGENTMGR_SERVICE`, `AGENTMGR_INSTANCE_ID`,
  `AGENTMGR_INSTANCE_TOKEN` (secret) and `PYTHONUNBUFFERED=1`;
* an agent file is run as `PYTHON -P bootstrap.py agentmgr.agent PATH --fd N …` (`agentmgr.bootstrap`): N is a
  bound and listening socket. With `--lifeline-fd M` it ends as on SIGTERM at the end of the pipe M: the
  manager is gone. It answers at `HEALTH_PATH` with a proof that it holds the token (`core.proof`);
* a command finds `{host}` and `{port}` filled in, `NOTIFY_SOCKET` for sd_notify(3), and `WATCHDOG_USEC` if
  `health` is `watchdog`. How it is found ready and well says `agentmgr.supervisor.child`;
* whatever it is, it inherits one more descriptor, which it need not know: it is open as long as it lives;
* SIGTERM: end within `stop_timeout`, then SIGKILL comes. Exit code 78: "I can never start", last words on
  stderr.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from ..core.health import ProbeResult
from ..core.restart import Cause, Exit
from ..models import InstanceRecord, ServiceSpec, Usage


class CannotLaunch(Exception):
    """There is no child, and why; internal to the supervisor."""

    def __init__(self, cause: Cause, reason: str) -> None:
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
        """Whether exit code 0 means that its work is done. A hosted agent serves until it is told to end."""

    @property
    def said(self) -> str | None:
        """The status text that it last reported, as by sd_notify's `STATUS=`."""

    @property
    def serves(self) -> bool:
        """Whether clients can be sent to it, as far as was seen yet: something of it listens on its port."""

    async def wait_serving(self) -> None:
        """Returns when it serves, which some never do."""

    async def wait_ready(self) -> None:
        """Returns when it has shown that it is ready; the deadline is the caller's. May change `record`."""

    async def unready(self) -> str:
        """Why it is not ready yet: what was seen, and what its owner may set where that is no fault."""

    async def wait_exit(self) -> Exit:
        """Returns as soon as it has exited by itself; one waiter at a time."""

    async def probe(self, timeout_s: float) -> ProbeResult:
        """Asks it once how it is; never raises."""

    async def drain(self, code: int, answered: Callable[[bool], None]) -> None:
        """Has it end its conversations when nothing goes on in them, with this close code, and begin none.

        Tells `answered`, once or again, whether it knows when nothing goes on. Returns when none is left, or
        when it does not know; the deadline is the caller's.
        """

    async def is_draining(self) -> bool:
        """Whether it was asked to, perhaps by an earlier manager."""

    async def change_close_code(self, code: int) -> None:
        """Has one that drains close its connections with this code instead."""

    async def end(self, grace_s: float) -> Exit:
        """Ends it and its descendants: asks, waits `grace_s` seconds, kills. Returns when none is left.

        Also to be called after it has exited. Total: raises nothing, and runs shielded from cancellation.
        """

    def kill(self) -> None:
        """Makes `end`, now or later, kill without waiting."""

    def release(self) -> None:
        """Lets go of it and leaves it running, for the next manager to adopt."""

    def last_words(self) -> str:
        """The last lines of its output since its launch; empty where there are none."""

    async def misfortune(self) -> tuple[Cause, str] | None:
        """An outside reason why it does not become ready, such as a taken port: the cause, and a sentence."""


class Slot(Protocol):
    """Where one instance runs, over all its restarts: it keeps the address until it is closed."""

    async def launch(self) -> Child:
        """Raises `CannotLaunch`."""

    def adopt(self, record: InstanceRecord) -> Child | None:
        """The child that `record` describes, if it still lives and is beyond doubt that very one."""

    def close(self) -> None: ...


class Launcher(Protocol):
    """Makes slots for instances, and looks after what all of them have in common."""

    async def run(self) -> None:
        """Housekeeping while instances run; until cancelled."""

    def slot(self, spec: ServiceSpec, instance_id: str, position: int) -> Slot:
        """Where that instance of the service will run. Raises `AgentManagerError` where none can."""

    def stranger(self, record: InstanceRecord) -> str | None:
        """The recorded process and whose it is, in words, where it lives and another manager started it."""

    async def sweep(self, keep: frozenset[str]) -> int:
        """Ends all processes that an earlier manager left, except holders of a token in `keep`; returns how
        many there were.
        """

    def troubles(self) -> tuple[str, ...]:
        """Faults that are going on and recover by themselves, such as a full disk."""

    def usage(self, instance_id: str) -> tuple[Usage, ...]:
        """What the instance has used lately, oldest first."""
