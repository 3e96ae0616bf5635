"""From a request to a seat at an instance, with a fair wait where waiting helps."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence, Set
from contextlib import asynccontextmanager
from copy import deepcopy
from itertools import count

import trio
from attrs import define, evolve, field

from ..core.admission import Seats
from ..core.affinity import Affinity, named_instance, named_node, named_place
from ..core.outliers import OutlierPolicy, Outliers
from ..core.request import ClientRequest
from ..core.routing import Backend, BackendState, Pool, Router
from ..core.strategies import Rotation, choose
from ..core.table_change import TableChange
from ..errors import ServiceNotFound
from ..protocol import COME_BACK, FAILED
from ..websocket.refusal import Refusal, RefusalCode
from .handshake import ClientGone
from .limits import GatewayLimits
from .visit import Seat, Visit

_NEWS_S = 0.5  # how long the table may lag behind an instance that has just gone


@define(eq=False)
class _Waiter:
    visit: Visit
    ticket: int  #: by which its seat is asked for, where seats are shared
    queues: list[_Queue] = field(factory=list)  #: those that it stands in
    asked: bool = False  #: and no seat was granted yet
    woken: trio.Event = field(factory=trio.Event)
    outcome: Seat | Refusal | ClientGone | None = None


_Queue = dict[int, _Waiter]  # by ticket, and so in order of arrival


class Lobby:
    """Hands out seats. Every choice takes its seat in the same step, so `max_sessions` is never passed.

    A seat that comes free goes to the client that has waited longest for it, before any newcomer.
    """

    def __init__(
        self,
        router: Router,
        limits: GatewayLimits,
        outliers: OutlierPolicy,
        *,
        seats: Seats | None = None,
        affinity: Affinity | None = None,
        seat_freed: Callable[[str], None] | None = None,
        wake: Callable[[str], None] | None = None,
    ) -> None:
        self._router = router
        self._limits = limits
        self._seats = Seats() if seats is None else seats
        self._outliers = Outliers(outliers)
        self._affinity = Affinity() if affinity is None else affinity
        self._waiting: _Queue = {}
        self._queues: dict[str, _Queue] = {}  # by instance: who waits for a seat there, or at others too
        self._tickets = count(1)
        self._seat_freed = seat_freed
        self._wake = wake
        self._asked_for: dict[str, trio.Event] = {}
        """Backends that are asleep and were asked for, each with the `_news` of the table by which it was."""
        self._news = trio.Event()
        for backend in router.by_id.values():
            self._seats.set_limit(backend.instance_id, backend.max_sessions)

    @property
    def router(self) -> Router:
        return self._router

    def update(self, router: Router) -> None:
        before, self._router = self._router, router
        self._follow(
            before.by_id,
            gone=before.by_id.keys() - router.by_id.keys(),
            changed=(b for b in router.by_id.values() if before.by_id.get(b.instance_id) is not b),
        )

    def change(self, change: TableChange) -> None:
        """As `update` by a router of the table that follows, at the cost of what has changed."""
        known, changed = self._router.by_id, {b.instance_id for b in change.backends}
        before = {name: known[name] for name in (*change.gone, *changed) if name in known}
        self._router.change(change)
        self._follow(before, gone=set(change.gone) - changed, changed=change.backends)

    def _follow(
        self, before: Mapping[str, Backend], *, gone: Iterable[str], changed: Iterable[Backend]
    ) -> None:
        """`before`: those that are gone or have changed, as they were."""
        now = trio.current_time()
        for name in gone:
            self._seats.set_limit(name, 0)
            self._outliers.forget(name)
        for backend in changed:
            self._seats.set_limit(backend.instance_id, backend.max_sessions)
            old = before.get(backend.instance_id)
            if backend.state is BackendState.ROUTABLE and (old is None or old.state is not backend.state):
                self._outliers.recovered(backend.instance_id, now)
        for waiter in self._waiting.values():
            tried = waiter.visit.tried
            tried -= {name for name in tried if not self._is_routable(name)}
        self._asked_for = {
            name: asked
            for name, asked in self._asked_for.items()
            if name in self._router.by_id and self._router.by_id[name].state is BackendState.ASLEEP
        }
        self._queues = {}  # who waits on lines up anew
        self._news.set()
        self._news = trio.Event()
        self.serve_waiting()

    def table_is_old(self) -> None:
        """No manager keeps the table up to date: what is asleep is asked for again when one does."""
        self._asked_for.clear()

    @property
    def live(self) -> Mapping[str, int]:
        """Seats taken, by instance id."""
        return self._seats.taken

    def waiting(self, instance_ids: Iterable[str]) -> int:
        """How many clients wait for a seat at one of these."""
        return len(set[int]().union(*(self._queues.get(name, ()) for name in instance_ids)))

    async def loss_code(self, backend: Backend, *, resuming_failed: bool, at_gate: bool = False) -> int:
        """The close code for the clients of an instance that was lost: 1012 when coming back helps.

        `at_gate`: it may have been the gateway of its node that was lost, and not the instance.

        The table learns of the loss at about the same time, so this waits for it a moment.
        """
        if not resuming_failed:  # else it was waited for already
            with trio.move_on_after(_NEWS_S):
                while self._is_routable(backend.instance_id):
                    await self._news.wait()
            if self._is_routable(backend.instance_id):
                return COME_BACK if at_gate else FAILED  # it lives, and dropped the connection
        peers = self._router.peers(backend)
        return COME_BACK if any(b.state.worth_waiting for b in peers) else FAILED

    @asynccontextmanager
    async def seat(self, visit: Visit) -> AsyncIterator[Seat | None]:
        """A seat at an instance that has not failed this client; None when only those are left.

        Raises `Refusal`: no instance, none that is starting, or none free in time. Raises `ClientGone`.
        """
        seat = self._pick(visit) or await self._wait(visit)
        del visit  # it has the client's whole request, and this frame stays as long as the connection
        if seat is None:
            yield None
            return
        try:
            yield seat
        finally:
            self._give_back(seat)

    def opened(self, visit: Visit, seat: Seat) -> None:
        """The instance took the client."""
        name, session_id = seat.backend.instance_id, visit.request.session_id
        self._outliers.succeeded(name, trio.current_time())
        if session_id is not None and (
            self._affinity.holder(session_id) != name
            or (self._affinity.node(session_id) or "") != seat.backend.node_id
        ):
            self._affinity.remember(session_id, name, seat.backend.node_id)

    def moved(self, visit: Visit, seat: Seat, holder: str) -> None:
        """The instance does not hold the client's session, and says which one of its service does; or "": any
        other one may take it up.
        """
        if not holder:
            visit.given_up.add(seat.backend.instance_id)
        known, session_id = self._router.by_id.get(holder), visit.request.session_id
        if known is not None and known.service_id == seat.backend.service_id and visit.patience_s is not None:
            visit.sought = holder
        elif known is not None and known.service_id == seat.backend.service_id and session_id is not None:
            self._affinity.remember(session_id, holder, known.node_id)
        else:
            self.failed(visit, seat, blame=False)

    def failed(self, visit: Visit, seat: Seat, *, blame: bool = True) -> None:
        """The instance did not take the client, and is not asked again for it unless it holds its session.

        `blame`: it is to be spared for a while, if that goes on.
        """
        name = seat.backend.instance_id
        visit.tried.add(name)
        if seat.pool.home:
            visit.home = name
        if blame and name not in visit.blamed and name in self._router.by_id:
            visit.blamed.add(name)  # a client that tries again and again is no new evidence
            self._outliers.failed(name, trio.current_time())

    async def noticed(self, backend: Backend) -> None:
        """Waits a moment for the table to learn that an instance has ended."""
        with trio.move_on_after(_NEWS_S):
            while (
                self._is_routable(backend.instance_id)
                and self._router.by_id[backend.instance_id].token == backend.token
            ):
                await self._news.wait()

    async def outdated(self, visit: Visit, seat: Seat) -> None:
        """Another process answered than the table knows: waits a moment for the table that knows it."""
        name, token = seat.backend.instance_id, seat.backend.token
        with trio.move_on_after(_NEWS_S):
            while (known := self._router.by_id.get(name)) is not None and known.token == token:
                await self._news.wait()
            return
        visit.tried.add(name)

    def granted(self, ticket: int, instance_id: str) -> None:
        """Offers a seat that was asked for to its client, if that still waits."""
        if waiter := self._waiting.get(ticket):
            waiter.visit.preferred = instance_id
            waiter.asked = False
            self._offer(waiter)

    def preview(self, request: ClientRequest) -> tuple[Pool, Backend | None]:
        """The pool for a request and who would be chosen now, or started. Takes no seat; raises `Refusal`."""
        visit = Visit(request)
        pool = self._pool(visit)
        candidates = self._candidates(pool, visit) or self._to_be_woken(pool)
        return pool, self._choose(pool, candidates, request, deepcopy(pool.rotation)) if candidates else None

    def _is_routable(self, instance_id: str) -> bool:
        backend = self._router.by_id.get(instance_id)
        return backend is not None and backend.state is BackendState.ROUTABLE

    def _pool(self, visit: Visit) -> Pool:
        home = self._home(visit)
        if home is not None and home.state.keeps_sessions:
            return self._router.home(home)
        try:
            pool = self._router.pool(visit.request) if home is None else self._router.service_of(home)
        except ServiceNotFound as error:
            raise Refusal(404, RefusalCode.SERVICE_NOT_FOUND, error.message) from None
        pool = self._where_it_goes_on(visit, pool)
        if visit.services is None:
            return pool
        allowed = tuple(b for b in pool.backends if b.service_name in visit.services)
        if pool.backends and not allowed:
            raise Refusal(403, RefusalCode.FORBIDDEN, "this token does not allow connecting there")
        return evolve(pool, backends=allowed)

    def _where_it_goes_on(self, visit: Visit, pool: Pool) -> Pool:
        """Those of the pool that may go on with what the client names: on the node that has its journal.

        That of a node which is lost will not do: a host there is says so to the client. A name of a client's
        own leads to any node as soon as its service is not on that one any more.
        """
        if not self._router.gates or not (visit.node_id is not None or visit.request.named_session):
            return pool
        places = dict[str, tuple[str | None, bool]]()  # by service id
        for backend in pool.backends:
            if backend.journaled and backend.service_id not in places:
                places[backend.service_id] = self._journal_at(visit, pool, backend.service_id)
        kept = [it for it in places.values() if it[0] is not None]
        if not kept:
            return pool
        node_id, moving = max(kept, key=lambda it: it[1])
        where = f"node {node_id}" if node_id else "the manager's machine"
        return evolve(
            pool,
            backends=tuple(
                b for b in pool.backends if not b.journaled or places[b.service_id][0] in (None, b.node_id)
            ),
            moving=moving,
            reason=f"the session is kept on {where}, where no instance of its service runs now, and "
            "can go on there only",
        )

    def _journal_at(self, visit: Visit, pool: Pool, service_id: str) -> tuple[str | None, bool]:
        """The id of the node that has the journal of what the client is to go on with, if it is of that
        service, and whether it is on its way from there; None: any node will do.
        """
        router, node_id = self._router, visit.node_id
        if node_id is not None:
            return node_id, False
        named = visit.request.named_session
        assert named is not None
        if (place := named_place(named[0])) is not None:
            node_id, moving = router.journal_at(service_id, *place)
        else:
            if (known := self._affinity.node(named[0])) is None:
                return None, False
            node_id, moving = router.journal_at(service_id, known, None)
            if not moving and not any(b.node_id == known for b in pool.backends):
                node_id = router.journal_left_for(service_id, known)
        return (None, False) if node_id is None or not router.has_node(node_id) else (node_id, moving)

    def can_go_on(self, backend: Backend) -> bool:
        """Whether an instance may come that goes on with a connection which this one has lost."""
        gates = self._router.gates
        if not gates or not backend.journaled:
            return True
        if not self._router.has_node(backend.node_id):
            return False
        peers = tuple(self._router.peers(backend))
        return not peers or any(peer.node_id == backend.node_id for peer in peers)

    def _pick(self, visit: Visit) -> Seat | None:
        """A seat, taken, or None when it takes a wait. Raises `Refusal` when waiting does not help."""
        pool = self._pool(visit)
        candidates = self._candidates(pool, visit)
        if not candidates:
            if not pool.coming:
                why = f"no service is available: {pool.reason}"
                if any(b.state is BackendState.NO_LISTENER for b in pool.backends):
                    why += ", and it serves no connections: it runs, and no instance listens on its port"
                raise self._unavailable(RefusalCode.NO_SERVICE_AVAILABLE, why)
            self._wake_one(pool, visit)
            return None
        granted = [b for b in candidates if b.instance_id == visit.preferred] if visit.preferred else None
        backend = granted[0] if granted else self._choose(pool, candidates, visit.request, pool.rotation)
        if not self._seats.take(backend):
            visit.preferred = backend.instance_id
            return None
        return Seat(backend, pool)

    def _candidates(self, pool: Pool, visit: Visit, full: Set[str] | None = None) -> Sequence[Backend]:
        """Those that can take this client now."""
        blocked = (self._seats.full if full is None else full) | visit.tried
        if pool.home:
            return [b for b in pool.backends if b.instance_id not in blocked]
        ejected = self._outliers.ejected(trio.current_time())
        if not blocked and not ejected:
            return pool.routable
        free = [b for b in pool.routable if b.instance_id not in blocked]
        # If all are ejected, the fault may be the gateway's: better to try them than to refuse.
        return [b for b in free if b.instance_id not in ejected] or free

    def _to_be_woken(self, pool: Pool) -> Sequence[Backend]:
        """Those of which one has to be started for a client that waits; one at a time is."""
        if not pool.asleep or any(b.state is BackendState.COMING for b in pool.backends):
            return ()
        return [b for b in pool.asleep if b.instance_id in self._asked_for] or pool.asleep

    def _wake_one(self, pool: Pool, visit: Visit) -> None:
        """Asks for it once with each table: the one before may have been on its way when it was asked for."""
        if self._wake is not None and (asleep := self._to_be_woken(pool)):
            found = self._choose(pool, asleep, visit.request, pool.rotation)
            if self._asked_for.get(found.instance_id) is not self._news:
                self._asked_for[found.instance_id] = self._news
                self._wake(found.service_id)

    def _home(self, visit: Visit) -> Backend | None:
        """The instance that holds the session which the client names, as long as its process lives.

        Also one that is to come, of a service that starts on demand: its service takes the session up.

        Raises `Refusal` where the client may not go there, or asks for another service in the same breath. An
        id that an application has made, or that came in a cookie, is no such contradiction: another service
        may have one that is equal.
        """
        if visit.sought is not None:
            sought = self._router.by_id.get(visit.sought)
            return sought if sought is not None and sought.state.keeps_sessions else None
        if (named := visit.request.named_session) is None:
            return None
        session_id, deliberate = named
        certain = self._router.by_id.get(named_instance(session_id) or "")
        if (
            certain is not None
            and certain.journaled
            and named_node(session_id) not in (None, certain.node_id)
        ):
            certain = None  # started again on another node, where no journal has the session
        home = self._router.by_id.get(self._affinity.holder(session_id) or "")  # it may have moved
        kept_at = self._affinity.node(session_id)
        if home is not None and home.journaled and kept_at not in (None, home.node_id):
            home = None
        if certain is not None and (
            home is None or home.service_id != certain.service_id or not _is_home(home)
        ):
            home = certain
        if home is None or not _is_home(home) or home.instance_id in visit.given_up:
            return None
        if visit.services is not None and home.service_name not in visit.services:
            if certain is None:
                return None
            reason = "this token does not allow connecting where the session is held"
            raise Refusal(403, RefusalCode.FORBIDDEN, reason)
        asked = self._router.service_named_by(visit.request)
        if asked in (None, home.service_name) or not self._router.knows(asked):
            return home
        if certain is None or not deliberate:
            return None
        raise Refusal(
            409,
            RefusalCode.SESSION_ELSEWHERE,
            f"the session is held by service {home.service_name!r}, and the address asks for {asked!r}; "
            f"connect to /services/{home.service_name}, or leave the session out to begin a new one",
        )

    def _choose(
        self, pool: Pool, candidates: Sequence[Backend], request: ClientRequest, rotation: Rotation
    ) -> Backend:
        return choose(
            pool.strategy,
            candidates,
            live=self._seats.taken,
            rotation=rotation,
            rand=random.random,
            key=pool.key_of(request),
            weights=self._outliers.weights(pool.weights, trio.current_time()),
        )

    async def _wait(self, visit: Visit) -> Seat | None:
        if visit.preferred is None and len(self._waiting) >= self._limits.queue_size:
            reason = "all instances are at capacity, and so is the queue for them"
            raise self._unavailable(RefusalCode.AT_CAPACITY, reason)
        waiter = _Waiter(visit, next(self._tickets))
        self._waiting[waiter.ticket] = waiter
        try:
            self._line_up(waiter)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._leave, waiter)
                if visit.tried:
                    with trio.move_on_after(_NEWS_S):
                        await waiter.woken.wait()
                    if waiter.outcome is None:
                        self._try_home_again(waiter)
                    if waiter.outcome is None and not self._worth_waiting(visit):
                        nursery.cancel_scope.cancel()
                        return None
                limit = visit.patience_s
                if limit is None:
                    visit.starts_within = self._pool(visit).starts_within
                    limit = max(self._limits.queue_timeout_s, visit.starts_within)
                with trio.move_on_after(limit):
                    await waiter.woken.wait()
                nursery.cancel_scope.cancel()
            outcome, waiter.outcome = waiter.outcome, None
        finally:
            self._step_out(waiter)
            visit.preferred = None
            if waiter.asked:
                self._seats.withdraw(waiter.ticket)
            if isinstance(waiter.outcome, Seat):  # given to a waiter that is being cancelled
                self._give_back(waiter.outcome)
        if isinstance(outcome, Exception):
            raise outcome
        if outcome is None:
            raise self._unavailable(RefusalCode.AT_CAPACITY, "no instance became free in time")
        return outcome

    async def _leave(self, waiter: _Waiter) -> None:
        await waiter.visit.left()
        if waiter.ticket in self._waiting:  # else it has its outcome already
            self._step_out(waiter)
            waiter.outcome = ClientGone("it left while it waited")
            waiter.woken.set()

    def _worth_waiting(self, visit: Visit) -> bool:
        """Whether an instance may come that has not failed this client."""
        pool = self._pool(visit)
        return (
            pool.home
            or pool.moving
            or any(
                b.state.worth_waiting
                and not (b.state is BackendState.ROUTABLE and b.instance_id in visit.tried)
                for b in pool.backends
            )
        )

    def _try_home_again(self, waiter: _Waiter) -> None:
        """Another instance would only say that it does not know the session: the one that does is retried."""
        if (home := waiter.visit.home) in waiter.visit.tried:
            waiter.visit.tried.discard(home)
            self._offer(waiter)

    def _line_up(self, waiter: _Waiter) -> None:
        """Enters the queues of all suitable instances, or stays there; asks for a seat that is shared."""
        visit, pool = waiter.visit, self._pool(waiter.visit)
        waiter.queues = [self._queues.setdefault(name, {}) for name in pool.by_id]
        for queue in waiter.queues:
            queue[waiter.ticket] = waiter
        names = [b.instance_id for b in self._candidates(pool, visit, frozenset())]
        names.sort(key=lambda name: name != visit.preferred)  # that one first; else in their order
        if names or waiter.asked:
            waiter.asked = True
            self._seats.ask(waiter.ticket, names)

    def _step_out(self, waiter: _Waiter) -> None:
        self._waiting.pop(waiter.ticket, None)
        for queue in waiter.queues:
            queue.pop(waiter.ticket, None)

    def _give_back(self, seat: Seat) -> None:
        name = seat.backend.instance_id
        if self._seats.give_back(name):
            self.offer_seat(name)
        if self._seat_freed is not None and name not in self._seats.full:
            self._seat_freed(name)

    def offer_seat(self, instance_id: str) -> None:
        """Offers what is free there to those who wait for it, in their order."""
        for waiter in tuple(self._queues.get(instance_id, {}).values()):
            if instance_id in self._seats.full:
                return
            self._offer(waiter)

    def serve_waiting(self) -> None:
        """Offers all that is free to all who wait, in their order."""
        for waiter in tuple(self._waiting.values()):
            self._offer(waiter)

    def _offer(self, waiter: _Waiter) -> None:
        """Ends its wait, if there is a seat for it now, or no hope of one."""
        try:
            waiter.outcome = self._pick(waiter.visit)
            if waiter.outcome is None:
                self._line_up(waiter)
                return
        except Refusal as refusal:
            waiter.outcome = refusal
        self._step_out(waiter)
        waiter.woken.set()

    def _unavailable(self, code: RefusalCode, reason: str) -> Refusal:
        return Refusal(503, code, reason, (("Retry-After", str(self._limits.retry_after_s)),))


def _is_home(backend: Backend) -> bool:
    comes = backend.state in (BackendState.ASLEEP, BackendState.COMING)
    return backend.state.keeps_sessions or bool(backend.starts_within and comes)
