"""The daemon of one node: it launches for a manager, and keeps what it launched while there is none."""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Awaitable, Callable, Hashable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import trio

from ..core.restart import Cause, Exit
from ..errors import AgentManagerError, CannotReachManager
from ..link import HEARTBEAT_S, SILENCE_S, Link
from ..models import OnManagerDeath, ServiceSpec, utc_now
from ..protocol import COME_BACK
from ..supervisor.launcher import MAX_CONCURRENT_PROBES, Launcher
from ..supervisor.spawn import children_get_defaults
from .bundles import NodeBundles, PutBundle
from .checkup import Checkup, Examine, lacking_python
from .instance import ChildRun, Closed, InstanceContext, NodeInstance, words_of
from .journal import NodeJournal
from .logs import LogExtent, LogLook, LogNext, LogRead, LogSearch, LogTail, MoveLogs, NodeLogs
from .orders import Handler, Kind, Orders
from .protocol import (
    FIGURES_EVERY_S,
    LEASE_S,
    VERSION,
    Answer,
    AskDraining,
    AskTurns,
    AskUnready,
    Cancel,
    CannotStart,
    ChangeCloseCode,
    Changed,
    Check,
    Checked,
    CloseSlot,
    Complete,
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
    Figures,
    ForgetService,
    Hello,
    Kill,
    Launch,
    NeedsBundle,
    Numbered,
    Report,
    Sent,
    Settled,
    Told,
    TurnsNow,
    Unready,
    Unwelcome,
    Welcome,
    decode_order,
    encode,
    in_pieces,
)
from .talk import talk

log = logging.getLogger(__name__)

_Link = Link[Sent, Told]
Dial = Callable[[], Awaitable[trio.abc.Stream]]

_DIAL_PAUSE_S = (0.05, 2.0)  #: the first and the longest between two dials, half as long or longer by chance
_TIDY_EVERY_S = 3600.0
_LOOK_EVERY_S = 1.0  #: for what no event reports: a status text, the lease


