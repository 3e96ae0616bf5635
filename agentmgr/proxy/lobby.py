"""From a request to a seat at an instance, with a fair wait where waiting helps."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import trio
from attrs import frozen

from ..core.admission import Seats
from ..core.routing import Backend, BackendState, ClientRequest, Pool, Router
from ..core.strategies import choose
from ..errors import ServiceNotFound
from .limits import GatewayLimits
from .refusal import Refusal

_NEWS_S = 0.5  # how long the table may lag behind an instance that has just gone


@frozen
class Seat:
    """A place at an instance, taken before it is dialled."""

    backend: Backend
    pool: Pool


class _Waiter:
    __slots__ = ("outcome", "request", "tried", "woken")

    def __init__(self, request: ClientRequest, tried: set[str]) -> None:
        self.request = request
        self.tried = tried
        self.woken = trio.Event()
        self.outcome: Seat | Refusal | None = None


class Lobby:
    """Hands out seats. Every choice takes its seat in the same step, so `max_sessions` is never passed.

    A seat that comes free goes to the client that has waited longest for it, before any newcomer.
    """

    def __init__(self, router: Router, limits: GatewayLimits) -> None:
        self._router = router
        self._limits = limits
        self._seats = Seats()
        self._waiting: dict[_Waiter, None] = {}  # in order of arrival
        self._news = trio.Event()
        self.update(router)

    @property
    def router(self) -> Router:
        return self._router

    def update(self, router: Router) -> None:
        for gone in self._router.by_id.keys() - router.by_id.keys():
            self._seats.set_limit(gone, 0)
        for backend in router.table.backends:
            self._seats.set_limit(backend.instance_id, backend.max_sessions)
        self._router = router
        self._news.set()
        self._news = trio.Event()
        for waiter in self._waiting:
            waiter.tried = {name for name in waiter.tried if self._is_routable(name)}
        self._serve_waiting()

    @property
    def live(self) -> Mapping[str, int]:
        """Seats taken, by instance id."""
        return self._seats.taken

    def has_room(self, instance_id: str) -> bool:
        return self._seats.has_room(instance_id)

    async def loss_code(self, backend: Backend) -> int:
        """The close code for the clients of an instance that was lost: 1012 when coming back helps.

        The table learns of the loss at about the same time, so this waits for it a moment.
        """
        with trio.move_on_after(_NEWS_S):
            while self._is_routable(backend.instance_id):
                await self._news.wait()
        if self._is_routable(backend.instance_id):
            return 1011  # it lives, and dropped the connection
        peers = (b for b in self._router.table.backends if b.service_id == backend.service_id)
        back = any(b.state in (BackendState.ROUTABLE, BackendState.COMING) for b in peers)
        return 1012 if back else 1011

    @asynccontextmanager
    async def seat(self, request: ClientRequest, tried: set[str]) -> AsyncIterator[Seat | None]:
        """A seat at an instance that is not in `tried`; None when only those are left.

        Raises `Refusal`: nobody there, nobody coming, or not in time.
        """
        seat = self._pick(request, tried) or await self._wait(request, tried)
        if seat is None:
            yield None
            return
        try:
            yield seat
        finally:
            self._give_back(seat)

    def _is_routable(self, instance_id: str) -> bool:
        backend = self._router.by_id.get(instance_id)
        return backend is not None and backend.state is BackendState.ROUTABLE

    def _pool(self, request: ClientRequest) -> Pool:
        try:
            return self._router.pool(request)
        except ServiceNotFound as error:
            raise Refusal(404, error.code, error.message) from None

    def _pick(self, request: ClientRequest, tried: set[str]) -> Seat | None:
        """A seat, taken, or None when it takes a wait. Raises `Refusal` when waiting does not help."""
        pool = self._pool(request)
        blocked = self._seats.full | tried
        candidates = [b for b in pool.routable if b.instance_id not in blocked] if blocked else pool.routable
        if not candidates:
            if not pool.coming:
                raise self._nobody("no_service_available", f"no service is available ({pool.reason})")
            return None
        backend = choose(
            pool.strategy,
            candidates,
            live=self._seats.taken,
            rotation=pool.rotation,
            rand=random.random,
            key=pool.key_of(request),
        )
        self._seats.take(backend)
        return Seat(backend, pool)

    async def _wait(self, request: ClientRequest, tried: set[str]) -> Seat | None:
        if len(self._waiting) >= self._limits.queue_size:
            raise self._nobody("at_capacity", "all instances are at capacity, and so is the queue for them")
        waiter = _Waiter(request, tried)
        self._waiting[waiter] = None
        try:
            if tried:
                with trio.move_on_after(_NEWS_S):
                    await waiter.woken.wait()
                if not self._worth_waiting(waiter):
                    return None
            with trio.move_on_after(self._limits.queue_timeout_s):
                await waiter.woken.wait()
            outcome, waiter.outcome = waiter.outcome, None
        finally:
            self._waiting.pop(waiter, None)
            if isinstance(waiter.outcome, Seat):  # handed to somebody who has just left
                self._give_back(waiter.outcome)
        if isinstance(outcome, Refusal):
            raise outcome
        if outcome is None:
            raise self._nobody("at_capacity", "no instance became free in time")
        return outcome

    def _worth_waiting(self, waiter: _Waiter) -> bool:
        """Is there somebody besides those that failed already?"""
        if waiter.outcome is not None:
            return True
        backends = self._pool(waiter.request).backends
        return any(
            b.state is BackendState.COMING
            or (b.state is BackendState.ROUTABLE and b.instance_id not in waiter.tried)
            for b in backends
        )

    def _give_back(self, seat: Seat) -> None:
        self._seats.give_back(seat.backend.instance_id)
        self._serve_waiting(seats=1)

    def _serve_waiting(self, *, seats: int | None = None) -> None:
        """Offers what is free to those who wait, in their order; `seats`: no more than these came free."""
        for waiter in tuple(self._waiting):
            if seats is not None and seats <= 0:
                return
            try:
                waiter.outcome = self._pick(waiter.request, waiter.tried)
            except Refusal as refusal:
                waiter.outcome = refusal
            if waiter.outcome is None:
                continue
            if isinstance(waiter.outcome, Seat) and seats is not None:
                seats -= 1
            del self._waiting[waiter]
            waiter.woken.set()

    def _nobody(self, code: str, reason: str) -> Refusal:
        return Refusal(503, code, reason, (("Retry-After", str(self._limits.retry_after_s)),))
