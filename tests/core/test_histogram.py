"""What Prometheus reads: each bucket counts all values up to its bound."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentmgr.core.stats import BOUNDS_S, Histogram


@given(st.lists(st.floats(0, 100) | st.sampled_from(BOUNDS_S)))
def test_each_bucket_counts_what_does_not_exceed_its_bound(values):
    histogram = Histogram()
    for value in values:
        histogram.observe(value)
    found = dict(histogram.cumulative())
    assert found == {bound: sum(v <= bound for v in values) for bound in (*BOUNDS_S, float("inf"))}
    assert histogram.sum_s == pytest.approx(math.fsum(values))  # `sum` adds more exactly since Python 3.12
