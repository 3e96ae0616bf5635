"""A refusal is logged once a minute, however often it is given, and what is remembered is bounded."""

from __future__ import annotations

from agentmgr.core.repeats import Repeats


def test_the_same_is_new_again_after_a_minute_and_no_more_than_so_many_are_remembered() -> None:
    repeats = Repeats(quiet_s=60, most=2)
    assert [repeats.is_new("a", now) for now in (0, 1, 59, 60, 119, 120)] == [
        True,
        False,
        False,
        True,
        False,
        True,
    ]
    assert repeats.is_new("b", 130)
    assert not repeats.is_new("a", 131)
    assert repeats.is_new("c", 132)  # pushes out b, which was asked about longest ago
    assert not repeats.is_new("a", 133)
    assert repeats.is_new("b", 134)
