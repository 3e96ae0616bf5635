"""Totals: what each fact adds. The store and the manager count the same facts, each for itself."""

from datetime import UTC
from functools import reduce

from attrs import fields
from hypothesis import given
from hypothesis import strategies as st

from agentmgr.core.stats import counted
from agentmgr.models import (
    ConnectionEnd,
    ConnectionPeak,
    Event,
    HealthCheck,
    HealthStatus,
    Latency,
    ServiceTotals,
)

moments = st.datetimes(timezones=st.just(UTC))
counts = st.integers(0, 2**40)
session_ends = st.builds(
    ConnectionEnd,
    *(st.just("c"), st.just("s"), st.just("i"), moments, moments),
    *(st.sampled_from(["client", "backend", "gateway"]), st.none() | st.integers(1000, 4999), st.just("")),
    *(counts, counts, counts, counts),
    *(st.none() | st.floats(0, 1e3), st.none() | st.floats(0, 1e3)),
)
peaks = st.builds(ConnectionPeak, st.just("s"), st.integers(0, 1000))
events = st.builds(Event, st.sampled_from(["instance.backoff", "instance.error", "instance.running", "x"]))
checks = st.builds(
    HealthCheck, st.just("s"), st.just("i"), st.sampled_from(HealthStatus), moments, st.booleans()
)
facts = st.lists(session_ends | events | checks | peaks, max_size=10)


def total(some: list) -> ServiceTotals:
    return reduce(counted, some, ServiceTotals())


def numbers(totals: ServiceTotals) -> list[float]:
    return [
        sum(value.counts.values()) if isinstance(value, Latency) else value
        for value in (getattr(totals, field.name) for field in fields(ServiceTotals))
    ]


@given(facts)
def test_nothing_is_ever_taken_off(some):
    before = ServiceTotals()
    for fact in some:
        after = counted(before, fact)
        assert all(a >= b for a, b in zip(numbers(after), numbers(before), strict=True))
        before = after


@given(facts)
def test_each_kind_counts_once(some):
    totals = total(some)
    ends = [fact for fact in some if isinstance(fact, ConnectionEnd)]
    assert totals.sessions_total == len(ends)
    assert totals.sessions_failed == sum(end.failed for end in ends)
    assert totals.bytes_from_client == sum(end.bytes_from_client for end in ends)
    kinds = [fact.kind for fact in some if isinstance(fact, Event)]
    assert totals.restarts == kinds.count("instance.backoff")
    assert totals.errors == kinds.count("instance.error")
    assert totals.sessions_peak == max((f.sessions for f in some if isinstance(f, ConnectionPeak)), default=0)
    timed = [end for end in ends if end.handshake_s is not None]
    assert sum(totals.handshake.counts.values()) == len(timed)
    assert sum(totals.first_byte.counts.values()) == sum(end.first_byte_s is not None for end in ends)
