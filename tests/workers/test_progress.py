"""Which connections of a worker have their turn when it reports what they have done."""

from hypothesis import given
from hypothesis import strategies as st

from agentmgr.worker.worker import has_turn


@given(st.integers(0, 99), st.integers(0, 10**6), st.text())
def test_of_few_each_has_each_turn(connections: int, turn: int, connection_id: str) -> None:
    assert has_turn(connection_id, turn, connections)


@given(st.integers(100, 10**5), st.integers(0, 10**6), st.text())
def test_of_many_each_has_one_in_ten_turns_at_least(connections: int, turn: int, connection_id: str) -> None:
    assert any(has_turn(connection_id, turn + number, connections) for number in range(10))


def test_of_a_thousand_a_tenth_has_a_turn() -> None:
    turns = sum(has_turn(f"con_{number:016x}", 7, 1000) for number in range(1000))
    assert 50 < turns < 200
