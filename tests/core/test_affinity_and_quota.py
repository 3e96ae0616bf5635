"""Who holds a session, and how often an address may connect."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from agentmgr.core.admission import RateLimit
from agentmgr.core.affinity import Affinity


def test_a_session_is_held_where_it_was_last_opened() -> None:
    affinity = Affinity()
    affinity.remember("s", "ins_1")
    affinity.remember("s", "ins_2")
    assert affinity.holder("s") == "ins_2"
    assert affinity.holder("other") is None


def test_the_oldest_sessions_are_forgotten() -> None:
    affinity = Affinity(max_sessions=2)
    for name in ("a", "b", "a", "c"):
        affinity.remember(name, f"ins_{name}")
    assert [affinity.holder(name) for name in "abc"] == ["ins_a", None, "ins_c"]


def test_a_session_id_may_name_its_instance() -> None:
    assert Affinity().holder("ses_0f.ins_7") == "ins_7"


def test_a_session_id_takes_the_same_room_whatever_its_length() -> None:
    other = Affinity()
    affinity = Affinity(on_news=other.learn)
    for name in ("s", "s" * 15_000, "\ud800"):
        affinity.remember(name, "ins_1")
        assert affinity.holder(name) == other.holder(name) == "ins_1"
    assert {len(key) for key in affinity.known} == {32}


def test_a_rate_allows_a_second_of_it_at_once() -> None:
    limit = RateLimit(3)
    assert [limit.allows("a", 0.0) for _ in range(4)] == [True, True, True, False]
    assert limit.allows("b", 0.0)
    assert not limit.allows("a", 0.2)
    assert limit.allows("a", 0.4)


def test_a_rate_below_one_still_allows_the_first() -> None:
    limit = RateLimit(0.1)
    assert [limit.allows("a", now) for now in (0, 5, 9, 10)] == [True, False, False, True]


def test_no_rate_is_no_limit() -> None:
    limit = RateLimit(0)
    assert all(limit.allows("a", 0) for _ in range(1000))


def test_addresses_are_forgotten_when_there_are_many() -> None:
    limit = RateLimit(1, max_addresses=3)
    for name in "abcdefgh":
        limit.allows(name, 0)
    assert len(limit._buckets) == 3


@given(st.floats(0.5, 50), st.lists(st.floats(0, 2), max_size=200))
def test_no_window_passes_more_than_the_rate_and_a_burst(rate: float, pauses: list[float]) -> None:
    limit, now, passed = RateLimit(rate), 0.0, 0
    for pause in pauses:
        now += pause
        passed += limit.allows("a", now)
    assert passed <= now * rate + max(1.0, rate) + 1e-6
