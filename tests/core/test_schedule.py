"""When a job is due: real dates, and arbitrary clocks."""

from datetime import UTC, datetime, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentmgr.core.schedule import WRONG_BEFORE, Schedule, look

BERLIN, NEW_YORK = "Europe/Berlin", "America/New_York"


def moments(expression, zone, since, count):
    schedule, at, found = Schedule(expression, ZoneInfo(zone)), datetime.fromisoformat(since), []
    at = at.replace(tzinfo=ZoneInfo(zone)).astimezone(UTC)
    for _ in range(count):
        at = schedule.after(at)
        found.append(at.strftime("%Y-%m-%d %H:%MZ"))
    return found


@pytest.mark.parametrize(
    ("expression", "zone", "since", "expected"),
    [
        # 02:00 to 03:00 does not exist: right after it, once.
        ("30 2 * * *", BERLIN, "2026-03-28 12:00", ["2026-03-29 01:00Z", "2026-03-30 00:30Z"]),
        ("0 3 * * *", BERLIN, "2026-03-28 12:00", ["2026-03-29 01:00Z", "2026-03-30 01:00Z"]),
        ("0 2-4 * * *", BERLIN, "2026-03-28 23:00", ["2026-03-29 01:00Z", "2026-03-29 02:00Z"]),
        ("*/30 * * * *", BERLIN, "2026-03-29 01:15", ["2026-03-29 00:30Z", "2026-03-29 01:00Z"]),
        # 02:00 to 03:00 comes twice: once, and by real time what runs each half hour.
        ("30 2 * * *", BERLIN, "2026-10-24 12:00", ["2026-10-25 00:30Z", "2026-10-26 01:30Z"]),
        ("30 1 * * *", NEW_YORK, "2026-10-31 12:00", ["2026-11-01 05:30Z", "2026-11-02 06:30Z"]),
        ("0 * * * *", BERLIN, "2026-10-25 02:30", ["2026-10-25 01:00Z", "2026-10-25 02:00Z"]),
        # Half an hour of change, and a day that begins at 01:00.
        ("15 2 * * *", "Australia/Lord_Howe", "2026-10-03 12:00", ["2026-10-03 15:30Z", "2026-10-04 15:15Z"]),
        ("30 0 * * *", "America/Sao_Paulo", "2018-11-03 12:00", ["2018-11-04 03:00Z", "2018-11-05 02:30Z"]),
        # Days that not each month or year has.
        ("0 0 29 2 *", "UTC", "2026-01-01 00:00", ["2028-02-29 00:00Z", "2032-02-29 00:00Z"]),
        ("0 0 29 2 *", "UTC", "2096-03-01 00:00", ["2104-02-29 00:00Z"]),
        ("0 12 31 * *", "UTC", "2026-01-31 13:00", ["2026-03-31 12:00Z", "2026-05-31 12:00Z"]),
        ("0 12 L * *", "UTC", "2028-01-31 13:00", ["2028-02-29 12:00Z", "2028-03-31 12:00Z"]),
        # Both a day of the month and one of the week: either of them.
        ("0 0 13 * 5", "UTC", "2026-01-03 00:00", ["2026-01-09 00:00Z", "2026-01-13 00:00Z"]),
    ],
)  # fmt: skip
def test_the_moments_of_a_schedule(expression, zone, since, expected):
    assert moments(expression, zone, since, len(expected)) == expected


def test_the_hour_that_comes_twice_repeats_no_moment_of_its_first_time():
    schedule, second = Schedule("30 2 * * *", ZoneInfo(BERLIN)), datetime(2026, 10, 25, 1, 10, tzinfo=UTC)
    assert second.astimezone(ZoneInfo(BERLIN)).strftime("%H:%M") == "02:10"
    assert schedule.after(second) == datetime(2026, 10, 26, 1, 30, tzinfo=UTC)


HOURLY = Schedule("0 * * * *", UTC)
NOON = datetime(2026, 6, 1, 12, 0, tzinfo=UTC)
H = timedelta(hours=1)


@pytest.mark.parametrize(
    ("handled_until", "now", "due_at", "then_until", "next_at"),
    [
        (None, NOON, None, NOON, NOON + H),
        (NOON, NOON + 0.5 * H, None, NOON, NOON + H),
        (NOON, NOON + H, NOON + H, NOON + H, NOON + 2 * H),
        (NOON, NOON + 30.5 * H, NOON + H, NOON + 30.5 * H, NOON + 31 * H),
        # Set back a little: nothing is repeated. Set back by much: it was wrong before.
        (NOON, NOON - 2 * H, None, NOON, NOON + H),
        (NOON, NOON - 1000 * H, None, NOON - 1000 * H, NOON - 999 * H),
    ],
    ids=["new", "early", "due", "many missed", "set back", "was wrong"],
)
def test_looks_at_the_clock(handled_until, now, due_at, then_until, next_at):
    found = look(HOURLY, handled_until, now)
    assert (found.due_at, found.handled_until, found.next_at) == (due_at, then_until, next_at)


STEPS = st.lists(st.integers(-int(WRONG_BEFORE.total_seconds()), 10 * 3600), max_size=50)


@given(STEPS)
def test_whatever_the_clock_does_no_moment_is_handled_twice_and_none_is_left_behind(steps):
    now, until, due = NOON, None, []
    for seconds in [0, *steps]:
        now += timedelta(seconds=seconds)
        if until is not None and until - now > WRONG_BEFORE:
            now = until  # set back too often
        found = look(HOURLY, until, now)
        until = found.handled_until
        if found.due_at is not None:
            due.append((found.due_at, until))
            assert found.due_at <= now
        assert found.next_at > now
        assert HOURLY.after(until) > now
    for (_, until_before), (due_at, _) in pairwise(due):
        assert due_at > until_before