class Node:
    """Runs instances in `directory` by `launcher`, for the manager that `dial` leads to."""

    def __init__(
        self,
        directory: Path,
        launcher: Launcher,
        facts: Facts,
        dial: Dial,
        *,
        bundles: NodeBundles | None = None,
        logs: NodeLogs | None = None,
        random: Callable[[], float] = random.random,
    ) -> None:
        """`dial` raises `OSError` or `AgentManagerError`, and is called again. `random`: from [0, 1)."""
        self.launcher = launcher
        self.facts = facts  #: said at each new link
        self.instances: dict[str, NodeInstance] = {}
        self.manager_id: str | None = None  #: of the manager that it is linked with
        self._journal = NodeJournal(directory)
        self._dial, self._bundles, self._random = dial, bundles, random
        self._beside: list[Callable[[], Awaitable[None]]] = [launcher.run]
        self._standing: dict[Hashable, Report] = {}
        self._link: _Link | None = None
        self._unlinked_since = -math.inf
        self._context: InstanceContext | None = None
        self._orders = Orders(self._answer)
        for kind, handler in self._handlers().items():
            self._orders.handle(kind, handler)
        self._orders.handle(Examine, Checkup(directory).answer)
        if bundles is not None:
            self._orders.handle(PutBundle, bundles.answer)
            self._beside.append(self._tidy_bundles)
        if logs is not None:
            for kind in (LogTail, LogNext, LogLook, LogSearch, LogExtent, LogRead, MoveLogs):
                self._orders.handle(kind, logs.answer)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Until cancelled; then the instances live on, except those that must die with their manager.

        Adopts what an earlier daemon has launched, ends what that left otherwise, and calls
        `task_status.started()`; then it dials the manager, for ever.
        """
        self._unlinked_since = trio.current_time()
        with children_get_defaults():
            await self._run(task_status)

    async def _run(self, task_status: trio.TaskStatus[None]) -> None:
        async with trio.open_nursery() as nursery:
            self._context = InstanceContext(
                nursery,
                self._journal,
                lambda state: self.say(Changed(state)),
                trio.CapacityLimiter(MAX_CONCURRENT_PROBES),
                self._random,
            )
            for run in self._beside:
                nursery.start_soon(_keep_running, run)
            await self.launcher.sweep(frozenset(self._adopt()))
            task_status.started()
            nursery.start_soon(_keep_running, self._report_figures)
            nursery.start_soon(_keep_running, self._keep_lease)
            await self._keep_linked()

    @property
    def linked(self) -> bool:
        return self._link is not None

    def handle(self, kind: type[Kind], handler: Handler[Kind]) -> None:
        """Has `handler` do such orders. What it does before it returns, or awaits, happens in the order in
        which the orders came; an exception is answered with `Failed`.
        """
        self._orders.handle(kind, handler)

    def say(self, report: Report) -> None:
        """Says it now; without a link it is dropped."""
        if self._link is not None:
            self._link.put(report)

    def stand(self, key: Hashable, report: Report) -> None:
        """Says it now, and at each new link before `Complete`, until another one stands for this key."""
        self._standing[key] = report
        self.say(report)

    def add(self, run: Callable[[], Awaitable[None]]) -> None:
        """Has `run` run while this does; before `run` is called. When it fails it is started again."""
        self._beside.append(run)

    def _adopt(self) -> Iterator[str]:
        """The tokens of those that live."""
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
            if instance.adopt(entry, self.facts):
                yield entry.record.token

    # The link

    async def _keep_linked(self) -> None:
        first_s, longest_s = _DIAL_PAUSE_S
        pause_s, known = first_s, ""
        while True:
            began = trio.current_time()
            try:
                stream = await self._dial()
                try:
                    problem = await self._talk(stream)
                finally:
                    await trio.aclose_forcefully(stream)
            except (OSError, AgentManagerError) as error:
                problem = str(error)
            except Exception:  # a fault of ours in one link must not end the instances' daemon
                log.exception("internal error: the link to the manager failed; linking again")
                problem = "an internal error"
            if problem != known:
                log.warning("not linked with the manager: %s; trying again", problem)
                known = problem
            if trio.current_time() - began > longest_s:
                pause_s, known = first_s, ""
            await trio.sleep(pause_s * (0.5 + self._random()))
            pause_s = min(2 * pause_s, longest_s)

    async def _talk(self, stream: trio.abc.Stream) -> str:
        """One link, until it is down; returns why. Raises `InvalidRequest` for what no manager says, and
        `NotWelcome`.
        """
        link = _Link(stream, encode, decode_order, heartbeat_s=HEARTBEAT_S, silence_s=SILENCE_S)
        states = (instance.state for instance in self.instances.values())
        link.put(Hello(self.facts, VERSION, utc_now()), *in_pieces(tuple(filter(None, states))))
        link.put(*self._standing.values(), Complete())
        self._link = link  # what changes from here on is said after that
        try:
            return await talk(link, self._obey)
        finally:
            self._link = self.manager_id = None
            self._unlinked_since = trio.current_time()

    def _obey(self, message: Told) -> None:
        match message:
            case Numbered(number, order):
                assert self._context is not None
                self._orders.begin(number, order, self._context.nursery)
            case Welcome(manager_id, open_numbers):
                log.info("linked with the manager")
                self.manager_id = manager_id
                self._orders.keep_only(frozenset(open_numbers))
                self._close_idle()
            case Settled(number):
                self._orders.settle(number)
            case Cancel(number):
                self._orders.cancel(number)
            case Unwelcome(reason):
                raise NotWelcome(reason)

    def _answer(self, number: str, answer: Answer) -> None:
        if self._link is not None:
            self._link.put(Numbered(number, answer))

    # What goes on without orders

    async def _report_figures(self) -> None:
        due = trio.current_time() + FIGURES_EVERY_S
        while True:
            await trio.sleep(_LOOK_EVERY_S)
            runs = [(key, it.run) for key, it in self.instances.items() if it.run is not None]
            for _, run in runs:
                run.look()
            if self._link is None or trio.current_time() < due:
                continue
            due = trio.current_time() + FIGURES_EVERY_S
            checks = {key: run.state.health for key, run in runs if run.state.health is not None}
            services = {it.order.spec.service_id for it in self.instances.values()}
            usage = {key: self.launcher.usage(key)[-1:] for key, _ in runs}
            preloaded = {it: self.launcher.preloaded(it) for it in services}
            self.say(
                Figures(
                    {key: samples[0] for key, samples in usage.items() if samples},
                    {key: it.sessions for key, it in checks.items() if it.sessions is not None},
                    {key: it.quiet_s for key, it in checks.items() if it.quiet_s is not None},
                    self.launcher.troubles(),
                    self.launcher.fork_servers(),
                    {key: text for key, text in preloaded.items() if text is not None},
                )
            )

    async def _tidy_bundles(self) -> None:
        assert self._bundles is not None
        while True:
            shipments = (instance.order.shipment for instance in self.instances.values())
            await self._bundles.tidy(it.digest for it in shipments if it is not None)
            await trio.sleep(_TIDY_EVERY_S)

    async def _keep_lease(self) -> None:
        """Ends what dies with its manager once the link was down for `LEASE_S`: another node may start it."""
        while True:
            await trio.sleep(_LOOK_EVERY_S)
            if self._link is not None or trio.current_time() < self._unlinked_since + LEASE_S:
                continue
            for instance in self.instances.values():
                config = instance.order.spec.config
                if config.on_manager_death == OnManagerDeath.DIE and instance.run is not None:
                    instance.run.give_up(config.stop_timeout, f"its node had no manager for {LEASE_S:g} s")

    # Orders

    def _handlers(self) -> dict[type[Any], Handler[Any]]:
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
            instance = self.instances.get(order.instance_id)
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
        for other in list(self.instances.values()):
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
        assert self._context is not None
        spec = self._placed(order) or order.spec
        slot = self.launcher.slot(spec, order.instance_id, order.position)
        instance = self.instances[order.instance_id] = NodeInstance(order, slot, self._context)
        return instance

    async def _close_instance(self, instance: NodeInstance, *, lease: bool) -> None:
        await instance.close(lease=lease)
        self._drop(instance)

    def _drop(self, instance: NodeInstance) -> None:
        """It was closed."""
        instance_id = instance.order.instance_id
        if self.instances.get(instance_id) is instance:
            del self.instances[instance_id]
            self._journal.remove(instance_id)

    def _close_idle(self) -> None:
        """Drops the slots whose launch has failed: another manager does not know of them."""
        assert self._context is not None
        for instance in list(self.instances.values()):
            if instance.is_idle:
                instance.closing = True
                self._context.nursery.start_soon(partial(self._close_instance, instance, lease=False))

    def _run_of(self, order: EndChild | Kill | EndStray | Drain | Any) -> ChildRun | None:
        instance = self.instances.get(order.instance_id)
        return None if instance is None else instance.of(order.token)

    async def _end(self, order: EndChild) -> Answer:
        run = self._run_of(order)
        if run is not None:
            return Ended(await run.end(order.grace_s))
        instance = self.instances.get(order.instance_id)
        state = None if instance is None else instance.state
        if state is not None and state.token == order.token and state.end is not None:
            return Ended(state.end)
        return Ended(End(Exit()))

    def _kill(self, order: Kill) -> Answer:
        if (run := self._run_of(order)) is not None:
            run.child.kill()
        return Done()

    async def _end_stray(self, order: EndStray) -> Answer:
        instance = self.instances.get(order.instance_id)
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
        instance = self.instances.get(order.instance_id)
        if instance is None:
            return Done()
        instance.closing = True  # a launch that comes next gets a slot of its own

        async def close() -> Answer:
            await self._close_instance(instance, lease=order.lease)
            return Done()

        return close()

    async def _end_lease(self, order: EndLease) -> Answer:
        instance = self.instances.get(order.instance_id)
        if instance is not None and instance.closing:  # which is what makes the lease
            await instance.closed.wait()
        self.launcher.end_lease(order.instance_id)
        return Done()

    def _forget(self, order: ForgetService) -> Answer:
        self.launcher.forget(order.service_id)
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


class NotWelcome(CannotReachManager):
    """The manager will not have this daemon, and why."""


async def _keep_running(run: Callable[[], Awaitable[None]]) -> None:
    """Its failure must not end the instances."""
    while True:
        try:
            await run()
        except* Exception:
            log.exception("internal error: a part of the node daemon failed; starting it again in 1 s")
        await trio.sleep(1)
