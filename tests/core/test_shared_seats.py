"""Seats that several workers share, whatever order their messages, deaths and managers come in."""

from __future__ import annotations

from collections import Counter, deque

from attrs import define, field
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from agentmgr.core.admission import Seats
from agentmgr.core.routing import Backend
from agentmgr.core.shared_seats import Ask, Gave, Grant, Ledger, SeatReport, SharedSeats, Took, Withdraw

LIMITS = {"a": 1, "b": 3, "free": 0}
WORKERS = ("w0", "w1")


def instance(name: str) -> Backend:
    return Backend(name, "svc", "svc", "localhost", 1, max_sessions=LIMITS[name])


def shared(told: list[SeatReport]) -> SharedSeats:
    seats = SharedSeats(told.append)
    for name, limit in LIMITS.items():
        seats.set_limit(name, limit)
    return seats


def ledger() -> tuple[Ledger, Seats]:
    seats = Seats()
    for name, limit in LIMITS.items():
        seats.set_limit(name, limit)
    return Ledger(seats), seats


def test_an_unlimited_seat_takes_no_question_and_a_limited_one_does() -> None:
    told: list[SeatReport] = []
    seats = shared(told)
    seats.attach()
    assert seats.take(instance("free"))
    assert not seats.take(instance("a"))
    assert told == [Took("free")]
    seats.granted("a")
    assert seats.take(instance("a"))
    seats.settle("a")
    assert told == [Took("free")], "the grant was used, so nothing goes back"


def test_a_grant_whose_client_has_left_goes_back() -> None:
    told: list[SeatReport] = []
    seats = shared(told)
    seats.attach()
    seats.granted("a")
    seats.settle("a")
    assert told == [Gave("a")]


def test_a_worker_hears_what_the_others_have_changed_and_nothing_of_itself() -> None:
    counts = Seats(changed=lambda name: book.changed(name))
    book = Ledger(counts)
    counts.take(instance("free"))  # the manager's own gateway
    assert book.unsaid("w0") is None
    assert book.others("w0") == {"free": 1}
    book.report("w0", Took("free"))
    assert book.unsaid("w0") == 0
    book.report("w1", Took("free"))
    book.report("w1", Took("b"))
    counts.give_back("free")
    assert book.unsaid("w0") == 2
    assert book.changes("w0") == {"free": 1, "b": 1}
    book.forget("w1")
    assert book.changes("w0") == {"free": 0, "b": 0}
    book.detach("w0")
    assert book.unsaid("w0") is None
    mine = shared([])
    mine.know({"b": 1, "free": 2}, whole=True)
    mine.know({"b": 0, "a": 1})
    assert (mine.taken, mine.full) == ({"free": 2, "a": 1}, {"a", "b"})  # without a manager none is free
    mine.know({"b": 1}, whole=True)
    assert mine.taken == {"b": 1}


def test_without_a_manager_only_the_seats_that_are_held_can_be_used() -> None:
    seats = shared([])
    seats.attach()
    seats.granted("b")
    assert seats.take(instance("b"))
    seats.detach()
    assert "b" in seats.full, "two are free, and nobody can say so"
    assert seats.give_back("b"), "the next client here can have it"
    assert seats.take(instance("b"))
    assert "b" in seats.full
    seats.give_back("b")
    assert seats.attach() == {}
    assert not seats.take(instance("b")), "with a manager it is the manager's again"


def test_with_a_manager_a_limited_seat_that_is_given_back_is_the_managers() -> None:
    told: list[SeatReport] = []
    seats = shared(told)
    seats.attach()
    seats.granted("a")
    seats.take(instance("a"))
    assert not seats.give_back("a")
    assert not seats.take(instance("a"))
    assert told == [Gave("a")]


def test_the_oldest_question_gets_the_seat_that_comes_free() -> None:
    book, _ = ledger()
    assert book.report("w0", Ask(1, ("a",))) == [("w0", Grant(1, "a"))]
    assert book.report("w1", Ask(7, ("a",))) == []
    assert book.report("w1", Ask(8, ("a",))) == []
    assert book.report("w1", Ask(7, ("a",))) == [], "asked again, it keeps its place"
    assert book.report("w0", Gave("a")) == [("w1", Grant(7, "a"))]
    book.report("w1", Withdraw(8))
    assert book.report("w1", Gave("a")) == []


def test_the_first_of_several_instances_with_a_seat_is_granted() -> None:
    book, _ = ledger()
    book.report("w0", Ask(1, ("a",)))
    assert book.report("w1", Ask(1, ("a", "b"))) == [("w1", Grant(1, "b"))]


def test_nothing_is_granted_until_everybody_has_declared() -> None:
    book, seats = ledger()
    book.pause()
    assert book.report("w0", Ask(1, ("a",))) == []
    book.declare("w1", {"a": 1})
    assert book.resume() == []
    assert seats.taken == {"a": 1}
    assert book.forget("w1") == [("w0", Grant(1, "a"))]


@define
class Worker:
    seats: SharedSeats
    told: list[SeatReport]
    to_manager: deque[object] = field(factory=deque)
    from_manager: deque[Grant] = field(factory=deque)
    asking: dict[int, tuple[str, ...]] = field(factory=dict)
    live: Counter[str] = field(factory=Counter)
    attached: bool = False


