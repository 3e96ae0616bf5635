"""The daemon of one node: it launches for a manager, and keeps what it launched while there is none."""

from __future__ import annotations

import logging
import math
import random
import time
from collections.abc import Awaitable, Callable, Hashable, Mapping
from pathlib import Path
from typing import Any

import trio

from ..errors import AgentManagerError, CannotReachManager, CannotUseCluster
from ..generation import Generation, Obeyed
from ..link import HEARTBEAT_S, Link, silence_patience
from ..models import new_id, utc_now
from ..supervisor.launcher import Launcher
from ..supervisor.spawn import children_get_defaults
from .bundles import NodeBundles, PutBundle
from .checkup import Checkup, Examine
from .instance import NodeInstance
from .instances import NodeInstances
from .journal import NodeJournal
from .logs import LogExtent, LogLook, LogNext, LogRead, LogSearch, LogTail, MoveLogs, NodeLogs
from .orders import Handler, Kind, Orders
from .protocol import (
    FIGURES_EVERY_S,
    LEASE_S,
    VERSION,
    Answer,
    Cancel,
    Changed,
    Complete,
    Facts,
    Figures,
    Hello,
    Leaving,
    Numbered,
    Report,
    Sent,
    Settled,
    Told,
    Unwelcome,
    Welcome,
    decode_order,
    encode,
    in_pieces,
)
from .session_archives import ReadSessions, SessionArchives
from .talk import talk

log = logging.getLogger(__name__)

_Link = Link[Sent, Told]
Dial = Callable[[], Awaitable[trio.abc.Stream]]

