"""Which node has a session, over any moves of journals."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from agentmgr.core.moves import JournalMove, JournalPlace, Moved, Span, arrived, where

NODES = ["", "nod_b", "nod_c", "nod_d"]

step = st.one_of(
    st.tuples(st.just("begin"), st.sampled_from(NODES)),
    st.tuples(st.sampled_from(NODES), st.sampled_from(NODES)).filter(lambda it: it[0] != it[1]),
)


@given(st.lists(step, max_size=40))
def test_each_session_is_found_where_it_is(steps: list[tuple[str, str]]) -> None:
    places: dict[str, JournalPlace] = {}
    sessions: list[tuple[tuple[str, int], str]] = []  # what its id names, and where it is
    for source, target in steps:
        if source == "begin":
            generation = places[target].generation if target in places else 0
            sessions.append(((target, generation), target))
            continue
        known = places.get(source, JournalPlace("svc", source))
        places[source] = JournalPlace("svc", source, known.generation, known.spans, JournalMove("m", target))
        places |= arrived(places, source)
        sessions = [(named, target if at == source else at) for named, at in sessions]
    table = {node_id: Moved(place.spans) for node_id, place in places.items()}
    for named, at in sessions:
        assert where(table, *named) == (at, False)
    for place in places.values():
        befores = [span.before for span in place.spans]
        assert befores == sorted(set(befores))
        assert befores[-1:] == ([place.generation] if place.generation else [])
        assert all(one.at != other.at for one, other in zip(place.spans, place.spans[1:], strict=False))


def test_what_is_on_its_way_is_where_it_was() -> None:
    table = {"nod_b": Moved((Span(2, "nod_c"),), moving=True), "nod_c": Moved(moving=True)}
    assert where(table, "nod_b", 1) == ("nod_c", True)
    assert where(table, "nod_b", 2) == ("nod_b", True)
    assert where(table, "nod_b", None) == ("nod_b", True)
    assert where(table, "nod_d", 0) == ("nod_d", False)
