"""Ray as the engine of a cluster: keeps its bridge running, and talks with it."""

from __future__ import annotations

import logging
import math
import os
import re
import subprocess
import sys
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from itertools import count

import trio
from attrs import define, field

from .. import bootstrap
from ..errors import AgentManagerError, InvalidRequest
from ..generation import Generation
from ..link import Link
from ..node.talk import talk
from ..version import __version__
from .engine import Claim, Demand, EngineObserver, Machine
from .ray_demands import bundle, described, selector
from .ray_protocol import (
    Alive,
    AllAsked,
    Ask,
    Begin,
    CannotConnect,
    Claims,
    Connected,
    Drop,
    Dropped,
    Given,
    Gone,
    Held,
    Hold,
    Invited,
    Obeys,
    Order,
    Pending,
    Refused,
    Report,
    Revive,
    Unfit,
    Up,
    WantsSecret,
    decode_report,
    encode,
)

log = logging.getLogger(__name__)

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 30.0
_STEADY_S = 60.0  #: a bridge that was connected for so long is followed by another one soon
_HANGS_S = 10.0  #: without a word from Ray it is said
_GIVEN_UP_S = 90.0
"""Without one another bridge is tried. By itself Ray ends it 60 s after its head has gone."""
_END_S = 2.0
_GIVE_BACK_S = 3.0
_LINES = 20
_LINE_CHARS = 1000
_SAID_CHARS = 300

_LOGGED = re.compile(r"\[[-0-9 :,]+ [EFC] \d+ \d+\] (?:\(.*?\) )?\S+: +(.*)")
"""A line of Ray's log that says of an error."""
_LACKS = re.compile(r"^ModuleNotFoundError: No module named '([^']+)'")
_ANOTHER_RAY = "WrongClusterID"  #: what a head that was started anew says to whom the one before knew
_OF_A_STACK = ("/", "@", "*** ", "File ", "[20")
_TOKEN_REFUSED = "InvalidAuthToken"  #: what Ray writes once a second while it tries
_TOKEN = (
    "the token of this manager is not that of Ray's cluster: start it with RAY_AUTH_MODE=token, and with the "
    "token of Ray's head in ~/.ray/auth_token or RAY_AUTH_TOKEN"
)


class NoObserver:
    """Keeps nothing."""

    def machine_up(self, machine: Machine) -> None:
        pass

    def machine_gone(self, engine_id: str, reason: str) -> None:
        pass

    def machine_forgotten(self, engine_id: str) -> None:
        pass

    def claims_found(self, claims: Mapping[str, Claim]) -> None:
        pass


@define(eq=False)
class _Asking:
    """A call of `claim` that waits."""

    claim_id: str
    demand: Demand
    prefer: str | None
    waits: Callable[[str], None]
    bundle: Mapping[str, float]
    ask: Ask | None = None  #: as it was posted to this bridge
    given: Claim | None = None  #: on a machine whose node is not up yet
    claim: Claim | None = None
    refusal: str = ""
    answered: trio.Event = field(factory=trio.Event)
    why: str = ""  #: as said last

    def say(self, why: str) -> None:
        text = f"waits for {described(self.demand)}: {why}"
        if text != self.why:
            self.why = text
            self.waits(text)


