"""Which node an instance runs on: the forms of selectors, a table of cases, and arbitrary clusters."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentmgr.core.placement import Candidate, Nowhere, Placed, Wish, place
from agentmgr.errors import InvalidRequest
from agentmgr.models.nodes import NodeState, Selector, label, one_node, selectors


@pytest.mark.parametrize(
    ("text", "matching", "others"),
    [
        ("zone=b", ["b"], ["a", "", "c"]),
        ("zone=!b", ["a", "c", ""], ["b"]),
        ("zone=in(a, b)", ["a", "b"], ["c", ""]),
        ("zone=!in(a,b)", ["c", ""], ["a", "b"]),
        ("zone=in", ["in"], ["a"]),
    ],
)
def test_the_forms_of_a_selector(text: str, matching: list[str], others: list[str]) -> None:
    selector = Selector.parse(text)
    for value, expected in [*((v, True) for v in matching), *((v, False) for v in others)]:
        assert selector.matches({"zone": value} if value else {}) is expected
    assert Selector.parse(str(selector)) == selector


@pytest.mark.parametrize(
    "text",
    ["zone", "=b", "zone=", "zone=!", "zone=in()", "zone=in(a,)", "zone=in(a", "zo ne=b", "zone=-b",
     "a/b/c=d", "zone=!!b", "zone=b\n", "zone=" + 64 * "b"],
)  # fmt: skip
def test_what_is_no_selector_is_refused_and_named(text: str) -> None:
    with pytest.raises(InvalidRequest, match="label"):
        Selector.parse(text)


def test_labels_are_key_and_value() -> None:
    assert label("example.com/zone=b-1") == ("example.com/zone", "b-1")
    for text in ("zone", "zone=", "=b", "zone=b c"):
        with pytest.raises(InvalidRequest, match="label"):
            label(text)


def test_only_a_nodes_name_can_match_one_node_alone() -> None:
    assert one_node(["zone=b", "node=vm-2"]) == "vm-2"
    assert [one_node([text]) for text in ("zone=b", "node=!b", "node=in(a,b)")] == [None] * 3


def cluster(**states: str) -> list[Candidate]:
    """By name; the id differs from the name, and the zone is the first letter."""
    return [Candidate(f"nod_{n}", n, NodeState(s), {"node": n, "zone": n[0]}) for n, s in states.items()]


ABC = cluster(a="linked", b="linked", c="linked")


def test_fewest_of_its_service_then_fewest_at_all_then_by_name() -> None:
    placed = Placed()
    placed.put("i1", "other", 0, "nod_a")
    placed.put("i2", "mine", 0, "nod_b")
    assert place(Wish("mine", 1), ABC, placed) == "nod_c"
    placed.put("i3", "mine", 1, "nod_c")
    assert place(Wish("mine", 2), ABC, placed) == "nod_a"
    placed.put("i4", "mine", 2, "nod_a")
    assert place(Wish("mine", 3), ABC, placed) == "nod_b"
    assert place(Wish("mine", 3, pack=True), ABC, placed) == "nod_a"
    assert place(Wish("new", 0, pack=True), ABC, Placed()) == "nod_a"
    by_name = [Candidate("1", "z", NodeState.LINKED), Candidate("2", "a", NodeState.LINKED)]
    assert place(Wish("new", 0), by_name, Placed()) == "2"


def test_a_position_goes_back_to_its_node_while_that_can_take_it() -> None:
    placed = Placed()
    placed.put("i1", "mine", 0, "nod_b")
    placed.put("i2", "mine", 1, "nod_a")
    placed.remove("i1")
    placed.put("i3", "mine", 2, "nod_b")
    assert place(Wish("mine", 0), ABC, placed) == "nod_b"
    for state in ("silent", "lost", "cordoned"):
        assert place(Wish("mine", 0), cluster(a="linked", b=state, c="linked"), placed) == "nod_c"
    assert place(Wish("mine", 0, selectors(["zone=!b"])), ABC, placed) == "nod_c"
    placed.forget("mine")
    assert place(Wish("mine", 0), ABC, placed) == "nod_c"


def test_a_node_that_is_short_of_something_comes_after_all_others() -> None:
    placed = Placed()
    placed.put("i1", "mine", 0, "nod_b")
    placed.remove("i1")
    assert place(Wish("mine", 0, short_on=frozenset({"nod_b"})), ABC, placed) == "nod_a"
    assert place(Wish("mine", 0, short_on=frozenset({"nod_a", "nod_b"})), ABC, placed) == "nod_c"
    everywhere = frozenset({"nod_a", "nod_b", "nod_c"})
    assert place(Wish("mine", 0, short_on=everywhere), ABC, placed) == "nod_b"
    assert place(Wish("mine", 0, bound_to="nod_b", short_on=frozenset({"nod_b"})), ABC, placed) == "nod_b"


@pytest.mark.parametrize(
    ("nodes", "wish", "reason"),
    [
        (
            ABC,
            Wish("s", 0, selectors(["zone=x"])),
            "waits for a node with zone=x: no node matches; they have zone=a, zone=b, zone=c",
        ),
        (
            ABC,
            Wish("s", 0, selectors(["node=!x", "gpu=!in(a,b)", "disk=ssd"])),
            "waits for a node with node=!x and gpu=!in(a,b) and disk=ssd: no node has a label disk; "
            "they have node=…, zone=…",
        ),
        (
            ABC,
            Wish("s", 0, selectors(["zone=a", "node=b"])),
            "waits for a node with zone=a and node=b: each is on some node, and no node has all of them",
        ),
        (
            cluster(a="linked", b="silent", b2="cordoned"),
            Wish("s", 0, selectors(["zone=b", "node=!a"])),
            "waits for a node with zone=b and node=!a: b is silent, b2 is cordoned",
        ),
        (cluster(a="cordoned"), Wish("s", 0), "waits for a node: a is cordoned"),
        (
            cluster(a="linked", b="lost"),
            Wish("s", 0, bound_to="nod_b"),
            "waits for node b, where it ran: b is lost",
        ),
        (
            cluster(**{f"n{i}": "lost" for i in range(7)}),
            Wish("s", 0),
            "waits for a node: n0 is lost, n1 is lost, n2 is lost, n3 is lost, n4 is lost, and 2 more cannot "
            "take it",
        ),
    ],
)
def test_why_no_node_can_take_it(nodes: list[Candidate], wish: Wish, reason: str) -> None:
    assert place(wish, nodes, Placed()) == Nowhere(reason)


def test_it_waits_for_its_node_until_that_is_forgotten() -> None:
    wish = Wish("s", 0, bound_to="nod_b")
    assert isinstance(place(wish, cluster(a="linked", b="lost"), Placed()), Nowhere)
    assert place(wish, cluster(a="linked", b="linked"), Placed()) == "nod_b"
    assert place(wish, cluster(a="linked"), Placed()) == "nod_a"


STATES = st.sampled_from(NodeState)
NODES = st.lists(st.tuples(STATES, st.sampled_from("abc")), max_size=6).map(
    lambda them: [Candidate(f"n{i}", f"n{i}", state, {"zone": z}) for i, (state, z) in enumerate(them)]
)
SELECTORS = st.lists(
    st.sampled_from(["zone=a", "zone=!a", "zone=in(a,b)", "zone=!in(a,b)"]).map(Selector.parse), max_size=2
).map(tuple)
RUNNING = st.lists(st.tuples(st.sampled_from(["s", "t"]), st.integers(0, 5)), max_size=12)


@given(NODES, SELECTORS, RUNNING, st.booleans())
def test_any_cluster(
    nodes: list[Candidate], place_on: tuple[Selector, ...], running: list[tuple[str, int]], pack: bool
) -> None:
    placed = Placed()
    for number, (service, at) in enumerate(running):
        placed.put(f"i{number}", service, number, f"n{at}")
    able = {
        n.node_id: n
        for n in nodes
        if n.state is NodeState.LINKED and all(s.matches(n.labels) for s in place_on)
    }
    chosen = place(Wish("s", 99, place_on, pack), nodes, placed)
    assert isinstance(chosen, Nowhere) is (not able)
    if isinstance(chosen, Nowhere):
        assert chosen.reason
        return
    worth = {id: (placed.of_service("s", id), placed.on_node(id)) for id in able}
    assert worth[chosen] == (max if pack else min)(worth.values())
    assert place(Wish("s", 99, place_on, pack), reversed(nodes), placed) == chosen


@given(st.lists(st.tuples(st.integers(0, 5), st.sampled_from(["s", "t"]), st.sampled_from(["", "b", None]))))
def test_counts_are_those_of_what_is_placed(changes: list[tuple[int, str, str | None]]) -> None:
    placed, model = Placed(), dict[str, tuple[str, str]]()
    for number, service, node in changes:
        if node is None:
            placed.remove(f"i{number}")
            model.pop(f"i{number}", None)
        else:
            placed.put(f"i{number}", service, number, node)
            model[f"i{number}"] = service, node
            assert placed.last(service, number) == node
    for node in ("", "b"):
        assert placed.on_node(node) == sum(it[1] == node for it in model.values())
        for service in "st":
            assert placed.of_service(service, node) == sum(it == (service, node) for it in model.values())
    for number in range(6):
        assert placed.node_of(f"i{number}") == model.get(f"i{number}", (None, None))[1]


def test_of_two_at_a_position_it_is_the_node_of_the_one_that_remains() -> None:
    placed = Placed()
    placed.put("old", "svc", 0, "nod_b")
    placed.put("new", "svc", 0, "nod_c")
    assert placed.last("svc", 0) == "nod_c"
    placed.remove("new")  # it did not become ready
    assert placed.last("svc", 0) == "nod_b"
    placed.remove("old")
    assert placed.last("svc", 0) == "nod_b"