class WorkersAgainstTheFacts(RuleBasedStateMachine):
    """Each worker's messages arrive in order, and late; links break, workers die, managers are replaced."""

    @initialize()
    def begin(self) -> None:
        self.tickets = 0
        self.ledger, self.counts = ledger()
        self.workers = {name: self.newcomer() for name in WORKERS}
        self.awaited: set[str] = set()

    def newcomer(self) -> Worker:
        told: list[SeatReport] = []
        return Worker(shared(told), told)

    def say(self, worker: Worker) -> None:
        worker.to_manager.extend(worker.told)
        worker.told.clear()

    def pass_on(self, grants: list[tuple[str, Grant]]) -> None:
        for name, grant in grants:
            self.workers[name].from_manager.append(grant)

    @rule(name=st.sampled_from(WORKERS), wants=st.permutations(sorted(LIMITS)), some=st.integers(1, 3))
    def a_client_comes(self, name: str, wants: list[str], some: int) -> None:
        worker = self.workers[name]
        wanted = [w for w in wants[:some] if w not in worker.seats.full]
        if wanted and worker.seats.take(instance(wanted[0])):
            worker.live[wanted[0]] += 1
        elif worker.attached:
            self.tickets += 1
            worker.asking[self.tickets] = tuple(wants[:some])
            worker.seats.ask(self.tickets, wants[:some])
        self.say(worker)

    @rule(name=st.sampled_from(WORKERS), which=st.sampled_from(sorted(LIMITS)))
    def a_session_ends(self, name: str, which: str) -> None:
        worker = self.workers[name]
        if worker.live[which]:
            worker.live[which] -= 1
            worker.seats.give_back(which)
            self.say(worker)

    @rule(name=st.sampled_from(WORKERS))
    def a_waiting_client_leaves(self, name: str) -> None:
        worker = self.workers[name]
        if worker.asking:
            ticket, _ = worker.asking.popitem()
            worker.seats.withdraw(ticket)
            self.say(worker)

    @rule(name=st.sampled_from(WORKERS), count=st.integers(1, 5))
    def they_talk(self, name: str, count: int) -> None:
        for _ in range(count):
            self.the_manager_hears_one(name)
            self.a_worker_hears_one(name)

    def the_manager_hears_one(self, name: str) -> None:
        worker = self.workers[name]
        if worker.to_manager:
            message = worker.to_manager.popleft()
            if isinstance(message, dict):  # its declaration
                self.pass_on(self.ledger.declare(name, message))
                self.awaited.discard(name)
                if not self.awaited:
                    self.pass_on(self.ledger.resume())
            else:
                self.pass_on(self.ledger.report(name, message))

    def a_worker_hears_one(self, name: str) -> None:
        worker = self.workers[name]
        if worker.from_manager:
            grant = worker.from_manager.popleft()
            worker.seats.granted(grant.instance_id)
            if worker.asking.pop(grant.ticket, None) is not None:
                assert worker.seats.take(instance(grant.instance_id))
                worker.live[grant.instance_id] += 1
            worker.seats.settle(grant.instance_id)
            self.say(worker)

    @rule(name=st.sampled_from(WORKERS))
    def a_worker_hears_of_the_others(self, name: str) -> None:
        worker = self.workers[name]
        if worker.attached and self.ledger.unsaid(name) is None:
            worker.seats.know(self.ledger.others(name), whole=True)
        elif worker.attached:
            worker.seats.know(self.ledger.changes(name))

    @rule(name=st.sampled_from(WORKERS))
    def a_link_breaks(self, name: str) -> None:
        self.detach(name)
        self.ledger.detach(name)

    def detach(self, name: str) -> None:
        worker = self.workers[name]
        worker.attached = False
        worker.seats.detach()
        worker.to_manager.clear()
        worker.from_manager.clear()
        worker.asking.clear()

    @rule(name=st.sampled_from(WORKERS))
    def a_worker_comes_to_the_manager(self, name: str) -> None:
        worker = self.workers[name]
        if not worker.attached:
            worker.attached = True
            worker.to_manager.append(dict(worker.seats.attach()))

    @rule(name=st.sampled_from(WORKERS))
    def a_worker_dies(self, name: str) -> None:
        self.workers[name] = self.newcomer()
        self.pass_on(self.ledger.forget(name))
        self.awaited.discard(name)
        if not self.awaited:
            self.pass_on(self.ledger.resume())

    @rule()
    def the_manager_is_replaced(self) -> None:
        for name in WORKERS:
            self.detach(name)
        self.ledger, self.counts = ledger()
        self.ledger.pause()
        self.awaited = set(WORKERS)

    @precondition(lambda self: all(w.attached for w in self.workers.values()))
    @rule()
    def everything_is_heard(self) -> None:
        while any(w.to_manager or w.from_manager for w in self.workers.values()):
            for name in WORKERS:
                self.the_manager_hears_one(name)
                self.a_worker_hears_one(name)
        total = sum((worker.live for worker in self.workers.values()), Counter())
        assert self.counts.taken == +total
        for name, worker in self.workers.items():
            assert self.ledger.held(name) == +worker.live
            self.a_worker_hears_of_the_others(name)
            assert worker.seats.taken == +total
            for wanted in worker.asking.values():
                assert set(wanted) <= self.counts.full, "nobody waits for a seat that is free"

    @invariant()
    def no_limit_is_passed(self) -> None:
        for name, limit in LIMITS.items():
            assert not limit or sum(worker.live[name] for worker in self.workers.values()) <= limit


TestWorkersAgainstTheFacts = WorkersAgainstTheFacts.TestCase
TestWorkersAgainstTheFacts.settings = settings(stateful_step_count=80)
