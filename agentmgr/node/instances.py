"""The instances of a node, and what its manager orders about them."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import Any

import trio

from ..core.restart import Cause, Exit
from ..errors import AgentManagerError
from ..models import OnManagerDeath, ServiceSpec
from ..protocol import COME_BACK
from ..supervisor.launcher import MAX_CONCURRENT_PROBES, Launcher
from .bundles import NodeBundles
from .checkup import lacking_python
from .instance import ChildRun, Closed, InstanceContext, NodeInstance, words_of
from .journal import NodeJournal
from .orders import Handler
from .protocol import (
    Answer,
    AskDraining,
    AskTurns,
    AskUnready,
    CannotStart,
    ChangeCloseCode,
    Check,
    Checked,
    CloseSlot,
    Done,
    Drain,
    Draining,
    End,
    EndChild,
    Ended,
    EndLease,
    EndStray,
    Facts,
    Failed,
    ForgetService,
    InstanceState,
    Kill,
    Launch,
    NeedsBundle,
    TurnsNow,
    Unready,
)

log = logging.getLogger(__name__)


class NodeInstances:
    def __init__(
        self,
        launcher: Launcher,
        journal: NodeJournal,
        bundles: NodeBundles | None,
        random: Callable[[], float],
        changed: Callable[[InstanceState], None],
    ) -> None:
        """`changed` is called with what is news of a child. `random`: from [0, 1)."""
        self.by_id: dict[str, NodeInstance] = {}
        self._launcher, self._journal, self._bundles = launcher, journal, bundles
        self._random, self._changed = random, changed
        self._context: InstanceContext | None = None

    @property
    def _of_all(self) -> InstanceContext:
        assert self._context is not None, "adopt comes first"
        return self._context

    def adopt(self, nursery: trio.Nursery, facts: Facts) -> frozenset[str]:
        """Takes over what an earlier daemon has launched; returns the tokens of those that live. Their tasks
        run in `nursery`, as those of all later ones.
        """
        self._context = InstanceContext(
            nursery, self._journal, self._changed, trio.CapacityLimiter(MAX_CONCURRENT_PROBES), self._random
        )
        tokens = set()
        for entry in self._journal.entries():
            order = Launch(
                entry.try_id, entry.record.instance_id, entry.position, entry.spec, entry.check_interval_s,
                entry.shipment,
            )  # fmt: skip
            try:
                instance = self._new_instance(order)
            except AgentManagerError as error:
                log.warning("cannot adopt instance %s, ending it: %s", order.instance_id, error)
                self._journal.remove(order.instance_id)
                continue
            if instance.adopt(entry, facts):
                tokens.add(entry.record.token)
        return frozenset(tokens)

    def ends(self) -> list[EndStray]:
        """The orders that end all."""
        states = [instance.state for instance in self.by_id.values()]
        return [EndStray(state.instance_id, state.token) for state in states if state is not None]

    def write_left(self) -> None:
        """What could not be written down, as the disk was full."""
        self._journal.write_left()

    def end_mortals(self, why: str) -> None:
        """Ends those that die with their manager; waits for nothing."""
        for instance in self.by_id.values():
            config = instance.order.spec.config
            if config.on_manager_death == OnManagerDeath.DIE and instance.run is not None:
                instance.run.give_up(config.stop_timeout, why)

    # Orders

    def handlers(self) -> dict[type[Any], Handler[Any]]:
        return {
            Launch: self._launch,
            EndChild: self._end,
            Kill: self._kill,
            EndStray: self._end_stray,
            CloseSlot: self._close,
            EndLease: self._end_lease,
            ForgetService: self._forget,
            Drain: self._drain,
            ChangeCloseCode: self._change_close_code,
            AskDraining: self._is_draining,
            AskTurns: self._turns,
            AskUnready: self._unready,
            Check: self._check,
        }

    async def _launch(self, order: Launch) -> Answer:
        while True:
            instance = self.by_id.get(order.instance_id)
            if instance is not None and not instance.closing and not instance.fits(order):
                await self._close_instance(instance, lease=False)
                continue
            if instance is not None and instance.closing:
                await instance.closed.wait()
                continue
            if instance is None:
                try:
                    if (spec := self._placed(order)) is None:
                        assert order.shipment is not None
                        return NeedsBundle(order.shipment.digest)
                    if (lacking := lacking_python(spec)) is not None:
                        return CannotStart(Cause.CANNOT_EXECUTE.name, lacking)
                    instance = self._new_instance(order)
                except AgentManagerError as error:
                    return CannotStart(Cause.CANNOT_EXECUTE.name, str(error))
            await self._end_strays_of(instance)
            with suppress(Closed):
                return await instance.launch(order)

    async def _end_strays_of(self, instance: NodeInstance) -> None:
        """Those whose place it takes end first: they may have its port. A rolling restart has none."""
        order = instance.order
        place = order.spec.service_id, order.position
        for other in list(self.by_id.values()):
            run, its = other.run, other.order
            if run is not None and run.is_stray and (its.spec.service_id, its.position) == place:
                await run.end(order.spec.config.stop_timeout)

    def _placed(self, order: Launch) -> ServiceSpec | None:
        """The service as it runs here; None: what was to be sent along is not here."""
        shipment = order.shipment
        if shipment is None:
            return order.spec
        others = order.spec.config.user is not None
        root = None if self._bundles is None else self._bundles.find(shipment.digest, others=others)
        return None if root is None else shipment.placed(order.spec, root)

    def _new_instance(self, order: Launch) -> NodeInstance:
        """Raises `AgentManagerError`."""
        spec = self._placed(order) or order.spec
        slot = self._launcher.slot(spec, order.instance_id, order.position)
        instance = self.by_id[order.instance_id] = NodeInstance(order, slot, self._of_all)
        return instance

    async def _close_instance(self, instance: NodeInstance, *, lease: bool) -> None:
        await instance.close(lease=lease)
        self._drop(instance)

    def _drop(self, instance: NodeInstance) -> None:
        """It was closed."""
        instance_id = instance.order.instance_id
        if self.by_id.get(instance_id) is instance:
            del self.by_id[instance_id]
            self._journal.remove(instance_id)

    def close_idle(self) -> None:
        """Drops the slots whose launch has failed: another manager does not know of them."""
        for instance in list(self.by_id.values()):
            if instance.is_idle:
                instance.closing = True
                self._of_all.nursery.start_soon(partial(self._close_instance, instance, lease=False))

    def _run_of(self, order: EndChild | Kill | EndStray | Drain | Any) -> ChildRun | None:
        instance = self.by_id.get(order.instance_id)
        return None if instance is None else instance.of(order.token)

    async def _end(self, order: EndChild) -> Answer:
        run = self._run_of(order)
        if run is not None:
            return Ended(await run.end(order.grace_s))
        instance = self.by_id.get(order.instance_id)
        state = None if instance is None else instance.state
        if state is not None and state.token == order.token and state.end is not None:
            return Ended(state.end)
        return Ended(End(Exit()))

    def _kill(self, order: Kill) -> Answer:
        if (run := self._run_of(order)) is not None:
            run.child.kill()
        return Done()

    async def _end_stray(self, order: EndStray) -> Answer:
        instance = self.by_id.get(order.instance_id)
        if instance is None or instance.state is None or instance.state.token != order.token:
            return Done()
        run = instance.run
        if run is not None and run.state.end is None:
            run.is_stray = True
            log.info(
                "ending instance %s: the manager has replaced it, or does not know it", order.instance_id
            )
            with trio.move_on_after(instance.order.spec.config.drain_timeout):
                await run.drain(COME_BACK)
            await run.end(instance.order.spec.config.stop_timeout)
        if await instance.close_after(order.token):
            self._drop(instance)
        return Done()

    def _close(self, order: CloseSlot) -> Awaitable[Answer] | Answer:
        instance = self.by_id.get(order.instance_id)
        if instance is None:
            return Done()
        instance.closing = True  # a launch that comes next gets a slot of its own

        async def close() -> Answer:
            await self._close_instance(instance, lease=order.lease)
            return Done()

        return close()

    async def _end_lease(self, order: EndLease) -> Answer:
        instance = self.by_id.get(order.instance_id)
        if instance is not None and instance.closing:  # which is what makes the lease
            await instance.closed.wait()
        self._launcher.end_lease(order.instance_id)
        return Done()

    def _forget(self, order: ForgetService) -> Answer:
        self._launcher.forget(order.service_id)
        return Done()

    async def _drain(self, order: Drain) -> Answer:
        if (run := self._run_of(order)) is not None and run.state.end is None:
            await run.drain(order.code)
        return Done()

    async def _change_close_code(self, order: ChangeCloseCode) -> Answer:
        if (run := self._run_of(order)) is not None and run.state.end is None:
            await run.child.change_close_code(order.code)
        return Done()

    async def _is_draining(self, order: AskDraining) -> Answer:
        run = self._run_of(order)
        return Draining(run is not None and run.state.end is None and await run.child.is_draining())

    async def _turns(self, order: AskTurns) -> Answer:
        run = self._run_of(order)
        if run is None or run.state.end is not None:
            return Failed("it has ended")
        return TurnsNow(await run.child.turns())

    async def _unready(self, order: AskUnready) -> Answer:
        run = self._run_of(order)
        if run is None or run.state.end is not None:
            return Failed("it has ended")
        seen, misfortune = await run.child.unready(), await run.child.misfortune()
        return Unready(seen, run.child.last_words(), words_of(misfortune))

    async def _check(self, order: Check) -> Answer:
        run = self._run_of(order)
        result = None
        if run is not None and run.state.end is None:
            result = await run.checked(order.timeout_s)
        return Failed("it has ended") if result is None else Checked(result)
