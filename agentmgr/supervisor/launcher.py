"""What the supervisor asks of whatever runs the instances: today child processes of this machine.

A `Launcher` gives an instance a `Place`, which keeps its address over all its restarts. A `Place` launches
a `Child`, one at a time. A `Child` has an address, an exit, a way to ask it how it is, and a way to end it.

What a child process gets, and what it owes (`python -m agentmgr.agent` is one; any command can be):

* a session and process group of its own, default signal dispositions, `/dev/null` as stdin, and its log
  file, opened for appending, as stdout and stderr, so that it can outlive the manager;
* the manager's environment and the service's, and `HOST`, `PORT`, `AGENTMGR_SERVICE`, `AGENTMGR_INSTANCE_ID`,
  `AGENTMGR_INSTANCE_TOKEN` (secret) and `PYTHONUNBUFFERED=1`;
* an agent file is run as `PYTHON -m agentmgr.agent PATH --fd N …`: N is a bound and listening socket. With
  `--manager-fd M` it ends as on SIGTERM when the pipe M has come to its end: the manager is gone. It
  answers at `HEALTH_PATH` with a proof that it holds the token (`agentmgr.core.health`);
* a command finds `{host}` and `{port}` filled in, and is ready when a WebSocket handshake on `/` succeeds
  with a listener that belongs to its session, or when it sends `READY=1` to `NOTIFY_SOCKET` (sd_notify(3));
* whatever it is, it inherits one more descriptor, which it need not know: it is open as long as it lives;
* SIGTERM: end within `stop_timeout`, then SIGKILL comes. Exit code 78: "I can never start", last words on
  stderr.
"""

from __future__ import annotations

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
        """What of its configuration this launcher cannot enforce, and why."""

    @property
    def said(self) -> str | None:
        """What it tells of itself, if it tells anything."""

    async def wait_ready(self) -> None:
        """Returns when it has answered its first handshake; for ever patient, the caller has the deadline."""

    async def wait_exit(self) -> Exit:
        """Returns as soon as it has exited by itself; one waiter at a time."""

    async def probe(self, timeout_s: float) -> ProbeResult:
        """Asks it once how it is; never raises."""

    async def end(self, grace_s: float) -> Exit:
        """Ends it and all that it has started: asks, waits `grace_s`, kills. Returns when nothing is left.

        Also to be called after it has exited. Total: raises nothing, and runs shielded from cancellation.
        """

    def kill(self) -> None:
        """Has `end`, now or later, not wait for what was asked to end."""

    def release(self) -> None:
        """Lets go of it and leaves it running, for the next manager to adopt."""

    def last_words(self) -> str:
        """The last lines of its output since its launch; empty where there are none."""

    async def misfortune(self) -> tuple[Cause, str] | None:
        """What, other than itself, keeps it from becoming ready: the cause, and a sentence on it."""


class Place(Protocol):
    """Where one instance runs, over all its restarts: it keeps the address until it is closed."""

    async def launch(self) -> Child:
        """Raises `CannotLaunch`."""

    def adopt(self, record: InstanceRecord) -> Child | None:
        """The child that `record` describes, if it still lives and is beyond doubt that very one."""

    def close(self) -> None: ...


class Launcher(Protocol):
    """Makes places for instances, and looks after what all of them have in common."""

    async def run(self) -> None:
        """Whatever has to be looked after while instances run; until cancelled."""

    def place(self, spec: ServiceSpec, instance_id: str, slot: int) -> Place:
        """Where that instance of the service will run. Raises `AgentManagerError` where none can."""

    async def sweep(self, keep: frozenset[str]) -> int:
        """Ends all that an earlier manager of ours has left, except what holds a token in `keep`."""

    def troubles(self) -> tuple[str, ...]:
        """What does not work just now, and will again by itself, as a full disk."""

    def usage(self, instance_id: str) -> tuple[Usage, ...]:
        """What the instance has used lately, oldest first."""
