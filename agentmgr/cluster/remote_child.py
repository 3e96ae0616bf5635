"""A child on another node, as its daemon reports it."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from contextlib import suppress

import trio
from attrs import evolve

from ..core.health import ProbeResult
from ..core.restart import Cause, Exit
from ..core.scaling import Turns
from ..models import InstanceRecord, OnManagerDeath, ServiceSpec
from ..models.nodes import OnNodeLoss
from ..node.protocol import (
    AskDraining,
    AskTurns,
    AskUnready,
    ChangeCloseCode,
    Check,
    Checked,
    Done,
    Drain,
    Draining,
    End,
    EndChild,
    Ended,
    InstanceState,
    Kill,
    Order,
    TurnsNow,
    Unready,
    misfortune_of,
)
from .node_handle import Kind, NodeHandle, NodeLost, OrderFailed

log = logging.getLogger(__name__)

CUT_OFF_S = 40.0
"""Seconds after its node fell silent a child that dies with its manager (`on_manager_death`) surely has: 10 s
after its daemon's lease."""
END_PATIENCE_S = 15.0  #: `end` waits no longer for a silent node: the node ends it when it is back
_ANSWER_S = 3.0  #: for a check's result to arrive, beyond the check's own timeout


class RemoteChild:
    """Implements `supervisor.launcher.Child`. `spec`: of the service, as the supervisor has it."""

    def __init__(
        self,
        handle: NodeHandle,
        spec: ServiceSpec,
        record: InstanceRecord,
        *,
        unenforced: tuple[str, ...] = (),
        completes: bool | None = None,
    ) -> None:
        self.record, self.unenforced = record, unenforced
        self.completes = bool(spec.config.command) if completes is None else completes
        self._handle, self._config = handle, spec.config
        self._news = trio.lowlevel.ParkingLot()
        self._unready: Unready | None = None  #: the last answer
        self._killed = False
        self._left: str | None = None  #: why it ended, where its exit is not known
        self._end: End | None = None
        self._state: InstanceState | None = None  #: None: its node has not said anything of it yet
        if (state := handle.attach(record.instance_id, record.token, self)) is not None:
            self.update(state)

    @property
    def said(self) -> str | None:
        return None if self._state is None else self._state.said

    @property
    def serves(self) -> bool:
        return not self._config.command if self._state is None else self._state.serves

    @property
    def silent(self) -> str:
        """Why it cannot be asked now; "": it can."""
        handle = self._handle
        if handle.linked:
            return ""
        if handle.lost is not None and self._config.on_node_loss == OnNodeLoss.WAIT:
            return f"waits for node {handle.name}, which is lost ({handle.lost})"
        return f"node {handle.name} is silent: {handle.unlinked_why}"

    async def wait_heard(self) -> None:
        await trio.lowlevel.checkpoint()
        while self.silent:
            await self._news.park()

    # Ready, and well

    async def wait_serving(self) -> None:
        while not self.serves:
            await self._news.park()

    async def wait_ready(self) -> None:
        # Of one that its node does not know it waits for ever: `wait_exit` reports that.
        while self._state is None or not self._state.ready:
            await self._news.park()
        self.record = evolve(self.record, ready_unasked=self._state.ready_unasked)

    async def unready(self) -> str:
        self._unready = await self._ask(AskUnready(*self._key), Unready)
        return self._said_nothing if self._unready is None else self._unready.seen

    async def probe(self, timeout_s: float, *, fresh: bool = True) -> ProbeResult | None:
        """`fresh`: asked now; else as its daemon has found it at its last regular check."""
        if self.silent:
            return None
        known = None if self._state is None else self._state.health
        if known is not None and not fresh:
            figures, instance_id = self._handle.figures, self.record.instance_id
            if figures is not None and instance_id in figures.quiet_s:
                known = evolve(known, quiet_s=figures.quiet_s[instance_id])
            return known
        with trio.move_on_after(timeout_s + _ANSWER_S):
            checked = await self._ask(Check(*self._key, timeout_s), Checked)
            return None if checked is None else checked.result
        return None

    async def turns(self) -> Turns | None:
        answer = await self._ask(AskTurns(*self._key), TurnsNow)
        if answer is None:
            raise OSError(self._said_nothing)
        return answer.turns

    async def _ask(self, order: Order, kind: type[Kind]) -> Kind | None:
        """None: its node is silent, or falls silent before it answers, or cannot tell."""
        answer: Kind | None = None
        if not self.silent:
            async with trio.open_nursery() as nursery:

                async def until_silent() -> None:
                    while not self.silent:
                        await self._news.park()
                    nursery.cancel_scope.cancel()

                nursery.start_soon(until_silent)
                with suppress(NodeLost, OrderFailed):
                    answer = await self._handle.call(order, kind)
                nursery.cancel_scope.cancel()
        return answer

    @property
    def _said_nothing(self) -> str:
        return self.silent or f"node {self._handle.name} could not ask it"

    # Draining

    async def drain(self, code: int, answered: Callable[[bool], None]) -> None:
        if self.silent:
            answered(False)
            return
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._notice_answer, answered)
            try:
                await self._handle.call(Drain(*self._key, code), Done)
            except (NodeLost, OrderFailed):
                answered(False)
            nursery.cancel_scope.cancel()

    async def _notice_answer(self, answered: Callable[[bool], None]) -> None:
        while self._state is None or self._state.knows_idle is None:
            await self._news.park()
        answered(self._state.knows_idle)

    async def is_draining(self) -> bool:
        try:
            return (await self._handle.call(AskDraining(*self._key), Draining)).is_draining
        except (NodeLost, OrderFailed):
            return False

    async def change_close_code(self, code: int) -> None:
        with suppress(NodeLost, OrderFailed):
            await self._handle.call(ChangeCloseCode(*self._key, code), Done)

    # Its end

    async def wait_exit(self) -> Exit:
        while (exit := self._exit()) is None:
            dead_at = self._handle.unlinked_since + CUT_OFF_S
            with trio.move_on_at(dead_at if trio.current_time() < dead_at else math.inf):
                await self._news.park()
        return exit

    def _exit(self) -> Exit | None:
        """How it ended, as far as that is known; None: it is taken to live."""
        if self._end is not None:
            return self._end.exit
        if self._left is not None:
            return Exit(node_lost=self._left)
        handle = self._handle
        if handle.forgotten:
            return Exit(node_lost=self._lost_with_it)
        if handle.lost is None or self._config.on_node_loss == OnNodeLoss.WAIT:
            return None
        if self._dies_alone and trio.current_time() < handle.unlinked_since + CUT_OFF_S:
            return None
        return Exit(node_lost=self._lost_with_it)

    @property
    def _dies_alone(self) -> bool:
        return self._config.on_manager_death == OnManagerDeath.DIE

    @property
    def _lost_with_it(self) -> str:
        return f"node {self._handle.name} was lost ({self._handle.lost})"

    async def end(self, grace_s: float) -> Exit:
        over = self._left is not None or (self._state is not None and self._state.over)
        if not over:
            with trio.CancelScope(shield=True):
                await self._end_there(grace_s)
        self._handle.detach(*self._key)
        return self._exit() or Exit(node_lost=(self._handle.lost and self._lost_with_it) or self.silent)

    async def _end_there(self, grace_s: float) -> None:
        """Returns when it has ended, or when that cannot be waited for: its node ends it once it is back."""
        async with trio.open_nursery() as nursery:

            async def lose_patience() -> None:
                handle = self._handle
                while True:
                    until = handle.unlinked_since + END_PATIENCE_S
                    if not handle.linked and (self._killed or trio.current_time() >= until):
                        nursery.cancel_scope.cancel()
                    with trio.move_on_at(math.inf if handle.linked else until):
                        await self._news.park()

            nursery.start_soon(lose_patience)
            try:
                self._end = (await self._handle.call(EndChild(*self._key, grace_s), Ended)).end
            except NodeLost:
                pass
            except OrderFailed as problem:
                log.warning("cannot end instance %s: %s", self.record.instance_id, problem)
            nursery.cancel_scope.cancel()

    def kill(self) -> None:
        self._killed = True
        if self._handle.linked:
            self._handle.post(Kill(*self._key))
        self._news.unpark_all()

    def release(self) -> None:
        self._handle.leave(*self._key)

    def last_words(self) -> str:
        if self._end is not None:
            return self._end.last_words
        return "" if self._unready is None else self._unready.last_words

    async def last_output(self) -> str:
        await trio.lowlevel.checkpoint()
        return "" if self._end is None else self._end.output

    def out_of_memory(self, exit: Exit) -> str | None:
        return None if self._end is None else self._end.out_of_memory

    async def misfortune(self) -> tuple[Cause, str] | None:
        await trio.lowlevel.checkpoint()
        if self._end is not None:
            return misfortune_of(self._end.misfortune)
        return None if self._unready is None else misfortune_of(self._unready.misfortune)

    # What its node reports

    def update(self, state: InstanceState) -> None:
        self._state = state
        if self._end is None:
            self._end = state.end
        self._news.unpark_all()

    def gone(self) -> None:
        self._left = f"node {self._handle.name} came back without it"
        self._news.unpark_all()

    def link_changed(self) -> None:
        self._news.unpark_all()

    @property
    def _key(self) -> tuple[str, str]:
        return self.record.instance_id, self.record.token
