"""Seats of workers on other machines: cut cables, late messages, and a clock."""

from __future__ import annotations

from collections import Counter, deque

from attrs import define, field
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from agentmgr.core.leases import Lease
from agentmgr.core.shared_seats import Grant, Ledger, SeatReport, SharedSeats
from tests.core.test_shared_seats import LIMITS, WORKERS, instance, ledger, shared

_LEASE, _MARGIN, _SILENCE = 5, 2, 2  # ticks


def test_a_lease_counts_from_when_the_answered_question_was_asked() -> None:
    lease = Lease(30.0)
    early, late = lease.ask(100.0), lease.ask(101.0)
    lease.answered(early)
    assert lease.ends_at == 130.0
    lease.answered(late)
    assert lease.ends_at == 131.0
    lease.answered(early)  # the answer to an older question, long under way
    assert lease.ends_at == 131.0
    never = lease.ask(150.0)
    lease.unlinked()
    lease.answered(never)
    assert lease.ends_at == 131.0


def test_when_the_lease_is_over_the_seats_elsewhere_are_given_up_and_those_here_are_not() -> None:
    seats = shared([])
    seats.attach()
    for name in ("a", "b", "b"):
        seats.granted(name)
        assert seats.take(instance(name))
    seats.granted("b")  # a client that left while the grant was under way
    seats.detach()
    assert seats.lapse({"a", "free"}) == ["b"]
    assert not seats.take(instance("b"))
    assert not seats.give_back("b"), "no other client here can have it"
    assert "b" in seats.full
    assert seats.give_back("a")
    assert seats.take(instance("a"))
    assert seats.take(instance("free"))
    assert seats.attach() == {"a": 1, "b": 1, "free": 1}


@define
class Link:
    to_manager: deque[object] = field(factory=deque)
    to_worker: deque[object] = field(factory=deque)


@define
class Worker:
    seats: SharedSeats
    told: list[SeatReport]
    lease: Lease
    link: Link | None = None
    asking: dict[int, tuple[str, ...]] = field(factory=dict)
    live: Counter[str] = field(factory=Counter)
    lapsed: bool = False


@define
class Known:
    """What the manager has of a worker."""

    link: Link | None
    unlinked_at: int = 0


