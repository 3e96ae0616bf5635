"""Orders of dependent services, over arbitrary graphs."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from agentmgr.core.dependencies import cycle, stop_order

names = st.sampled_from("abcdefgh")
graphs = st.dictionaries(names, st.lists(names, max_size=3))


def acyclic(graph):
    """Only edges to names that come earlier in the alphabet."""
    return {name: [n for n in needs if n < name] for name, needs in graph.items()}


@given(graphs)
def test_a_cycle_that_is_found_is_one(graph):
    found = cycle(graph)
    if found is not None:
        assert found[0] == found[-1]
        assert all(after in graph[before] for before, after in pairwise(found))


@given(graphs.map(acyclic))
def test_where_there_is_none_none_is_found(graph):
    assert cycle(graph) is None


@given(graphs.map(acyclic), names, names)
def test_closing_a_path_makes_one(graph, first, last):
    reachable, new = set(), {last}
    while new:
        reachable |= new
        new = {n for name in new for n in graph.get(name, ())} - reachable
    if first in reachable:
        graph[first] = [*graph.get(first, ()), last]
        assert cycle(graph) is not None


@given(graphs.map(acyclic))
def test_each_ends_after_all_that_need_it(graph):
    waves = stop_order(graph)
    at = {name: i for i, wave in enumerate(waves) for name in wave}
    assert at.keys() == graph.keys()
    assert sum(map(len, waves)) == len(graph)
    for name, needs in graph.items():
        assert all(at[needed] > at[name] for needed in needs if needed in graph)


@given(graphs)
def test_a_cycle_does_not_keep_anything_from_stopping(graph):
    assert {name for wave in stop_order(graph) for name in wave} == graph.keys()


def test_without_needs_all_end_at_once_the_last_started_first():
    assert stop_order({"a": [], "b": [], "c": []}) == [["c", "b", "a"]]
