"""Why an instance has ended, or has to be ended: the cause that the restart policy goes by, and a reason that
the user reads. And `Outcome`, what callers that wait for a start or a stop get to know.
"""

from __future__ import annotations

import trio

from ..core import restart
from ..core.restart import EX_CONFIG, Cause, Ending, Exit
from ..errors import AgentManagerError
from ..models import Instance, InstanceEnd, utc_now
from .launcher import Child

LAST_OUTPUT = "; its last output:\n"
"""Between the reason and the end of the log, in `Instance.error_message`."""


async def not_ready(child: Child, timeout_s: float, seen: str) -> Ending:
    """It lives and is not ready in time. `seen`: what it has shown instead."""
    misfortune = await child.misfortune()
    cause, reason = misfortune or (Cause.NOT_READY, f"not ready within {timeout_s:g} s: {seen}")
    return Ending(cause, _with_last_words(reason, child))


async def exited(child: Child, exit: Exit, ready_for_s: float | None, *, is_job: bool) -> Ending:
    """Its process has ended unasked. `ready_for_s`: None if it was never ready."""
    if exit.node_lost:
        return Ending(Cause.NODE_LOST, exit.node_lost, exit, ready_for_s)
    if is_job and child.completes and exit == Exit(code=0):
        return Ending(Cause.COMPLETED, "completed", exit, ready_for_s)
    if exit == Exit(code=EX_CONFIG) and (words := child.last_words()):
        return Ending(Cause.EXITED, words, exit, ready_for_s)
    if ready_for_s is None:
        if misfortune := await child.misfortune():
            return Ending(*misfortune, exit)
        how = child.out_of_memory(exit) or exit
        return Ending(Cause.EXITED, _with_last_words(f"ended before it was ready: {how}", child), exit)
    out_of_memory = child.out_of_memory(exit)
    cause, reason = Cause.EXITED, f"ended unasked after {ready_for_s:.1f} s: {out_of_memory or exit}"
    if out_of_memory is None and exit.signal in restart.FROM_OUTSIDE:
        reason += ", which another program or the system sent, not this manager"
    elif exit == Exit(code=0) and not child.completes:
        cause = Cause.ENDED_FROM_OUTSIDE
        reason += "; a hosted agent ends so when another program sends it SIGTERM"
    return Ending(cause, _with_last_words(reason, child), exit, ready_for_s)


async def report(view: Instance, child: Child, exit: Exit, ending: Ending | None, reason: str) -> InstanceEnd:
    """How a run of this instance ended. `ending`: None where the manager ended it, for this `reason`."""
    now = utc_now()
    return InstanceEnd(
        view.service_id,
        view.instance_id,
        view.slot,
        now,
        planned=ending is None or ending.cause is Cause.COMPLETED,
        reason=reason if ending is None else ending.reason.partition(LAST_OUTPUT)[0],
        exit=str(exit),
        pid=child.record.pid,
        ran_s=max(0.0, (now - child.record.started_at).total_seconds()),
        output=await child.last_output(),
        node=view.node,
    )


def _with_last_words(reason: str, child: Child) -> str:
    words = child.last_words()
    return f"{reason}{LAST_OUTPUT}{words}" if words else reason


class Outcome:
    """Success, or the first failure; a later success replaces the failure."""

    def __init__(self) -> None:
        self._known = trio.Event()
        self._error: AgentManagerError | None = None

    def succeed(self) -> None:
        self._error = None
        self._known.set()

    def fail(self, error: AgentManagerError) -> None:
        if not self._known.is_set():
            self._error = error
            self._known.set()

    @property
    def known(self) -> bool:
        return self._known.is_set()

    async def wait(self) -> None:
        await self._known.wait()
        if self._error is not None:
            # A new one for each caller: a traceback belongs to one raise.
            raise type(self._error)(self._error.message)
