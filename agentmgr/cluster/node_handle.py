"""One node, as the manager knows it: its link, the calls that outlive it, and the children that run there."""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Callable, Mapping
from itertools import count
from typing import Any, Protocol, TypeVar

import trio
from attrs import Factory, define

from ..errors import AgentManagerError, InvalidRequest
from ..generation import Generation
from ..link import HEARTBEAT_S, SILENCE_S, Link
from ..models import Usage, utc_now
from ..models.nodes import NodeState
from ..node.protocol import (
    VERSION,
    Answer,
    Cancel,
    Changed,
    CloseSlot,
    Complete,
    EndStray,
    Facts,
    Failed,
    Figures,
    Has,
    Hello,
    InstanceState,
    Launch,
    Launched,
    Leaving,
    Numbered,
    Order,
    Sent,
    Settled,
    Told,
    Unwelcome,
    Welcome,
    decode_report,
    encode,
)
from ..node.talk import talk
from ..supervisor.launcher import MAX_CONCURRENT_STARTS

log = logging.getLogger(__name__)

USAGE_KEPT = 360  #: samples of one instance: an hour

Kind = TypeVar("Kind", bound=Answer)
_Link = Link[Told, Sent]


class NodeLost(Exception):
    """The node was given up before it answered. It does not leave this package."""

    def __init__(self, reason: str, *, sent: bool) -> None:
        super().__init__(reason)
        self.reason = reason
        self.sent = sent  #: whether the order may have reached it


class OrderFailed(Exception):
    """The node could not do it, and why. It does not leave this package."""


class Attached(Protocol):
    """A child on the node, as the node reports it (`RemoteChild`)."""

    def update(self, state: InstanceState) -> None:
        """What the node says of it now."""

    def gone(self) -> None:
        """The node does not know it (any more)."""

    def link_changed(self) -> None:
        """The node is linked, silent or lost since now."""


@define(eq=False)
class _Call:
    """An order that is not answered yet."""

    message: Numbered[Order]
    done: trio.Event | None  #: None: no task waits for the answer
    answer: Answer | None = None
    lost: str | None = None  #: why there will be no answer
    sent: bool = False  #: it may have reached the node


@define(eq=False)
class _Opening:
    """What a daemon says first."""

    link: _Link
    welcome: bool | None = None  #: None: it has not said `Hello` yet
    states: dict[str, InstanceState] = Factory(dict)
    newer: Generation | None = None  #: of the manager that it obeys


