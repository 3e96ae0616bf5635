"""Totals are sums: the store adds up each batch by itself and then adds that to what it has."""

from datetime import UTC
from functools import reduce

from attrs import astuple
from hypothesis import given
from hypothesis import strategies as st

from agentmgr.core.totals import counted
from agentmgr.models import Event, HealthCheck, HealthStatus, ServiceTotals, SessionEnd

moments = st.datetimes(timezones=st.just(UTC))
counts = st.integers(0, 2**40)
session_ends = st.builds(
    SessionEnd,
    *(st.just("c"), st.just("s"), st.just("i"), moments, moments),
    *(st.sampled_from(["client", "backend", "gateway"]), st.none() | st.integers(1000, 4999), st.just("")),
    *(counts, counts, counts, counts),
)
events = st.builds(Event, st.sampled_from(["instance.backoff", "instance.error", "instance.running", "x"]))
checks = st.builds(
    HealthCheck, st.just("s"), st.just("i"), st.sampled_from(HealthStatus), moments, st.booleans()
)
facts = st.lists(session_ends | events | checks, max_size=10)


def total(some: list) -> ServiceTotals:
    return reduce(counted, some, ServiceTotals())


@given(facts, facts)
def test_the_sum_of_two_batches_is_the_total(first, second):
    apart = [a + b for a, b in zip(astuple(total(first)), astuple(total(second)), strict=True)]
    together = list(astuple(total(first + second)))
    assert abs(apart.pop(2) - together.pop(2)) <= 1e-6 * len(first + second) * 3e11
    assert apart == together


@given(facts)
def test_nothing_is_ever_taken_off(some):
    before = ServiceTotals()
    for fact in some:
        after = counted(before, fact)
        assert all(a >= b for a, b in zip(astuple(after), astuple(before), strict=True))
        before = after


@given(facts)
def test_each_kind_counts_once(some):
    totals = total(some)
    ends = [fact for fact in some if isinstance(fact, SessionEnd)]
    assert totals.sessions_total == len(ends)
    assert totals.sessions_failed == sum(end.failed for end in ends)
    assert totals.bytes_from_client == sum(end.bytes_from_client for end in ends)
    kinds = [fact.kind for fact in some if isinstance(fact, Event)]
    assert totals.restarts == kinds.count("instance.backoff")
    assert totals.errors == kinds.count("instance.error")