class WorkersBehindCables(RuleBasedStateMachine):
    """Cables are pulled, either side may give a link up, and what is under way may arrive at any time."""

    @initialize()
    def begin(self) -> None:
        self.now = self.tickets = 0
        self.ledger: Ledger
        self.ledger, self.counts = ledger()
        self.known: dict[str, Known] = {}
        self.awaited: set[str] = set()
        self.workers = {name: self.newcomer() for name in WORKERS}
        self.cut: dict[str, int] = {}  # pulled cables, and when
        self.time_passes(1, 0)

    def newcomer(self) -> Worker:
        told: list[SeatReport] = []
        return Worker(shared(told), told, Lease(_LEASE))

    def say(self, worker: Worker) -> None:
        if worker.link is not None:
            worker.link.to_manager.extend(worker.told)
        worker.told.clear()

    def pass_on(self, grants: list[tuple[str, Grant]]) -> None:
        for name, grant in grants:
            link = self.known[name].link
            assert link is not None
            link.to_worker.append(grant)

    @rule(name=st.sampled_from(WORKERS), wants=st.sampled_from([("a",), ("b",), ("b", "a"), ("free", "a")]))
    def a_client_comes(self, name: str, wants: tuple[str, ...]) -> None:
        worker = self.workers[name]
        wanted = [w for w in wants if w not in worker.seats.full]
        if wanted and worker.seats.take(instance(wanted[0])):
            worker.live[wanted[0]] += 1
        elif worker.link is not None:
            self.tickets += 1
            worker.asking[self.tickets] = wants
            worker.seats.ask(self.tickets, wants)
        self.say(worker)
        if name not in self.cut:
            self.messages_arrive(name, 10, "both")

    @rule(name=st.sampled_from(WORKERS))
    def the_sessions_end(self, name: str) -> None:
        for which in LIMITS:
            self.a_session_ends(name, which)

    def a_session_ends(self, name: str, which: str) -> None:
        worker = self.workers[name]
        if worker.live[which]:
            worker.live[which] -= 1
            worker.seats.give_back(which)
            self.say(worker)

    @rule(name=st.sampled_from(WORKERS))
    def a_cable_is_pulled_or_plugged(self, name: str) -> None:
        if self.cut.pop(name, None) is None:
            self.cut[name] = self.now

    def a_worker_connects(self, name: str) -> None:
        worker = self.workers[name]
        if worker.link is None:
            worker.link = link = Link()
            link.to_manager.append("hello")
            link.to_manager.append(dict(worker.seats.attach()))
            worker.lapsed = False
            self.a_worker_asks_for_renewal(name)

    def a_worker_asks_for_renewal(self, name: str) -> None:
        worker = self.workers[name]
        if worker.link is not None:
            worker.link.to_manager.append(worker.lease.ask(self.now))

    @rule(name=st.sampled_from(WORKERS), count=st.integers(1, 5), how=st.sampled_from(["both", "up", "down"]))
    def messages_arrive(self, name: str, count: int, how: str) -> None:
        for _ in range(count):
            if how != "down":
                self.the_manager_hears_one(name)
            if how != "up":
                self.a_worker_hears_one(name)

    def the_manager_hears_one(self, name: str) -> None:
        worker, known = self.workers[name], self.known.get(name)
        if worker.link is not None and worker.link.to_manager and worker.link.to_manager[0] == "hello":
            if known is not None and known.link is not None:
                self.the_manager_gives_a_link_up(name)
            worker.link.to_manager.popleft()
            known = self.known[name] = Known(worker.link)
        if known is None or known.link is None or not known.link.to_manager:
            return
        match known.link.to_manager.popleft():
            case dict() as declared:
                self.pass_on(self.ledger.declare(name, declared))
                self.heard_of(name)
            case int() as number:
                known.link.to_worker.append(number)
            case report:
                self.pass_on(self.ledger.report(name, report))  # type: ignore[arg-type]

    def heard_of(self, name: str) -> None:
        self.awaited.discard(name)
        if not self.awaited:
            self.pass_on(self.ledger.resume())

    def a_worker_hears_one(self, name: str) -> None:
        worker = self.workers[name]
        if worker.link is not None and worker.link.to_worker:
            match worker.link.to_worker.popleft():
                case int() as number:
                    worker.lease.answered(number)
                case Grant() as grant:
                    worker.seats.granted(grant.instance_id)
                    if worker.asking.pop(grant.ticket, None) is not None:
                        assert worker.seats.take(instance(grant.instance_id))
                        worker.live[grant.instance_id] += 1
                    worker.seats.settle(grant.instance_id)
                    self.say(worker)

    @rule(name=st.sampled_from(WORKERS), managers=st.booleans())
    def a_link_is_given_up(self, name: str, managers: bool) -> None:
        if managers:
            self.the_manager_gives_a_link_up(name)
        else:
            self.a_worker_gives_a_link_up(name)

    def a_worker_gives_a_link_up(self, name: str) -> None:
        worker = self.workers[name]
        worker.link = None
        worker.asking.clear()
        worker.lease.unlinked()
        worker.seats.detach()

    def the_manager_gives_a_link_up(self, name: str) -> None:
        if (known := self.known.get(name)) is not None and known.link is not None:
            known.link, known.unlinked_at = None, self.now
            self.ledger.detach(name)

    @rule(ticks=st.integers(1, 2 * _LEASE), late=st.integers(0, _MARGIN))
    def time_passes(self, ticks: int, late: int) -> None:
        for _ in range(ticks):
            self.now += 1
            for name in WORKERS:
                self.time_passes_for(name)
            for name, worker in self.workers.items():
                if not worker.lapsed and self.now >= worker.lease.ends_at + late:
                    if worker.link is not None:
                        self.a_worker_gives_a_link_up(name)
                    worker.lapsed = True
                    for which in worker.seats.lapse({"free"}):
                        while worker.live[which]:
                            self.a_session_ends(name, which)
            for name, known in tuple(self.known.items()):
                if known.link is None and self.now >= known.unlinked_at + _LEASE + _MARGIN:
                    del self.known[name]
                    self.pass_on(self.ledger.forget(name))
                    self.heard_of(name)

    def time_passes_for(self, name: str) -> None:
        if name not in self.cut:
            self.a_worker_connects(name)
            self.a_worker_asks_for_renewal(name)
            self.messages_arrive(name, 10, "both")
        elif self.now - self.cut[name] == _SILENCE:
            self.the_manager_gives_a_link_up(name)

    @rule()
    def the_manager_is_replaced(self) -> None:
        self.ledger, self.counts = ledger()
        self.ledger.pause()
        self.known = {name: Known(None, self.now) for name in WORKERS}
        self.awaited = set(WORKERS)

    @invariant()
    def no_limit_is_passed(self) -> None:
        for name, limit in LIMITS.items():
            assert not limit or sum(worker.live[name] for worker in self.workers.values()) <= limit

    @invariant()
    def a_seat_in_use_is_known(self) -> None:
        for name, worker in self.workers.items():
            if not self.awaited:
                held = self.ledger.held(name)
                assert all(
                    worker.live[which] <= held.get(which, 0) for which, limit in LIMITS.items() if limit
                )


TestWorkersBehindCables = WorkersBehindCables.TestCase
TestWorkersBehindCables.settings = settings(stateful_step_count=40, max_examples=200)