class NodeHandle:
    """The node `node_id`. `cluster.nodes` runs its links and judges it; the launcher has it launch."""

    def __init__(
        self,
        node_id: str,
        name: str,
        *,
        address: str = "",
        labels: Mapping[str, str] | None = None,
        manager_id: str,
        generation: Generation | None = None,
    ) -> None:
        """`manager_id`: of this run of the manager; numbers of orders begin with it."""
        self.node_id, self.name, self.address = node_id, name, address
        self.labels: Mapping[str, str] = labels or {}
        self.facts: Facts | None = None  #: as of its last `Hello`
        self.clock_skew_s: float | None = None  #: its clock less ours, at its last `Hello`
        self.state, self.state_reason = NodeState.SILENT, ""  #: set by `cluster.nodes`
        self.linked = False  #: and all that it has is known
        self.unlinked_since = trio.current_time()  #: where it is not linked
        self.unlinked_why = "not linked since the manager has started"
        self.lost: str | None = None  #: the reason, from when it was given up until it links again
        self.forgotten = False  #: it will not come back
        self.ended = False  #: its daemon has said that it ends
        self.refused = ""  #: why its last daemon was not let in; "": it was
        self.figures: Figures | None = None  #: the last ones
        self.news = trio.lowlevel.ParkingLot()  #: unparked when it links, falls silent or is lost
        self.on_link: Callable[[], None] = lambda: None  #: called first when `linked` or `lost` changes
        self.on_newer: Callable[[Generation], None] = lambda newer: None
        """Called when it was shown a newer manager, which the node obeys; its daemon has been told."""
        self.starts = trio.Semaphore(MAX_CONCURRENT_STARTS)
        self._manager_id, self._numbers = manager_id, count(1)
        self._generation = generation
        self._link: _Link | None = None
        self._serving = trio.CancelScope()  #: of the newest link
        self._calls: dict[str, _Call] = {}  #: by number, the first one first
        self._receivers: dict[type[Any], list[Callable[[Any], None]]] = {}
        self._states: dict[str, InstanceState] = {}  #: by instance id, as the node has said
        self._children: dict[str, Attached] = {}  #: by token
        self._launching = Counter[str]()  #: orders, by instance id
        self._slots = set[str]()  #: instance ids
        self._all_known = False
        self._left_alone = set[str]()  #: tokens of strays that are being ended, or not to be ended
        self._left_running = set[str]()  #: ids of instances that are left to the next manager
        self._usage: dict[str, deque[Usage]] = {}

    # What is asked of it

    async def call(self, order: Order, kind: type[Kind]) -> Kind:
        """Its answer, however many links that takes. Raises `NodeLost`, `OrderFailed`."""
        answer = await self.ask(order)
        if not isinstance(answer, kind):
            raise OrderFailed(f"node {self.name} has answered {type(answer).__name__}")
        return answer

    async def ask(self, order: Order) -> Answer:
        """As `call`, where several kinds of answers are expected."""
        call = self._new_call(order, trio.Event())
        assert call.done is not None
        if isinstance(order, Launch):
            self._launching[order.instance_id] += 1
        try:
            await call.done.wait()
        except trio.Cancelled:
            if self._link is not None and call.answer is None:
                self._link.put(Cancel(call.message.number))
            raise
        finally:
            self._calls.pop(call.message.number, None)
            if isinstance(order, Launch):
                self._launching[order.instance_id] -= 1
        if call.lost is not None:
            raise NodeLost(call.lost, sent=call.sent)
        assert call.answer is not None
        if isinstance(call.answer, Failed):
            raise OrderFailed(call.answer.reason)
        return call.answer

    def post(self, order: Order) -> None:
        """Has it done, now or when it is linked again; forgotten if it is lost before."""
        self._new_call(order, None)

    def on(self, kind: type[Any], receive: Callable[[Any], None]) -> None:
        """Calls `receive` with each further report of this kind; synchronous and quick."""
        self._receivers.setdefault(kind, []).append(receive)

    def _new_call(self, order: Order, done: trio.Event | None) -> _Call:
        number = f"{self._manager_id}.{next(self._numbers)}"
        call = self._calls[number] = _Call(Numbered(number, order), done)
        if self.lost is not None:
            self._give_up(call, self.lost)
        elif self._link is not None:
            self._send(self._link, call)
        return call

    def _send(self, link: _Link, call: _Call) -> None:
        call.sent = True
        link.put(call.message)

    def _give_up(self, call: _Call, reason: str) -> None:
        call.lost = reason
        if call.done is not None:
            call.done.set()
        else:
            del self._calls[call.message.number]

    # Its children

    def attach(self, instance_id: str, token: str, child: Attached) -> InstanceState | None:
        """Tells `child` what the node reports of it from now on; returns what it has reported so far."""
        self._children[token] = child
        state = self._states.get(instance_id)
        return state if state is not None and state.token == token else None

    def detach(self, instance_id: str, token: str) -> None:
        """The child is over, or given up: what the node still has of it, it ends."""
        self._children.pop(token, None)
        state = self._states.get(instance_id)
        if state is not None and state.token == token:
            self._end_if_stray(state)

    def leave(self, instance_id: str, token: str) -> None:
        """The child lives on, for the next manager."""
        self._left_alone.add(token)
        self._children.pop(token, None)
        self._left_running.add(instance_id)

    def open_slot(self, instance_id: str) -> None:
        self._slots.add(instance_id)

    def close_slot(self, instance_id: str, *, lease: bool) -> None:
        self._slots.discard(instance_id)
        self._usage.pop(instance_id, None)
        if instance_id not in self._left_running:
            self.post(CloseSlot(instance_id, lease))

    def know_all(self) -> None:
        """From now on what is not attached is a stray, and ended: the manager has adopted what it knows."""
        self._all_known = True
        for state in list(self._states.values()):
            self._end_if_stray(state)

    def usage(self, instance_id: str) -> tuple[Usage, ...]:
        return tuple(self._usage.get(instance_id, ()))

    @property
    def instances(self) -> int:
        """How many run there, as it has said."""
        return sum(state.end is None for state in self._states.values())

    def gpus_unattached(self) -> dict[str, tuple[str, ...]]:
        """Those that children use which are not attached, by instance id: strays, which are being ended, and
        what was launched just now.
        """
        return {
            it.instance_id: it.gpus
            for it in self._states.values()
            if it.gpus and not (it.over or it.token in self._children)
        }

    def _end_if_stray(self, state: InstanceState) -> None:
        """Ends what this manager has replaced, or does not know: by id and token, never by id alone."""
        token, instance_id = state.token, state.instance_id
        if not self._all_known or token in self._children or token in self._left_alone:
            return
        if self.lost is not None:  # it is judged anew when its node links
            return
        if self._launching[instance_id]:  # its launch may have been answered, by a link that is down now
            return
        if state.over and instance_id in self._slots:  # it will be launched again
            return
        if not state.over:
            log.info(
                "node %s runs instance %s, which was replaced or is not known: ending it",
                self.name,
                instance_id,
            )
        self._left_alone.add(token)
        self.post(EndStray(instance_id, token))

    # Its life

    async def serve(self, stream: trio.abc.Stream) -> None:
        """One link, until it is down; a newer one replaces it. Does not close the stream. Raises nothing."""
        link = _Link(stream, encode, decode_report, heartbeat_s=HEARTBEAT_S, silence_s=SILENCE_S)
        opening, scope = _Opening(link), trio.CancelScope()
        why = "another link of it has replaced it"
        try:
            with scope:
                why = await talk(link, lambda message: self._receive(opening, scope, message))
        except AgentManagerError as error:
            why = str(error)
            log.warning("the link of node %s is closed: %s", self.name, why)
        except Exception:  # a fault of ours in one link must not reach other nodes
            why = "internal error"
            log.exception("internal error: the link of node %s failed", self.name)
        finally:
            if self._link is link:
                self._unlink(why)
            if opening.newer is not None:
                self.on_newer(opening.newer)

    def lose(self, reason: str) -> None:
        """It is given up until it links again: its calls raise `NodeLost`, its children end."""
        if self.lost is None:
            self.lost = reason
            for call in list(self._calls.values()):
                if call.answer is None:
                    self._give_up(call, reason)
            self._left_alone.clear()
            self._tell()

    def forget(self) -> None:
        """It is given up for ever, and its link closed."""
        self.forgotten = True
        self._serving.cancel()
        self.lose("it was forgotten")
        self._tell()

    def _unlink(self, why: str) -> None:
        self._link = None
        if self.linked:
            self.linked = False
            self.unlinked_since = trio.current_time()
        self.unlinked_why = why
        self._tell()

    def _tell(self) -> None:
        self.on_link()
        for child in list(self._children.values()):
            child.link_changed()
        self.news.unpark_all()

    # What it says

    def _receive(self, opening: _Opening, scope: trio.CancelScope, message: Sent) -> None:
        """Raises `InvalidRequest`."""
        match message:
            case _ if opening.welcome is None:
                if not isinstance(message, Hello):
                    raise InvalidRequest("a node daemon says Hello first")
                self._greet(opening, scope, message)
            case _ if not opening.welcome:
                pass  # it closes the link when it has read why
            case Has(states):
                opening.states |= {state.instance_id: state for state in states}
            case Complete():
                self._is_linked(opening.states)
            case Changed(state):
                self._states[state.instance_id] = state
                if (child := self._children.get(state.token)) is not None:
                    child.update(state)
                self._end_if_stray(state)
            case Numbered(number, answer):
                self._answered(opening.link, number, answer)
            case Leaving():
                self.ended = True
            case Figures():
                self._measured(message)
        if opening.welcome:
            for receive in self._receivers.get(type(message), ()):
                receive(message)

    def _greet(self, opening: _Opening, scope: trio.CancelScope, hello: Hello) -> None:
        if self._is_replaced(hello):
            opening.newer = hello.obeys
        refusal = self._refusal(hello)
        opening.welcome = refusal is None
        if refusal is not None:
            opening.link.put(Unwelcome(refusal, forgotten=self.forgotten))
            if refusal != self.refused:
                log.warning("a daemon of node %s is not let in: %s", self.name, refusal)
            self.refused = refusal
        else:
            self.refused = ""
            self._serving.cancel()
            self._serving, self._link, self.facts, self.ended = scope, opening.link, hello.facts, False
            self.clock_skew_s = (hello.now - utc_now()).total_seconds()
            opening.link.put(Welcome(self._manager_id, tuple(self._calls), self._generation))
            for call in self._calls.values():
                if call.answer is None:
                    self._send(opening.link, call)

    def _is_replaced(self, hello: Hello) -> bool:
        known = hello.obeys
        return known is not None and self._generation is not None and self._generation.yields_to(known)

    def _refusal(self, hello: Hello) -> str | None:
        facts, known = hello.facts, self.facts
        if self._is_replaced(hello):
            return f"this manager was replaced: the node obeys {hello.obeys}"
        if self.forgotten:
            return "the node was forgotten: join it anew"
        if facts.node_id != self.node_id:
            return f"its certificate is that of node {self.name}, which it is not"
        if hello.version != VERSION:
            older = "of the manager" if hello.version > VERSION else "on the node"
            return (
                f"it speaks version {hello.version} of the protocol, not {VERSION}: update agentmgr {older}"
            )
        if self.linked and known is not None and _machine(facts) != _machine(known):
            return (
                f"a daemon of it on {known.host_name} is linked, and this one is on {facts.host_name}: its "
                "directory was copied; give this machine another one, and join it"
            )
        return None

    def _is_linked(self, states: dict[str, InstanceState]) -> None:
        """All that runs there was said."""
        self._states, self.lost, self.linked = states, None, True
        by_token = {state.token: state for state in states.values()}
        for token, child in list(self._children.items()):
            if (state := by_token.get(token)) is not None:
                child.update(state)
            else:
                child.gone()
        for state in list(states.values()):
            self._end_if_stray(state)
        self._tell()

    def _answered(self, link: _Link, number: str, answer: Answer) -> None:
        link.put(Settled(number))
        call = self._calls.get(number)
        if call is None:
            if isinstance(answer, Launched):  # the launch was cancelled too late
                record = answer.record
                self._end_if_stray(InstanceState(record.instance_id, record.token, answer.completes))
        elif call.done is not None:
            call.answer = call.answer or answer
            call.done.set()
        else:
            del self._calls[number]
            if isinstance(answer, Failed):
                log.warning("node %s: %s: %s", self.name, type(call.message.body).__name__, answer.reason)

    def _measured(self, figures: Figures) -> None:
        self.figures = figures
        for instance_id, usage in figures.usage.items():
            self._usage.setdefault(instance_id, deque(maxlen=USAGE_KEPT)).append(usage)
        for instance_id in self._usage.keys() - self._states.keys():
            del self._usage[instance_id]


def _machine(facts: Facts) -> tuple[str, str]:
    return facts.host_name, facts.boot_id
