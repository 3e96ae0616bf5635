"""What follows when an instance ends unasked: start it again, and when; or give up, and why.

A policy here is a function of values: it reads no clock, draws no random number and never sleeps.

The rules:

* `on-failure` restarts what failed, `always` also what ended well, `never` nothing.
* Ending well is exit code 0 after having been ready; of a job, which is never restarted or runs by a
  schedule, at any time: it has completed. Any other service that ends before it was ever ready has failed,
  whatever its exit code says (as systemd takes it for `Type=notify`). A hosted agent never ends by itself:
  one that has ended got a signal from another program, and has not ended well.
* At most `max_restart_count` restarts within any `restart_window`; the next failure gives up.
* The n-th restart in a window waits `restart_delay` · 2ⁿ, at most `restart_delay_max`, ±20 %, so that
  instances that fell together do not rise together.
* A job whose exit code is not known, as its process was adopted or its node is lost, is not repeated: its
  work might be done twice.
* After being ready for `stable_after`, its earlier failures are forgiven.
* A failure that cannot get better by itself is final: the program cannot be executed, or it says with exit
  code 78 (EX_CONFIG of sysexits.h) that it can never start.
* A failure that is not the service's fault (the system cannot start a process, another program took the port,
  its node is lost) does not count against the budget. A caller that waits for a start keeps waiting if the
  next try comes soon. After a node is lost it comes at once.
* No restart loops without a pause: from the second restart on the delay is at least 0.1 s. With a
  `restart_delay` of zero it stays at that and does not double: zero asks for the service back at once.
"""

from __future__ import annotations

import signal
from enum import Enum, auto

from attrs import evolve, frozen

from ..models import RestartMode, ServiceConfig

EX_CONFIG = 78
FROM_OUTSIDE = frozenset({signal.SIGTERM, signal.SIGKILL, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT})
"""Signals that no fault of the program itself raises: another process has sent them."""
MIN_REPEATED_DELAY_S = 0.1
_AT_ONCE_S = 0.5
JITTER = 0.2


LOST = "lost with its node"
"""How an `Exit` is shown that is `node_lost`."""


@frozen
class Exit:
    """How a process ended. Neither code nor signal: not known, as this manager was not its parent."""

    code: int | None = None
    signal: int | None = None
    node_lost: str = ""
    """Why it is counted as ended though it may live: `node b was lost (silent for 15 s)`."""

    @property
    def is_known(self) -> bool:
        return self.code is not None or self.signal is not None

    def __str__(self) -> str:
        if self.node_lost:
            return LOST
        if self.signal is not None:
            try:
                return signal.Signals(self.signal).name
            except ValueError:  # a real-time signal
                return f"signal {self.signal}"
        return "unknown" if self.code is None else f"exit code {self.code}"


class Cause(Enum):
    """Why an instance has ended, or could not be started."""

    EXITED = auto()
    COMPLETED = auto()  #: a job, with exit code 0
    ENDED_FROM_OUTSIDE = auto()  #: in good order, by a signal of another program
    NOT_READY = auto()  #: alive, and not ready within the startup timeout
    UNHEALTHY = auto()  #: alive, and failing its checks for longer than the recovery threshold
    CANNOT_EXECUTE = auto()  #: the program is missing, not executable, not a program
    PORT_TAKEN = auto()  #: another process holds the port that the user fixed
    PORT_LOST = auto()  #: another process took the port that the supervisor had chosen
    SHORTAGE = auto()  #: the system is out of processes, descriptors or memory just now
    NODE_LOST = auto()  #: its node is given up, and what runs there is not known


@frozen
class Ending:
    """How one try ended by itself, or had to be ended."""

    cause: Cause
    reason: str  #: for the user, with the last words of the process
    exit: Exit | None = None
    ready_for_s: float | None = None  #: None: it was never ready

    @property
    def well(self) -> bool:
        served = self.cause is Cause.EXITED and self.ready_for_s is not None and self.exit == Exit(code=0)
        return served or self.cause is Cause.COMPLETED

    @property
    def hopeless(self) -> bool:
        if self.cause is Cause.EXITED:
            return self.exit == Exit(code=EX_CONFIG)
        return self.cause is Cause.CANNOT_EXECUTE

    @property
    def blameless(self) -> bool:
        return self.cause in (Cause.PORT_LOST, Cause.SHORTAGE, Cause.NODE_LOST)


