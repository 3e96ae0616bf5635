"""Who is spared for a while."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from agentmgr.core.outliers import OutlierPolicy, Outliers

POLICY = OutlierPolicy(failures=3, ejection_s=5, ejection_max_s=60, warm_s=10, warm_from=0.1)


def failing(times: int, now: float = 0.0) -> Outliers:
    outliers = Outliers(POLICY)
    for _ in range(times):
        outliers.failed("a", now)
    return outliers


def test_a_few_failures_are_borne() -> None:
    assert failing(2).ejected(0) == set()


def test_repeated_failures_eject_for_a_while() -> None:
    outliers = failing(3)
    assert outliers.ejected(0) == {"a"}
    assert outliers.ejected(4.9) == {"a"}
    assert outliers.ejected(5.0) == set()


def test_success_forgives() -> None:
    outliers = failing(2)
    outliers.succeeded("a", 0)
    outliers.failed("a", 0)
    outliers.failed("a", 0)
    assert outliers.ejected(0) == set()


def test_each_ejection_is_longer_up_to_a_cap() -> None:
    outliers, now, lengths = failing(2), 0.0, []
    for _ in range(6):
        outliers.failed("a", now)
        start = now
        while "a" in outliers.ejected(now):
            now += 1.0
        lengths.append(now - start)
    assert lengths == [5, 10, 20, 40, 60, 60]


def test_the_one_that_comes_back_is_warmed_in() -> None:
    outliers = Outliers(POLICY)
    outliers.recovered("a", 100)
    weights = {"a": 10, "b": 10}
    assert outliers.weights(weights, 100) == {"a": 1.0}
    assert outliers.weights(weights, 105) == {"a": 5.5}
    assert outliers.weights(weights, 110) == {}


def test_a_success_does_not_cut_the_warming_short() -> None:
    outliers = Outliers(POLICY)
    outliers.recovered("a", 100)
    outliers.succeeded("a", 101)
    assert outliers.share("a", 105) == 0.55
    outliers.succeeded("a", 110)
    assert outliers._records == {}


def test_those_that_are_gone_are_forgotten() -> None:
    outliers = failing(3)
    outliers.forget("a")
    assert outliers.ejected(0) == set()


@given(
    st.lists(st.tuples(st.sampled_from(["failed", "succeeded", "recovered"]), st.floats(0, 100)), max_size=60)
)
def test_any_history_keeps_shares_in_range_and_ejections_capped(history: list[tuple[str, float]]) -> None:
    outliers, now = Outliers(POLICY), 0.0
    for event, pause in history:
        now += pause
        getattr(outliers, event)("a", now)
        assert 0.1 <= outliers.share("a", now) <= 1
        assert outliers.ejected(now + POLICY.ejection_max_s) == set()
