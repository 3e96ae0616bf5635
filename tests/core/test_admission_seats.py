"""Seats: counts that cannot drift."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from agentmgr.core.admission import Seats
from agentmgr.core.routing import Backend

NAMES = ("a", "b")


def instance(name: str) -> Backend:
    return Backend(name, "svc", "svc", "localhost", 1)


def test_the_last_seat_is_the_last() -> None:
    seats = Seats()
    seats.set_limit("a", 2)
    seats.take(instance("a"))
    seats.take(instance("a"))
    assert seats.full == {"a"}
    with pytest.raises(ValueError, match="no seat left"):
        seats.take(instance("a"))
    seats.give_back("a")
    assert seats.full == set()


def test_a_seat_cannot_be_given_back_twice() -> None:
    seats = Seats()
    seats.take(instance("a"))
    seats.give_back("a")
    with pytest.raises(ValueError, match="no connection"):
        seats.give_back("a")


def test_no_limit_means_no_limit() -> None:
    seats = Seats()
    for _ in range(1000):
        seats.take(instance("a"))
    assert seats.taken == {"a": 1000}


class SeatsAgainstModel(RuleBasedStateMachine):
    """Any order of takes, returns and changed limits, against two plain dicts."""

    @initialize()
    def begin(self) -> None:
        self.seats = Seats()
        self.taken = dict.fromkeys(NAMES, 0)
        self.limit = dict.fromkeys(NAMES, 0)

    @rule(name=st.sampled_from(NAMES))
    def take(self, name: str) -> None:
        room = not self.limit[name] or self.taken[name] < self.limit[name]
        if room:
            self.seats.take(instance(name))
            self.taken[name] += 1
        else:
            with pytest.raises(ValueError, match="no seat"):
                self.seats.take(instance(name))

    @precondition(lambda self: any(self.taken.values()))
    @rule(data=st.data())
    def give_back(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from([name for name in NAMES if self.taken[name]]))
        self.seats.give_back(name)
        self.taken[name] -= 1

    @rule(name=st.sampled_from(NAMES), limit=st.integers(0, 3))
    def set_limit(self, name: str, limit: int) -> None:
        self.seats.set_limit(name, limit)
        self.limit[name] = limit

    @invariant()
    def counts_are_those_of_the_model(self) -> None:
        assert self.seats.taken == {name: count for name, count in self.taken.items() if count}
        full = {name for name in NAMES if self.limit[name] and self.taken[name] >= self.limit[name]}
        assert self.seats.full == full


TestSeatsAgainstModel = SeatsAgainstModel.TestCase