class RayEngine:
    """Implements `Engine`."""

    def __init__(
        self,
        cluster_id: str,
        invite: Callable[[], Awaitable[str]],
        *,
        manager_port: int,
        manager_host: str = "",
        generation: Generation,
        obeys: Callable[[str, Generation], None],
        address: str = "auto",
        python: str | None = None,
    ) -> None:
        """`invite` makes a secret to join with. `manager_host`: where nodes reach the manager; empty: at the
        address that its machine has in Ray. `obeys` is called with the id of a node that has a newer manager,
        and that one's generation. `python`: the interpreter of the bridge; None: this one.
        """
        self._obeys = obeys
        self._invite, self._python = invite, python or sys.executable
        self._begin = Begin(cluster_id, address, manager_host, manager_port, __version__, generation)
        self._observer: EngineObserver = NoObserver()
        self._machines: dict[str, Machine] = {}
        self._unfit: dict[str, Unfit] = {}
        self._coming: set[str] = set()  # engine ids that it had at the connection, and are neither yet
        self._remarks: dict[str, tuple[str, ...]] = {}
        self._asking: dict[str, _Asking] = {}
        self._dropping: set[str] = set()
        self._held: frozenset[str] | None = None
        self._holds: frozenset[str] | None = None  #: as this bridge has said
        self._news = trio.lowlevel.ParkingLot()  #: unparked when the bridge has done what it was to do
        self._numbers = count(1)
        self._link: Link[Order, Report] | None = None  #: once the bridge has connected
        self._new_link: Link[Order, Report] | None = None
        self._why_not = ""  #: there is no connection; "" before the first try has ended
        self._heard_at = -math.inf
        self._patience = trio.CancelScope()
        self._said: deque[str] = deque(maxlen=_LINES)
        self._nursery: trio.Nursery | None = None

    # The bridge

    async def run(self, observer: EngineObserver) -> None:
        self._observer, pause = observer, _FIRST_PAUSE_S
        while True:
            since = trio.current_time()
            why_not = await self._run_bridge()
            if trio.current_time() - since > _STEADY_S:
                pause = _FIRST_PAUSE_S
            if why_not != self._why_not:
                log.warning("Ray cannot be asked: %s", why_not)
            self._why_not = why_not
            self._refresh()
            await trio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_S)

    async def _run_bridge(self) -> str:
        """Runs one until it ends; returns why."""
        self._said.clear()
        command = [self._python, "-P", bootstrap.__file__, "agentmgr.cluster.ray_bridge"]
        try:
            process = await trio.lowlevel.open_process(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=bootstrap.environment(os.environ),
                start_new_session=True,  # out of reach of a terminal's Ctrl-C
            )
        except OSError as error:
            return f"{self._python} cannot be started ({error.strerror}): name another one, --cluster-python"
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            return await self._talk(process.stdin, process.stdout, process.stderr)
        finally:
            self._link = self._new_link = self._holds = None
            self._news.unpark_all()
            for asking in self._asking.values():
                asking.ask = asking.given = None
            with trio.CancelScope(shield=True):
                await process.stdin.aclose()  # which ends it
                with trio.move_on_after(_END_S):
                    await process.wait()
                if process.returncode is None:
                    process.kill()
                    await process.wait()
                await process.stdout.aclose()
                await process.stderr.aclose()

    async def _talk(
        self, stdin: trio.abc.SendStream, stdout: trio.abc.ReceiveStream, stderr: trio.abc.ReceiveStream
    ) -> str:
        """Until the bridge has ended, or is given up; returns why."""
        link = self._new_link = Link(trio.StapledStream(stdin, stdout), encode, decode_report)
        link.put(self._begin)
        why_not = ""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery

            async def listen() -> None:
                nonlocal why_not
                async for line in _lines(stderr):
                    self._said.append(line)
                    log.debug("Ray's bridge: %s", line)
                    if _TOKEN_REFUSED in line and self._link is None:
                        why_not = _TOKEN
                        nursery.cancel_scope.cancel()
                read.set()

            read = trio.Event()
            nursery.start_soon(listen)
            nursery.start_soon(self._end_in_order)
            try:
                with trio.CancelScope(shield=True) as self._patience:
                    self._hear()
                    await talk(link, self._receive)
                if self._patience.cancelled_caught and not why_not:
                    why_not = f"Ray did not answer for {_GIVEN_UP_S:g} s"
                with trio.move_on_after(_END_S):
                    await read.wait()
            except CannotAsk as problem:
                why_not = str(problem)
            except InvalidRequest as error:
                why_not = f"its bridge says what is not known here: {error.message}"
            nursery.cancel_scope.cancel()
        self._nursery = None
        return why_not or self._last_words()

    async def _end_in_order(self) -> None:
        """When `run` is cancelled, what was given back just before goes to Ray still."""
        try:
            await trio.sleep_forever()
        finally:
            with trio.move_on_after(_GIVE_BACK_S, shield=True):
                while self._link is not None and (self._dropping or self._holds != self._held):
                    await self._news.park()
            self._patience.cancel()

    def _last_words(self) -> str:
        if lacks := next((found[1] for line in self._said if (found := _LACKS.search(line))), None):
            return (
                f"{self._python} lacks what the bridge needs ({lacks}): `{self._python} -m pip install "
                f"'agentmgr-trio[ray]=={__version__}'`, or name another Python with --cluster-python"
            )
        if any(_ANOTHER_RAY in line for line in self._said):
            return "its head (GCS) was started anew; the bridge connects again"
        logged = [found[1] for line in self._said if (found := _LOGGED.match(line))]
        if any("Failed to connect to GCS" in text for text in logged):
            return "its head (GCS) is gone, and Ray has ended the bridge; does Ray run?"
        plain = [line for line in self._said if not line.startswith(_OF_A_STACK)]
        said = [*plain[-1:], *logged[-1:]]
        return (
            f"its bridge has ended: {said[-1][:_SAID_CHARS]}"
            if said
            else "its bridge has ended, and has said nothing"
        )

    def _post(self, *orders: Order) -> None:
        if self._link is not None:
            self._link.put(*orders)

    def _hear(self) -> None:
        self._heard_at = trio.current_time()
        self._patience.deadline = self._heard_at + _GIVEN_UP_S

    def _receive(self, report: Report) -> None:
        self._hear()
        match report:
            case Alive():
                pass
            case Connected():
                self._connected(report)
            case CannotConnect(reason):
                raise CannotAsk(reason)
            case Up(machine, remarks):
                self._up(machine, remarks)
            case Unfit(engine_id):
                self._is_unfit(engine_id, report)
            case Gone(engine_id, reason):
                self._gone(engine_id, reason)
            case Obeys(node_id, newer):
                self._tell(lambda: self._obeys(node_id, newer))
            case WantsSecret(engine_id):
                assert self._nursery is not None
                self._nursery.start_soon(self._send_secret, engine_id)
            case Dropped(claim_id):
                self._dropping.discard(claim_id)
                self._news.unpark_all()
            case Held(engine_ids):
                self._holds = frozenset(engine_ids)
                self._news.unpark_all()
            case Claims(claims):
                self._found(claims)
            case Given(number, claim):
                if (asking := self._asked(number, claim.claim_id)) is not None:
                    asking.given = claim
                    self._settle(asking)
            case Pending(number, claim_id, feasible):
                if (asking := self._asked(number, claim_id)) is not None:
                    asking.say("none is free" if feasible else "no machine of Ray's has that")
            case Refused(number, claim_id, reason):
                if (asking := self._asked(number, claim_id)) is not None:
                    asking.refusal = reason
                    asking.answered.set()

    def _connected(self, report: Connected) -> None:
        self._link = self._new_link
        self._why_not = ""
        if os.environ.get("RAY_AUTH_MODE", "").lower() != "token":
            log.warning("Ray asks for no token: whoever reaches its ports runs code on every machine")
        self._coming = set(report.alive) - self._machines.keys() - self._unfit.keys()
        count = len(report.alive)
        log.info("connected with Ray %s: %d machine%s", report.ray, count, "" if count == 1 else "s")
        for engine_id in [it for it in (*self._machines, *self._unfit) if it not in report.alive]:
            if (reason := report.dead.get(engine_id)) is not None:
                self._gone(engine_id, reason)
            else:
                self._forget(engine_id)
        self._post(*map(Drop, sorted(self._dropping)))
        self._refresh()
        if self._held is not None:
            self.hold(self._held)
        self._post(AllAsked())
        self._found(report.claims)

    async def _send_secret(self, engine_id: str) -> None:
        try:
            self._post(Invited(engine_id, await self._invite()))
        except AgentManagerError as error:  # the database; the bridge asks again
            log.error("cannot make a secret for machine %s of Ray: %s", engine_id, error)

    # Machines

    def machines(self) -> Sequence[Machine]:
        return tuple(self._machines.values())

    def coming(self) -> int:
        return len(self._coming)

    def revive(self, node_id: str) -> None:
        self._post(*(Revive(it.engine_id) for it in self._machines.values() if it.node_id == node_id))

    def hold(self, engine_ids: frozenset[str]) -> None:
        self._held = engine_ids
        self._post(Hold(tuple(sorted(engine_ids))))

    def _up(self, machine: Machine, remarks: tuple[str, ...]) -> None:
        self._coming.discard(machine.engine_id)
        self._unfit.pop(machine.engine_id, None)
        for remark in remarks:
            if remark not in self._remarks.get(machine.engine_id, ()):
                log.warning("machine %s %s", machine.address, remark)
        self._remarks[machine.engine_id] = remarks
        if self._machines.get(machine.engine_id) != machine:
            self._machines[machine.engine_id] = machine
            self._tell(lambda: self._observer.machine_up(machine))
        self._refresh()

    def _is_unfit(self, engine_id: str, report: Unfit) -> None:
        self._coming.discard(engine_id)
        if self._unfit.get(engine_id) != report:
            log.warning("machine %s cannot be a node: %s", report.address, report.reason)
        self._unfit[engine_id] = report
        self._refresh()

    def _gone(self, engine_id: str, reason: str) -> None:
        was_up = engine_id in self._machines
        self._remove(engine_id)
        if was_up:
            self._tell(lambda: self._observer.machine_gone(engine_id, reason))
        self._refresh()

    def _forget(self, engine_id: str) -> None:
        was_up = engine_id in self._machines
        self._remove(engine_id)
        if was_up:
            self._tell(lambda: self._observer.machine_forgotten(engine_id))

    def _remove(self, engine_id: str) -> None:
        self._coming.discard(engine_id)
        self._machines.pop(engine_id, None)
        self._unfit.pop(engine_id, None)
        self._remarks.pop(engine_id, None)

    def _tell(self, call: Callable[[], None]) -> None:
        try:
            call()
        except Exception:  # what observes it must not end the bridge
            log.exception("internal error: cannot report on a machine of Ray's")

    # Claims

    async def claim(
        self, claim_id: str, demand: Demand, *, prefer: str | None, waits: Callable[[str], None]
    ) -> Claim:
        selector(demand, (), ())  # raises for what can never be
        asking = _Asking(claim_id, demand, prefer, waits, bundle(demand))
        assert claim_id not in self._asking
        self._asking[claim_id], found = asking, None
        try:
            self._ask(asking)
            await asking.answered.wait()
            if asking.refusal:
                raise InvalidRequest(f"Ray cannot reserve {described(demand)}: {asking.refusal}")
            found = asking.claim
            assert found is not None
            return found
        finally:
            del self._asking[claim_id]
            if found is None:
                self.release(claim_id)

    def release(self, claim_id: str) -> None:
        self._dropping.add(claim_id)
        self._post(Drop(claim_id))

    def _asked(self, number: int, claim_id: str) -> _Asking | None:
        asking = self._asking.get(claim_id)
        return asking if asking is not None and asking.ask and asking.ask.number == number else None

    def _found(self, claims: Iterable[Claim]) -> None:
        there = {claim.claim_id: claim for claim in claims}
        for asking in self._asking.values():
            if asking.given is not None and there.get(asking.claim_id) != asking.given:
                asking.ask = asking.given = None
                self._ask(asking)
        self._tell(lambda: self._observer.claims_found(there))

    def _refresh(self) -> None:
        """Something of Ray's machines has changed, or whether it can be asked."""
        for asking in tuple(self._asking.values()):
            if asking.given is not None:
                self._settle(asking)
            elif not asking.answered.is_set():
                self._ask(asking)

    def _ask(self, asking: _Asking) -> None:
        """Posts it, unless it was posted as it is now."""
        if self._link is None:
            asking.say(
                f"Ray cannot be asked: {self._why_not}" if self._why_not else "Ray is not connected yet"
            )
            return
        wanted = selector(asking.demand, self._machines.values(), self._unfit)
        if asking.ask is not None:
            if asking.ask.selector == wanted:
                return
            self._post(Drop(asking.claim_id))
            asking.ask = None
        if wanted is None:
            asking.say("its node is none of Ray's machines now")
            return
        prefer = next((it for it in self._machines.values() if it.node_id == asking.prefer), None)
        if asking.prefer is None or prefer is None or not self._may_prefer(asking.demand, asking.prefer):
            preferred = ""
        else:
            preferred = prefer.engine_id
        asking.ask = Ask(asking.claim_id, next(self._numbers), asking.bundle, wanted, preferred)
        self._post(asking.ask)

    def _may_prefer(self, demand: Demand, node_id: str) -> bool:
        return node_id not in demand.not_on and (demand.only_on is None or node_id in demand.only_on)

    def _settle(self, asking: _Asking) -> None:
        """It was given; but the machine must have a node of ours."""
        assert asking.given is not None
        engine_id = asking.given.engine_id
        if engine_id in self._machines:
            asking.claim = asking.given
            asking.answered.set()
        elif engine_id in self._unfit:
            self._post(Drop(asking.claim_id))
            asking.ask = asking.given = None
            self._ask(asking)
        else:
            asking.say("the daemon of its node starts")

    # For the user

    def troubles(self) -> tuple[str, ...]:
        found = [f"machine {it.address} cannot be a node: {it.reason}" for it in self._unfit.values()]
        for engine_id, remarks in self._remarks.items():
            found += [f"machine {self._machines[engine_id].address} {remark}" for remark in remarks]
        if self._link is None and self._why_not:
            found.insert(
                0, f"Ray cannot be asked: {self._why_not}; what runs is not affected, but {_WITHOUT}"
            )
        elif self._link is not None and (silent_s := trio.current_time() - self._heard_at) > _HANGS_S:
            found.insert(0, f"Ray has not answered for {silent_s:.0f} s; until it does, {_WITHOUT}")
        return tuple(found)


_WITHOUT = "nothing is reserved, and no machine is added"


class CannotAsk(Exception):
    """There is no connection with Ray, and why. It does not leave this module."""


async def _lines(stream: trio.abc.ReceiveStream) -> AsyncIterator[str]:
    rest = b""
    async for piece in stream:
        *lines, rest = (rest + piece).split(b"\n")
        rest = rest[-4 * _LINE_CHARS :]
        for line in lines:
            if text := line.decode(errors="replace").strip():
                yield text[:_LINE_CHARS]
