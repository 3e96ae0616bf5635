"""Percentiles from a few numbers: close to the true ones, bounded, and about what was lately."""

from hypothesis import given
from hypothesis import strategies as st

from agentmgr.codec import from_json, to_json
from agentmgr.models import Latency
from agentmgr.models.records import WINDOW

seconds = st.floats(1e-4, 100.0)
shares = st.sampled_from([0.0, 0.5, 0.95, 0.99, 1.0])


def of(values) -> Latency:
    latency = Latency()
    for value in values:
        latency = latency.with_value(value)
    return latency


@given(st.lists(seconds, min_size=1, max_size=60), shares)
def test_a_quantile_is_the_true_one_or_up_to_19_percent_more(values, share):
    true = sorted(values)[max(0, -int(-share * len(values) // 1) - 1)]
    found = of(values).quantile(share)
    assert true * 0.9999 <= found <= true * 1.19


@given(st.lists(st.floats(-1.0, 1e9), max_size=60))
def test_whatever_is_counted_counts_and_stays_small(values):
    latency = of(values)
    assert sum(latency.counts.values()) == len(values)
    assert all(0 <= int(bucket) <= 80 for bucket in latency.counts)
    assert from_json(to_json(latency), Latency) == latency


@given(st.lists(seconds, min_size=1))
def test_quantiles_rise(values):
    latency = of(values)
    found = [latency.quantile(share) for share in (0.0, 0.5, 0.95, 0.99, 1.0)]
    assert found == sorted(found)


def test_nothing_has_no_quantile():
    assert Latency().quantile(0.5) is None


def test_a_bad_day_is_forgotten():
    latency = of([10.0] * WINDOW)
    assert latency.quantile(0.5) > 9
    for _ in range(WINDOW * 3):
        latency = latency.with_value(0.01)
    assert latency.quantile(0.5) < 0.02
    assert sum(latency.counts.values()) <= WINDOW
