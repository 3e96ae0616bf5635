"""What was counted lately: by the minute under way and the one before, and over an hour."""

from datetime import UTC, datetime

from agentmgr.core.recent import HourlyCount, RecentLatency, minute_of


def test_the_last_values_are_those_of_this_minute_and_the_one_before():
    recent = RecentLatency()
    recent.observe("a", 1.0, 100)
    recent.observe("a", 3.0, 101)
    assert recent.last("a", 101).quantile(0) >= 1.0
    assert sum(recent.last("a", 101).counts.values()) == 2
    assert sum(recent.last("a", 102).counts.values()) == 1
    assert recent.last("a", 103).quantile(0.5) is None


def test_a_minute_that_is_over_can_be_read_and_is_forgotten_after_the_next():
    recent = RecentLatency()
    recent.observe("a", 1.0, 100)
    assert recent.before("a", 100).quantile(0.5) is None
    assert recent.before("a", 101).quantile(0.5) is not None
    assert recent.before("b", 101).quantile(0.5) is None
    assert recent.before("a", 102).quantile(0.5) is None
    recent.observe("a", 1.0, 110)  # minutes without a value in between
    assert recent.before("a", 110).quantile(0.5) is None


def test_an_hour_is_sixty_minutes():
    hits = HourlyCount()
    hits.add("vip", 100, 100)
    hits.add("vip", 159, 159)
    hits.add("all", 159, 159)
    assert hits.totals(159) == {"vip": 2, "all": 1}
    assert hits.totals(160) == {"vip": 1, "all": 1}
    hits.add("all", 100, 160)  # it happened more than an hour ago
    assert hits.totals(160) == {"vip": 1, "all": 1}
    assert hits.totals(10_000) == {}


def test_the_minute_of_a_moment():
    assert minute_of(datetime(1970, 1, 1, 0, 2, 59, tzinfo=UTC)) == 2
