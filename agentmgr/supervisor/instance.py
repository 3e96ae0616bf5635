"""One instance's life, from its first launch until it is stopped or given up.

`InstanceTask.live` is the story: launch, wait until ready, watch, end, back off, again. A restart is a round
of its loop. Commands reach it through three cancel scopes: `stop` cancels `_until_stopped`, `start_now`
cancels `_backoff`, and `stop(force=True)` cuts `drain` short. However a try ends, by return, exception or
cancellation, its process is ended on the way out, with its descendants; only `leave` lets it live on.
"""

from __future__ import annotations

import logging
import math
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager
from datetime import timedelta
from typing import Any

import trio
from attrs import evolve, frozen

from ..core import lifecycle, restart
from ..core.health import ProbeResult
from ..core.lifecycle import InstanceEvent
from ..core.restart import Again, Cause, Ending, Exit, GiveUp, History
from ..core.scaling import Turns
from ..errors import PortNotAvailable, ServiceFailedToStart, WrongState, leaves
from ..models import (
    SERVING,
    HealthCheck,
    HealthStatus,
    Instance,
    InstanceEnd,
    OnManagerDeath,
    ServiceSpec,
    ServiceStatus,
    utc_now,
)
from . import endings
from .draining import InstanceDrain
from .endings import Outcome
from .health_watch import HealthWatch
from .launcher import CannotLaunch, Child, Slot
from .recorder import RetryingRecorder
from .start_permit import Missing, StartPermit, release_late

log = logging.getLogger("agentmgr.supervisor")


_ROOM_S = 3.0  #: until an instance makes room for its successor: something else may become free at once
_LAST_LOOK_S = 1.0
"""After the startup deadline it is asked once more, for so long: the deadline passes without a question while
the manager itself is suspended."""


@frozen
class SupervisorContext:
    """What all instances of one supervisor share."""

    recorder: RetryingRecorder
    missing: Callable[[ServiceSpec], Missing | None]
    """A dependency that it has to wait for; None when all are there."""
    health_check_interval: float
    random: Callable[[], float]  #: from [0, 1)
    probes: trio.CapacityLimiter
    node_name: Callable[[str], str]  #: of a node's id, for people; empty where there is no cluster