@frozen
class History:
    """The restarts of an instance since an operator last started it."""

    restarts: tuple[float, ...] = ()  #: monotonic times, in seconds, of those that count against the budget
    blameless: int = 0  #: how many in a row, up to now, that do not count
    total: int = 0

    def left(self, config: ServiceConfig, *, now: float, ready_for_s: float | None = None) -> int | None:
        """How many restarts the budget still allows; None if the policy is never to restart."""
        if config.restart_mode == RestartMode.NEVER:
            return None
        history = self.forgiven(config, ready_for_s)
        return max(0, config.max_restart_count - len(history.recent(config, now)))

    def forgiven(self, config: ServiceConfig, ready_for_s: float | None) -> History:
        if ready_for_s is None or ready_for_s < config.stable_after:
            return self
        return evolve(self, restarts=(), blameless=0)

    def recent(self, config: ServiceConfig, now: float) -> tuple[float, ...]:
        return tuple(at for at in self.restarts if at > now - config.restart_window)


@frozen
class Again:
    delay_s: float
    history: History

    @property
    def same_try(self) -> bool:
        """Whether a caller that waits for a start keeps waiting, because the next try comes at once."""
        return self.history.blameless > 0 and self.delay_s < _AT_ONCE_S


@frozen
class GiveUp:
    reason: str


@frozen
class Done:
    """It completed, and its policy does not restart it."""


Decision = Again | GiveUp | Done


def decide(config: ServiceConfig, history: History, ending: Ending, *, now: float, rand: float) -> Decision:
    """What follows `ending`. `now` is monotonic, in seconds; `rand` is from [0, 1) and spreads the delay."""
    mode = config.restart_mode
    history = history.forgiven(config, ending.ready_for_s)
    if config.is_job and config.command:
        if ending.cause is Cause.NODE_LOST:
            return GiveUp(f"{ending.reason}; what it had done is not known, so it is not repeated")
        if ending.exit is not None and not ending.exit.is_known:
            return Done()
    if ending.cause is Cause.COMPLETED or (ending.well and mode != RestartMode.ALWAYS):
        return Done()
    # A fixed port that is taken at the first start is the operator's problem. On a restart it may come free.
    at_first_start = not history.total and ending.ready_for_s is None
    if ending.hopeless or (ending.cause is Cause.PORT_TAKEN and at_first_start):
        return GiveUp(ending.reason)
    if mode == RestartMode.NEVER:
        return GiveUp(f"{ending.reason} (its policy is never to restart)")
    if ending.blameless:
        first_s = 0.0 if ending.cause is Cause.NODE_LOST else MIN_REPEATED_DELAY_S
        delay = _delay(first_s, config.restart_delay_max, history.blameless)
        return Again(
            _spread(delay, rand),
            evolve(history, blameless=history.blameless + 1, total=history.total + 1),
        )
    recent = history.recent(config, now)
    if len(recent) >= config.max_restart_count:
        return GiveUp(
            f"{ending.reason} (given up after {len(recent)} restarts within {config.restart_window:g} s)"
        )
    delay = _delay(config.restart_delay, config.restart_delay_max, len(recent))
    return Again(_spread(delay, rand), History((*recent, now), 0, history.total + 1))


def _delay(first_s: float, max_s: float, earlier: int) -> float:
    if not earlier:
        return min(first_s, max_s)
    if not first_s:
        return MIN_REPEATED_DELAY_S
    # 2⁶⁴ times the first delay is beyond any maximum; a float would overflow at 2¹⁰²⁴.
    doubled = max(first_s, MIN_REPEATED_DELAY_S / 2) * 2.0 ** min(earlier, 64)
    return max(MIN_REPEATED_DELAY_S, min(max_s, doubled))


def _spread(delay_s: float, rand: float) -> float:
    return delay_s * (1 - JITTER + 2 * JITTER * rand)
