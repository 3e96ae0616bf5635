"""One instance of a node: its slot, and the child that runs in it, told from its launch to its end."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import trio
from attrs import evolve, frozen

from ..core.health import ProbeResult
from ..core.restart import Cause, Exit
from ..models import OnManagerDeath
from ..supervisor.health_watch import HealthWatch
from ..supervisor.launcher import CannotLaunch, Child, Slot
from .journal import Entry, NodeJournal
from .protocol import (
    CannotStart,
    End,
    Facts,
    InstanceState,
    Launch,
    Launched,
    unchanging,
)

log = logging.getLogger(__name__)

_DIED_WITH_DAEMON = "the daemon of its node ended, and it with that"  #: where `on_manager_death` is `die`


@frozen
class InstanceContext:
    """What all instances of one node share."""

    nursery: trio.Nursery
    journal: NodeJournal
    changed: Callable[[InstanceState], None]
    probes: trio.CapacityLimiter
    random: Callable[[], float]  #: from [0, 1)


class ChildRun:
    """One child, from its launch until none of its descendants is left."""

    def __init__(self, child: Child, entry: Entry, context: InstanceContext) -> None:
        self.child, self.entry = child, entry
        self.state = InstanceState(
            entry.record.instance_id,
            entry.record.token,
            child.completes,
            serves=child.serves,
            gpus=entry.record.gpus,
        )
        self.is_stray = False  #: it drains, and ends: its manager does not know it
        self.done = trio.Event()  #: it is over, or left to the next daemon
        self._context = context
        self._config = entry.spec.config
        self._asked_to_end = trio.CancelScope()
        self._not_its_fault = ""
        self._grace_s = self._config.stop_timeout  #: of an end that was not ordered
        self._health = HealthWatch(self._config, entry.check_interval_s, context.random)

    async def live(self) -> None:
        """Watches it, and ends it when it has exited or `end` was called.

        When it is cancelled it is left to the next daemon, unless it must not outlive this one.
        """
        cancelled = True
        try:
            with self._asked_to_end:
                await self._watch()
            cancelled = False
        except Exception:  # a fault of ours must not reach other instances
            log.exception("internal error: watching instance %s failed; ending it", self.state.instance_id)
            cancelled, self._not_its_fault = False, "internal error on its node; its daemon's log says more"
        finally:
            leave = cancelled and not self._asked_to_end.cancel_called
            if leave and self._config.on_manager_death == OnManagerDeath.KEEP:
                self.child.release()
            else:
                if leave:
                    self._not_its_fault = _DIED_WITH_DAEMON
                with trio.CancelScope(shield=True):
                    await self._end()
            self.done.set()

    async def end(self, grace_s: float) -> End:
        """Ends it and its descendants, if that was not done yet."""
        self.give_up(grace_s)
        await self.done.wait()
        return self.state.end or End(Exit())

    async def checked(self, timeout_s: float) -> ProbeResult | None:
        """Probes it now."""
        async with self._context.probes:
            result = await self.child.probe(timeout_s, fresh=True)
        if result is not None and self.state.end is None:
            self._report(health=result, said=self.child.said, serves=self.child.serves)
        return result

    def look(self) -> None:
        """Reports what changes without an event."""
        if self.state.end is None:
            self._report(said=self.child.said, serves=self.child.serves)

    async def drain(self, code: int) -> None:
        """As `Child.drain`; reports whether it knows when a session is idle."""
        await self.child.drain(code, lambda knows: self._report(knows_idle=knows))

    def give_up(self, grace_s: float, why: str = "") -> None:
        """As `end`, without waiting. `why`: the reason, where that is neither its own fault nor an order."""
        self._grace_s = grace_s
        self._not_its_fault = self._not_its_fault or why
        self._asked_to_end.cancel()

    async def _watch(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._until_serving)
            exit = await self.child.wait_exit()
            nursery.cancel_scope.cancel()
        # At once: what else belongs to its end takes longer.
        self._ended(await self._how(exit))

    async def _until_serving(self) -> None:
        child, timeout_s = self.child, self._config.startup_timeout
        while not self.state.ready:  # the manager decides when that takes too long
            with trio.move_on_after(timeout_s):
                await child.wait_ready()
                self.entry = evolve(self.entry, record=child.record)
                self._context.journal.write(self.entry)
                self._report(
                    ready=True,
                    ready_unasked=child.record.ready_unasked,
                    serves=child.serves,
                    health=ProbeResult(True),
                )
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._check_regularly)
            if not child.serves:
                with trio.move_on_after(timeout_s):
                    await child.wait_serving()
                self._report(serves=child.serves)

    async def _check_regularly(self) -> None:
        self._health.begin()
        while True:
            await self._health.next_check()
            await self.checked(self._config.health_check_timeout)

    async def _end(self) -> None:
        exit = await self.child.end(self._grace_s)
        if self.state.end is None:
            if self._not_its_fault:
                exit = Exit(node_lost=self._not_its_fault)
            self._ended(End(exit, output=await self.child.last_output()))
        self._report(over=True)

    async def _how(self, exit: Exit) -> End:
        child = self.child
        misfortune = None if self.state.ready else await child.misfortune()
        return End(
            exit,
            child.last_words(),
            await child.last_output(),
            child.out_of_memory(exit),
            words_of(misfortune),
        )

    def _ended(self, end: End) -> None:
        self.entry = evolve(self.entry, end=end)
        self._context.journal.write(self.entry)
        self._report(end=end)

    def _report(self, **changes: Any) -> None:
        before, self.state = self.state, evolve(self.state, **changes)
        if evolve(before, health=unchanging(before.health)) != evolve(
            self.state, health=unchanging(self.state.health)
        ):
            self._context.changed(self.state)


def _found_gone(entry: Entry, facts: Facts) -> Exit:
    if facts.boot_id and entry.record.boot_id != facts.boot_id:
        return Exit(node_lost=f"machine {facts.host_name} was booted since")
    dies = entry.spec.config.on_manager_death == OnManagerDeath.DIE
    return Exit(node_lost=_DIED_WITH_DAEMON) if dies else Exit()


def words_of(misfortune: tuple[Cause, str] | None) -> tuple[str, ...]:
    return () if misfortune is None else (misfortune[0].name, misfortune[1])


class Closed(Exception):
    """The slot was closed meanwhile."""


class NodeInstance:
    """One instance id: a slot, and one child in it at a time."""

    def __init__(self, order: Launch, slot: Slot, context: InstanceContext) -> None:
        self.order = order  #: that its slot was made for
        self.run: ChildRun | None = None  #: the last one; None: none was launched or adopted
        self.closing = False
        self.closed = trio.Event()
        self._slot, self._context = slot, context
        self._found_gone: InstanceState | None = None  #: an earlier daemon's child
        self._gone_entry: Entry | None = None
        self._lock = trio.Lock()

    @property
    def is_idle(self) -> bool:
        """Whether nothing was launched in it, or is being launched."""
        return self.state is None and not self._lock.locked()

    @property
    def state(self) -> InstanceState | None:
        """Of its last child; None before its first launch."""
        return self._found_gone if self.run is None else self.run.state

    def fits(self, order: Launch) -> bool:
        """Whether the order can be launched in its slot."""
        return (self.order.spec, self.order.shipment) == (order.spec, order.shipment)

    def of(self, token: str) -> ChildRun | None:
        """Its child, if that is the one with this token."""
        run = self.run
        return run if run is not None and run.state.token == token else None

    async def launch(self, order: Launch) -> Launched | CannotStart:
        """Raises `Closed`."""
        async with self._lock:
            if self.closing:
                raise Closed
            run, state = self.run, self.state
            entry = self._gone_entry if run is None else run.entry
            if entry is not None and state is not None and entry.try_id == order.try_id:
                return Launched(entry.record, entry.unenforced, state.completes)
            if run is not None and not run.done.is_set():
                await run.end(run.entry.spec.config.stop_timeout)
            try:
                child = await self._slot.launch(order.gpus)
            except CannotLaunch as problem:
                return CannotStart(problem.cause.name, problem.reason)
            # From here to the start of its task nothing waits: a cancellation cannot lose it.
            entry = Entry(
                order.spec,
                order.position,
                order.check_interval_s,
                order.try_id,
                child.record,
                child.unenforced,
                order.shipment,
            )
            self._context.journal.write(entry)
            self._begin(ChildRun(child, entry, self._context))
            return Launched(entry.record, entry.unenforced, child.completes)

    def adopt(self, entry: Entry, facts: Facts) -> bool:
        """Takes over what an earlier daemon has launched; returns whether it lives."""
        child = self._slot.adopt(entry.record) if entry.end is None else None
        if child is not None:
            self._begin(ChildRun(child, entry, self._context))
            return True
        exit = _found_gone(entry, facts)
        self._gone_entry = entry
        self._found_gone = InstanceState(
            entry.record.instance_id,
            entry.record.token,
            completes=bool(entry.spec.config.command),
            end=entry.end or End(exit),
            over=True,
        )
        return False

    async def close(self, *, lease: bool) -> None:
        """Ends its child, if one lives, and gives the slot up."""
        self.closing = True
        with trio.CancelScope(shield=True):
            async with self._lock:
                if not self.closed.is_set():
                    if self.run is not None:
                        await self.run.end(self.order.spec.config.stop_timeout)
                    self._slot.close(lease=lease)
                    self.closed.set()

    async def close_after(self, token: str) -> bool:
        """Gives the slot up if the last child is over, and was the one with this token; returns whether."""
        with trio.CancelScope(shield=True):
            await self._lock.acquire()  # a launch may be under way
        try:
            state = self.state
            if self.closing or state is None or state.token != token or not state.over:
                return False
            self.closing = True
            self._slot.close()
            self.closed.set()
            return True
        finally:
            self._lock.release()

    def _begin(self, run: ChildRun) -> None:
        self.run = run
        self._context.nursery.start_soon(run.live)