class InstanceTask:
    def __init__(
        self,
        spec: ServiceSpec,
        view: Instance,
        slot: Slot,
        context: SupervisorContext,
        adopted: Child | None = None,
    ) -> None:
        self.spec = spec
        self.view = view  #: as others may see it; replaced at each change
        self.finished = False  #: it will not be launched again
        self.retired = False  #: it drains as one too many; another instance may start beside it
        self.over = trio.Event()  #: its task has ended, and nothing is left of its process
        self.sessions: int | None = None  #: conversations in its memory, as it last said
        self.quiet_s: float | None = None  #: for how long it has been unused, as its host last said
        self.entry = context.recorder.entry(view.instance_id)
        self._config = spec.config
        self._slot = slot
        self._context = context
        self._adopted = adopted
        self._child: Child | None = None  #: None once it is being ended
        self._last: Child | None = None  #: the latest one, also while it is being ended
        self._ready_at: float | None = None
        self._health = HealthWatch(self._config, context.health_check_interval, context.random)
        self._history = History()
        self._ending: Ending | None = None  #: of this run, once it has ended unasked
        self._first_try = Outcome()
        self._until_stopped = trio.CancelScope()
        self._backoff = trio.CancelScope()
        self._permit = StartPermit(
            spec,
            slot,
            context.missing,
            context.recorder.news,
            waits=lambda reason: self._report(error_message=reason),
            fail=self._fail_waiting,
        )
        self.drain = InstanceDrain(view.instance_id, self._config, context.recorder)
        self._for_good = False  # no other instance takes its place, and its clients learn that
        self._leave = False
        self._unused: str | None = None  # why it is ended, where that is because nothing uses it

    async def run(self) -> None:
        """`live`, whose failures, of whatever kind, must not reach the task of another instance."""
        try:
            await self.live()
        except* Exception as failures:
            log.exception("internal error: the task of %s/%d failed", self.spec.name, self.view.slot)
            self._crashed(next(leaves(failures)))
        finally:
            self._first_try.fail(WrongState(f"service {self.spec.name} was stopped before it was ready"))
            self.over.set()

    def rest(self) -> None:
        """In place of `run`, for one that has completed under an earlier manager."""
        self.finished = True
        self._slot.close()
        self._first_try.succeed()
        self.over.set()

    # The story

    async def live(self) -> None:
        """Launches and watches, again and again, until it is stopped, given up, or has completed."""
        try:
            with self._until_stopped:
                while (backoff := await self._try_once()) is not None:
                    with backoff:
                        await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await self.entry.written()
            self._slot.close(lease=self._unused is not None, leave=self._leave)
            if self.stopped or not self.finished:
                self._end_of_story()
            self.finished = True

    async def _try_once(self) -> trio.CancelScope | None:
        """One launch, to its end. Returns the backoff before the next launch, or None if there is none."""
        self._ending = None
        self._become(InstanceEvent.LAUNCH, next_restart_at=None)
        try:
            async with self._start_permit() as permit, self._launched() as child:
                # Decide and report at once; leaving the block then ends the rest of its processes.
                return self._decide(await self._watch(child, permit))
        except CannotLaunch as problem:
            self._context.recorder.instance_ended(
                InstanceEnd(
                    self.spec.service_id,
                    self.view.instance_id,
                    self.view.slot,
                    utc_now(),
                    False,
                    problem.reason,
                )
            )
            lost = Exit(node_lost=problem.reason) if problem.cause is Cause.NODE_LOST else None
            return self._decide(Ending(problem.cause, problem.reason, lost))

    async def _watch(self, child: Child, permit: ExitStack) -> Ending:
        """Waits until it is ready, then checks it regularly, until it exits or must be ended."""
        exit: Exit | None = None
        hopeless: Ending | None = None

        async def notice_exit() -> None:
            nonlocal exit
            exit = await child.wait_exit()
            nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(notice_exit)
            nursery.start_soon(release_late, permit)
            with permit:  # held until it is ready, or has failed to be
                hopeless = await self._become_ready(child)
            if hopeless is None:
                nursery.start_soon(self._notice_serving, child)
                hopeless = await self._check_regularly(child)
            nursery.cancel_scope.cancel()
        if exit is None:
            assert hopeless is not None
            return hopeless
        return await endings.exited(child, exit, self._ready_for_s(), is_job=self._config.is_job)

    async def _become_ready(self, child: Child) -> Ending | None:
        record = child.record
        if (seen := await self._unready(child)) is not None:
            return await endings.not_ready(child, self._config.startup_timeout, seen)
        if child.record != record:
            self.entry.set(child.record)
        await self.entry.written()
        self._ready_at = trio.current_time()
        self._health.begin()
        self._become(
            InstanceEvent.READY,
            health=HealthStatus.HEALTHY,
            ready_at=utc_now(),
            error_message=None,
            serves=child.serves or None,
        )
        self._first_try.succeed()
        return None

    async def _unready(self, child: Child) -> str | None:
        """What it has shown instead of being ready in time; None: it is ready."""
        timeout_s = self._config.startup_timeout
        while True:
            if child.silent:  # no time counts in which nothing is heard of it, as of one to be adopted
                self._report(error_message=child.silent)
                await child.wait_heard()
            seen, silent = "", False
            for patience_s in (timeout_s, min(timeout_s, _LAST_LOOK_S)):
                with trio.move_on_after(patience_s):
                    await child.wait_ready()
                    return None
                silent |= bool(child.silent)
                seen = seen or await child.unready()
            if not silent:
                return seen

    async def _notice_serving(self, child: Child) -> None:
        """Reports it as soon as it opens its port. Checks notice that too, but later."""
        if not child.serves:
            with trio.move_on_after(self._config.startup_timeout):
                await child.wait_serving()
            self._report(serves=child.serves)

    async def _check_regularly(self, child: Child) -> Ending:
        """Returns when it has been unhealthy for too long and its policy allows a restart."""
        while True:
            await self._next_check(child)
            check = await self.check(fresh=False)
            if check is not None and self._health.overdue:
                ending = Ending(
                    Cause.UNHEALTHY, f"unhealthy: {check.reason}", ready_for_s=self._ready_for_s()
                )
                if isinstance(self._decision(ending), Again):
                    return ending

    async def _next_check(self, child: Child) -> None:
        """Returns when the next regular check is due; of one that is silent, also as soon as it is heard."""
        if not child.silent:
            await self._health.next_check()
            return
        async with trio.open_nursery() as nursery:

            async def hear() -> None:
                await child.wait_heard()
                nursery.cancel_scope.cancel()

            nursery.start_soon(hear)
            await self._health.next_check()
            nursery.cancel_scope.cancel()

    @asynccontextmanager
    async def _start_permit(self) -> AsyncIterator[ExitStack]:
        """Waits until it may be launched. Closing the yielded stack lets another one."""
        if self._adopted is not None:
            yield ExitStack()
            return
        before = self.view.error_message
        async with self._permit.wait() as permit:
            self._report(error_message=before)
            yield permit

    @asynccontextmanager
    async def _launched(self) -> AsyncIterator[Child]:
        """The running process; leaving the block ends it. Raises `CannotLaunch`."""
        child, self._adopted = self._adopted, None
        adopted = child is not None
        if child is None:
            child = await self._slot.launch()
        record = child.record
        self._child, self._last, self._ready_at = child, child, None
        self.entry.set(record)
        try:
            self._report(
                node_id=record.node_id,
                node=self._context.node_name(record.node_id),
                gpus=record.gpus,
                pid=record.pid,
                host=record.host,
                port=record.port,
                started_at=record.started_at,
                spec_version=record.spec_version,
                ready_at=None,
                adopted=adopted,
                serves=None,
                journal_degraded=False,
                unenforced=child.unenforced,
                restarts_left=self._history.left(self._config, now=trio.current_time()),
            )
            yield child
        finally:
            self._child = self.sessions = self.quiet_s = None
            if self._leave:
                child.release()
            else:
                with trio.CancelScope(shield=True):
                    await self._end(child)

    async def _end(self, child: Child) -> None:
        """Drains it if it has to stop, ends its process, and records that it is gone."""
        adopted = self.view.adopted and self.view.status is ServiceStatus.STARTING
        if self.stopped and (self.view.status in SERVING or adopted):
            self._become(InstanceEvent.DRAIN)
            await self.drain.run(child, for_good=self._for_good)
        if InstanceEvent.STOP in lifecycle.TRANSITIONS[self.view.status]:
            self._become(InstanceEvent.STOP)
        exit = await child.end(self._config.stop_timeout)
        reason = "stopped"
        if not self._for_good:
            reason += f": {self._unused or 'another instance takes its place, or fewer are to run'}"
        ending = self._ending
        if ending is None and not self.stopped:  # `_crashed` will say so
            ending = Ending(
                Cause.EXITED, "ended because the manager failed inside; its log has the traceback"
            )
        end = await endings.report(self.view, child, exit, ending, reason)
        self._context.recorder.instance_ended(end)
        self._report(pid=None, last_exit=str(exit))
        self.entry.set(None)

    def _decision(self, ending: Ending) -> restart.Decision:
        now, rand = trio.current_time(), self._context.random()
        return restart.decide(self._config, self._history, ending, now=now, rand=rand)

    def _decide(self, ending: Ending) -> trio.CancelScope | None:
        self._ending = ending
        decision, now = self._decision(ending), trio.current_time()
        facts: dict[str, Any] = {"health": HealthStatus.UNKNOWN, "error_message": ending.reason}
        if ending.exit is not None:
            facts |= {"pid": None, "last_exit": str(ending.exit)}
        if isinstance(decision, Again):
            self._history = decision.history
            self._become(
                InstanceEvent.RETRY,
                restart_count=decision.history.total,
                restarts_left=decision.history.left(self._config, now=now),
                next_restart_at=utc_now() + timedelta(seconds=decision.delay_s),
                **facts,
            )
            if not decision.same_try:
                self._fail_first_try(ending, f"{ending.reason}\n(next try in {decision.delay_s:.1f} s)")
            self._backoff = trio.CancelScope(deadline=now + decision.delay_s)
            return self._backoff
        if isinstance(decision, GiveUp):
            self._become(InstanceEvent.GIVE_UP, **facts | {"error_message": decision.reason})
            self._fail_first_try(ending, decision.reason)
        else:
            done = ending.cause is Cause.COMPLETED
            event = InstanceEvent.COMPLETE if done else InstanceEvent.GONE
            self._become(event, **facts | {"error_message": None})
            self._first_try.succeed()
        self.finished = True
        return None

    def _fail_waiting(self, why: str) -> None:
        self._first_try.fail(ServiceFailedToStart(f"service {self.spec.name} {why}"))

    def _fail_first_try(self, ending: Ending, reason: str) -> None:
        taken = ending.cause is Cause.PORT_TAKEN
        kind = PortNotAvailable if taken else ServiceFailedToStart
        self._first_try.fail(kind(f"service {self.spec.name} failed to start: {reason}"))

    def _end_of_story(self) -> None:
        if not self._leave and self.view.status is not ServiceStatus.STOPPED:
            self._become(
                InstanceEvent.GONE, pid=None, port=None, health=HealthStatus.UNKNOWN, next_restart_at=None
            )

    # Commands, and what others may ask

    @property
    def stopped(self) -> bool:
        """Whether `stop` or `leave` was called."""
        return self._until_stopped.cancel_called

    @property
    def serving(self) -> bool:
        return self.view.status in SERVING and not self.stopped

    @property
    def token(self) -> str:
        """Of its latest process, also while that drains; "" for a command, which gives no proof of it."""
        return "" if self._last is None or self._config.command else self._last.record.token

    @property
    def digest(self) -> str:
        """Of the files that its latest process was launched with; "" where that is not known."""
        return "" if self._last is None else self._last.record.digest

    def outdated(self, spec: ServiceSpec) -> bool:
        """Whether it is not serving yet, and was started from another configuration than `spec`."""
        mine = self.spec
        same = (mine.config, mine.host, mine.port) == (spec.config, spec.host, spec.port)
        return not (self.serving or same)

    def seen(self) -> Instance:
        """`view`, with the current status text of the process (sd_notify's `STATUS=`)."""
        said = None if self._child is None else self._child.said
        return self.view if said is None else evolve(self.view, said=said)

    async def started(self) -> None:
        """Waits until it is first ready since an operator's start.

        Raises `ServiceFailedToStart`, `PortNotAvailable`, or `WrongState` when it was stopped.
        """
        await self._first_try.wait()

    async def lacks_room_of(self, other: InstanceTask) -> None:
        """Returns when it has waited for some seconds for what is reserved for the other one."""
        news, other_id = self._context.recorder.news, other.view.instance_id
        while True:
            while not self._slot.gains_by_end_of(other_id):
                await news.park()
            with trio.move_on_after(_ROOM_S) as patience:
                while self._slot.gains_by_end_of(other_id):
                    await news.park()
            if patience.cancelled_caught:
                return

    def start_now(self) -> None:
        """Forgets past failures and cuts the backoff short, because an operator asks for a start."""
        if self.view.status not in SERVING:
            self._history = History()
            if self._first_try.known:
                self._first_try = Outcome()
                self._context.recorder.news.unpark_all()  # if it waits for a dependency, it says so again
            self._backoff.cancel()

    async def is_draining(self) -> bool:
        """Whether its process was asked to drain already: by an earlier manager."""
        return self._child is not None and await self._child.is_draining()

    async def promise_another(self) -> None:
        """Its clients hear that it restarts: it drains already, and will be replaced."""
        if self._child is not None:
            await self.drain.promise_another(self._child)

    def stop(
        self,
        *,
        force: bool = False,
        kill: bool = False,
        for_good: bool = False,
        unused: str | None = None,
    ) -> None:
        """Makes it drain its sessions and end; `over` is set when it has.

        `for_good`: no other instance takes its place, and its clients learn that. `force` cuts the draining
        short, `kill` also the time between TERM and KILL. `unused`: it is ended because nothing uses it, and
        keeps its port.
        """
        self.drain.be_quick()
        self._for_good, self._unused = for_good, unused
        if force:
            self.drain.cut_short()
        if kill and self._last is not None:
            self._last.kill()
        self.finished = True
        self._until_stopped.cancel()
        if self.over.is_set():
            self._end_of_story()

    def retire(self) -> None:
        """Makes it drain as long as its turns take, and end: others go on with its sessions."""
        self.retired = True
        self.stop()
        self.drain.be_patient()

    def leave(self) -> None:
        """Ends this task and lets the process live on, unless its `on_manager_death` is `die`."""
        self.drain.be_quick()
        self._leave = self._config.on_manager_death == OnManagerDeath.KEEP
        self.finished = True
        self._until_stopped.cancel()

    async def ask_turns(self) -> Turns | None:
        """How many turns are under way in it; None: it cannot tell. Raises OSError; the deadline is the
        caller's.
        """
        return None if self._child is None else await self._child.turns()

    # Health

    async def check(self, *, fresh: bool = True) -> HealthCheck | None:
        """Probes it and updates its health; None when it has no process, or cannot be asked now.

        Unless it is to be `fresh`, its node may answer with what it found out lately.
        """
        child = self._child
        if child is None:
            return None
        async with self._context.probes:
            result = await child.probe(self._config.health_check_timeout, fresh=fresh)
        if result is None:
            if self._child is child and self.view.status in SERVING:
                self._report(health=HealthStatus.UNKNOWN, error_message=child.silent)
            return None
        if self._child is child and self.view.status in SERVING:
            self.sessions, self.quiet_s = result.sessions, result.quiet_s
            self._judge(result)
            if child.serves or self.view.serves is not None:
                self._report(serves=child.serves)
        check = HealthCheck(
            service_id=self.spec.service_id,
            instance_id=self.view.instance_id,
            status=self._health.vitals.status,
            checked_at=utc_now(),
            ok=result.ok,
            latency_s=result.latency_s,
            reason=result.reason,
        )
        self._context.recorder.health_checked(check)
        return check

    async def quiet_now_s(self) -> float:
        """For how long it has had no connection and no turn, as its host says; 0: it has, or cannot be asked.

        `math.inf` for a command: only its connections can be seen, by the gateway.
        """
        if self._config.command:
            return math.inf
        self.quiet_s = None
        await self.check()
        return self.quiet_s or 0.0

    def _judge(self, result: ProbeResult) -> None:
        self._health.judge(result)
        health, now = self._health.vitals.status, trio.current_time()
        facts = {
            "health": health,
            "said": result.said if result.ok else self.view.said,
            "journal_degraded": result.journal_degraded if result.ok else self.view.journal_degraded,
            "error_message": result.reason,  # or how it is degraded, in its own words
            "restarts_left": self._history.left(self._config, now=now, ready_for_s=self._ready_for_s()),
        }
        unhealthy = health is HealthStatus.UNHEALTHY
        if unhealthy and self.view.status is ServiceStatus.RUNNING:
            self._become(InstanceEvent.FAILING, **facts)
        elif not unhealthy and self.view.status is ServiceStatus.UNHEALTHY:
            self._become(InstanceEvent.WELL, **facts)
        else:
            self._report(**facts)

    # Bookkeeping

    def _crashed(self, error: BaseException) -> None:
        """Reports that our own code has failed. Its process was ended on the way out."""
        reason = f"internal error, please report it: {error!r}"
        self._become(InstanceEvent.CRASH, pid=None, error_message=reason)
        self._first_try.fail(ServiceFailedToStart(f"service {self.spec.name} failed to start: {reason}"))

    def _ready_for_s(self) -> float | None:
        return None if self._ready_at is None else trio.current_time() - self._ready_at

    def _become(self, event: InstanceEvent, **changes: Any) -> None:
        self._report(status=lifecycle.after(self.view.status, event), **changes)

    def _report(self, **changes: Any) -> None:
        view = evolve(self.view, **changes)
        if view != self.view:
            self.view = view
            self._context.recorder.instance_changed(view)