_DIAL_PAUSE_S = (0.05, 2.0)  #: the first and the longest between two dials; by chance down to half as long
FORGOTTEN_S = 600.0  #: for an operator to restore the right database, or to join the node again
_JOINS_AGAIN_S = 60.0  #: the least of that for each daemon
_FAREWELL_S = 1.0  #: for a manager to take the daemon's last words
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
        sessions: SessionArchives | None = None,
        moved: Callable[[], Awaitable[None]] = trio.sleep_forever,
        random: Callable[[], float] = random.random,
    ) -> None:
        """`dial` raises `OSError` or `AgentManagerError`, and is called again. `moved` returns when it leads
        elsewhere now: what it gave before is left then. `random`: from [0, 1).
        """
        self.facts = facts  #: said at each new link
        self.manager_id: str | None = None  #: of the manager that it is linked with
        self.given_up: Callable[[], object] = lambda: None  #: called as all ends here: the node was forgotten
        self._launcher = launcher
        self._instances = NodeInstances(
            launcher, NodeJournal(directory), bundles, random, changed=lambda state: self.say(Changed(state))
        )
        self._dial, self._moved, self._bundles, self._random = dial, moved, bundles, random
        self._obeyed = Obeyed(directory)
        self._obeys: Generation | None = None
        self._forgotten_file = directory / "forgotten"  # as old as it is known
        self._beside: list[Callable[[], Awaitable[None]]] = [launcher.run]
        self._standing: dict[Hashable, Report] = {}
        self._link: _Link | None = None
        self._patience = silence_patience()
        self._unlinked_since = -math.inf
        self._forgotten_since: float | None = None  #: as its manager has said
        self._nursery: trio.Nursery | None = None
        self._orders = Orders(self._answer)
        for kind, handler in self._instances.handlers().items():
            self._orders.handle(kind, handler)
        self._orders.handle(Examine, Checkup(directory).answer)
        if bundles is not None:
            self._orders.handle(PutBundle, bundles.answer)
            self._beside.append(self._tidy_bundles)
        if logs is not None:
            about_logs: tuple[type[Any], ...]
            about_logs = (LogTail, LogNext, LogLook, LogSearch, LogExtent, LogRead, MoveLogs)
            for kind in about_logs:
                self._orders.handle(kind, logs.answer)
        if sessions is not None:
            self._orders.handle(ReadSessions, sessions.answer)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Until cancelled; then the instances live on, except those that must die with their manager.

        Adopts what an earlier daemon has launched, ends what that left otherwise, and calls
        `task_status.started()`; then it dials the manager, for ever.
        """
        self._unlinked_since = trio.current_time()
        with children_get_defaults():
            await self._run(task_status)

    async def _run(self, task_status: trio.TaskStatus[None]) -> None:
        try:
            self._obeys = self._obeyed.read()
        except CannotUseCluster as error:  # what runs here needs its daemon all the same
            log.error("it is not known which manager this node has obeyed: %s", error)
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            for run in self._beside:
                nursery.start_soon(_keep_running, run)
            await self._launcher.sweep(self._instances.adopt(nursery, self.facts))
            task_status.started()
            nursery.start_soon(_keep_running, self._report_figures)
            nursery.start_soon(_keep_running, self._keep_lease)
            while True:
                async with trio.open_nursery() as following:
                    following.start_soon(self._keep_linked)
                    await self._moved()
                    log.info("the manager is elsewhere now: linking with it there")
                    following.cancel_scope.cancel()

    @property
    def instances(self) -> Mapping[str, NodeInstance]:
        """By instance id."""
        return self._instances.by_id

    def runs(self, service_id: str) -> bool:
        """Whether an instance of that service runs here, or is being started."""
        of_it = (it for it in self.instances.values() if it.order.spec.service_id == service_id)
        return any(not (it.is_idle if it.state is None else it.state.over) for it in of_it)

    @property
    def linked(self) -> bool:
        return self._link is not None

    @property
    def obeys(self) -> Generation | None:
        """The newest manager that it has obeyed."""
        return self._obeys

    def handle(self, kind: type[Kind], handler: Handler[Kind]) -> None:
        """Has `handler` do such orders. What it does before it returns, or awaits, happens in the order in
        which the orders came; an exception is answered with `Failed`.
        """
        self._orders.handle(kind, handler)

    def say(self, report: Report) -> None:
        """Says it now; without a link it is dropped."""
        if self._link is not None:
            self._link.put(report)

    async def leave(self) -> None:
        """Says that the daemon ends."""
        if self._link is not None:
            self._link.put(Leaving())
            with trio.move_on_after(_FAREWELL_S):
                await self._link.flushed()

    def stand(self, key: Hashable, report: Report) -> None:
        """Says it now, and at each new link before `Complete`, until another one stands for this key."""
        self._standing[key] = report
        self.say(report)

    def add(self, run: Callable[[], Awaitable[None]]) -> None:
        """Has `run` run while this does; before `run` is called. When it fails it is started again."""
        self._beside.append(run)

    # The link

    async def _keep_linked(self) -> None:
        first_s, longest_s = _DIAL_PAUSE_S
        pause_s, known = first_s, ""
        while True:
            began = math.inf
            try:
                stream = await self._dial()
                began = trio.current_time()
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
            await trio.sleep(pause_s * (1 + self._random()) / 2)
            pause_s = min(2 * pause_s, longest_s)

    async def _talk(self, stream: trio.abc.Stream) -> str:
        """One link, until it is down; returns why. Raises `InvalidRequest` for what no manager says, and
        `NotWelcome`.
        """
        silence_s = self._patience.seconds
        link = _Link(stream, encode, decode_order, heartbeat_s=HEARTBEAT_S, silence_s=silence_s)
        states = (instance.state for instance in self.instances.values())
        link.put(Hello(self.facts, VERSION, utc_now(), self._obeys), *in_pieces(tuple(filter(None, states))))
        link.put(*self._standing.values(), Complete())
        self._link = link  # what changes from here on is said after that
        try:
            return await talk(link, self._obey)
        finally:
            self._link = self.manager_id = None
            self._patience.learn(in_vain=link.silent_soon)
            self._unlinked_since = trio.current_time()

    def _obey(self, message: Told) -> None:
        match message:
            case Numbered(number, order):
                assert self._nursery is not None
                self._orders.begin(number, order, self._nursery)
            case Welcome(manager_id, open_numbers, generation):
                self._submit_to(generation)
                log.info("linked with the manager")
                self.manager_id, self._forgotten_since = manager_id, None
                self._forgotten_file.unlink(missing_ok=True)
                self._orders.keep_only(frozenset(open_numbers))
                self._instances.close_idle()
            case Settled(number):
                self._orders.settle(number)
            case Cancel(number):
                self._orders.cancel(number)
            case Unwelcome(reason, forgotten):
                if forgotten and self._forgotten_since is None:
                    for_s = self._forgotten_for_s()
                    self._forgotten_since = trio.current_time() - for_s
                    log.warning("what runs here ends in %.0f s: %s", FORGOTTEN_S - for_s, reason)
                raise NotWelcome(reason)

    def _forgotten_for_s(self) -> float:
        """How long it has been known, to earlier daemons too; less than `FORGOTTEN_S`, so that it can join
        again with this one.
        """
        try:
            if not self._forgotten_file.exists():
                self._forgotten_file.touch(mode=0o600)
            for_s = time.time() - self._forgotten_file.stat().st_mtime
        except OSError:
            for_s = 0.0
        return min(max(for_s, 0.0), FORGOTTEN_S - _JOINS_AGAIN_S)

    def _submit_to(self, generation: Generation | None) -> None:
        """Raises `NotWelcome` where a newer manager is known."""
        if generation is None or generation == self._obeys:
            return
        if self._obeys is not None and generation.yields_to(self._obeys):
            raise NotWelcome(f"{generation} is not obeyed: this node obeys {self._obeys}, which is newer")
        self._obeys = generation
        try:
            self._obeyed.write(generation)  # before its first order is done
        except CannotUseCluster as error:  # as on a full disk: it is known until this daemon ends
            log.error("%s", error)

    def _answer(self, number: str, answer: Answer) -> None:
        if self._link is not None:
            self._link.put(Numbered(number, answer))

    # What goes on without orders

    async def _report_figures(self) -> None:
        due = trio.current_time() + FIGURES_EVERY_S
        while True:
            await trio.sleep(_LOOK_EVERY_S)
            self._instances.write_left()
            runs = [(key, it.run) for key, it in self.instances.items() if it.run is not None]
            for _, run in runs:
                run.look()
            if self._link is None or trio.current_time() < due:
                continue
            due = trio.current_time() + FIGURES_EVERY_S
            checks = {key: run.state.health for key, run in runs if run.state.health is not None}
            services = {it.order.spec.service_id for it in self.instances.values()}
            usage = {key: self._launcher.usage(key)[-1:] for key, _ in runs}
            preloaded = {it: self._launcher.preloaded(it) for it in services}
            self.say(
                Figures(
                    {key: samples[0] for key, samples in usage.items() if samples},
                    {key: it.sessions for key, it in checks.items() if it.sessions is not None},
                    {key: it.quiet_s for key, it in checks.items() if it.quiet_s is not None},
                    self._launcher.troubles(),
                    self._launcher.fork_servers(),
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
        """Ends what dies with its manager once the link was down for `LEASE_S`: another node may start it.

        And all, once the node was forgotten for `FORGOTTEN_S`: it runs elsewhere, and no manager will ever
        end it here.
        """
        while True:
            await trio.sleep(_LOOK_EVERY_S)
            since = self._forgotten_since
            if since is not None and trio.current_time() >= since + FORGOTTEN_S:
                self._forgotten_since = None
                log.warning("ending all that runs here: this node was forgotten")
                assert self._nursery is not None
                for order in self._instances.ends():
                    self._orders.begin(new_id("own"), order, self._nursery)
                self.given_up()
            if self._link is None and trio.current_time() >= self._unlinked_since + LEASE_S:
                self._instances.end_mortals(f"its node had no manager for {LEASE_S:g} s")


class NotWelcome(CannotReachManager):
    """The manager will not have this daemon, or the daemon not this manager, and why."""


async def _keep_running(run: Callable[[], Awaitable[None]]) -> None:
    """Its failure must not end the instances."""
    while True:
        try:
            await run()
        except* Exception:
            log.exception("internal error: a part of the node daemon failed; starting it again in 1 s")
        await trio.sleep(1)
