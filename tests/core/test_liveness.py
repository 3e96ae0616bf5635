"""Who is alive: the table of states, what a manager that is cut off decides, and arbitrary histories."""

from __future__ import annotations

import math

from attrs import Factory, define, frozen
from hypothesis import example, given
from hypothesis import strategies as st

from agentmgr.core.liveness import Change, Liveness
from agentmgr.models.nodes import NodeState

LINKED, CORDONED, SILENT, LOST = NodeState.LINKED, NodeState.CORDONED, NodeState.SILENT, NodeState.LOST


def cluster(*names: str, now: float = 0.0) -> Liveness:
    """All linked, the manager's own ("") as well."""
    liveness = Liveness(lost_after_s=15)
    for name in ("", *names):
        liveness.add(name, now, was_linked=False)
        liveness.link_up(name, now)
    liveness.look(now)
    return liveness


def states(liveness: Liveness, *names: str) -> list[NodeState]:
    return [liveness.state(name) for name in names]


def test_a_silent_node_is_lost_after_15_s_and_linked_again_when_it_is_back() -> None:
    liveness = cluster("b")
    liveness.link_down("b", 100)
    assert liveness.look(100) == (Change("b", SILENT, ""),)
    assert liveness.next_look() == 115
    assert liveness.look(114.9) == ()
    assert liveness.look(115) == (Change("b", LOST, "silent for 15 s"),)
    assert liveness.look(500) == ()
    assert liveness.next_look() == math.inf
    liveness.link_up("b", 600)
    assert liveness.look(600) == (Change("b", LINKED, ""),)


def test_a_link_that_comes_back_in_time_begins_a_new_silence() -> None:
    liveness = cluster("b")
    for down in (100, 110, 120):
        liveness.link_down("b", down)
        liveness.look(down)
        liveness.link_up("b", down + 9)
        liveness.look(down + 9)
    liveness.link_down("b", 130)
    assert liveness.look(130) == (Change("b", SILENT, ""),)
    assert liveness.next_look() == 145


def test_time_in_which_the_manager_did_not_run_is_no_silence() -> None:
    liveness = cluster("b", "c", "d")
    liveness.link_down("b", 0.0)
    liveness.look(0.0)
    liveness.was_late(20.0)
    liveness.look(34.9)
    assert states(liveness, "b", "c") == [NodeState.SILENT, NodeState.LINKED]
    liveness.look(35.0)
    assert states(liveness, "b") == [NodeState.LOST]


def test_what_the_engine_says() -> None:
    liveness = cluster("b", "c")
    liveness.engine_says("b", "its raylet died")
    assert liveness.look(1) == (Change("b", CORDONED, "the engine says that it is gone: its raylet died"),)
    liveness.engine_says("b", "")
    assert liveness.look(2) == (Change("b", LINKED, ""),)
    liveness.link_down("c", 3)
    liveness.look(3)
    liveness.engine_says("c", "terminated")
    assert liveness.look(4) == (Change("c", LOST, "terminated"),)


def test_the_engines_word_is_no_reason_to_give_up_a_node_that_was_linked_then() -> None:
    """Ray was stopped, its machine lives on, and a link breaks for a moment."""
    liveness = cluster("b", "c")
    liveness.engine_says("b", "its raylet died")
    liveness.look(1)
    liveness.link_down("b", 2)
    assert liveness.look(2) == (Change("b", SILENT, ""),)
    assert liveness.next_look() == 17
    liveness.link_up("b", 3)
    assert liveness.look(3)[0].state is CORDONED
    liveness.link_down("b", 4)
    liveness.look(4)
    liveness.engine_says("b", "terminated")  # anew, of the machine that it had next
    assert liveness.look(5) == (Change("b", LOST, "terminated"),)


def test_an_operator_cordons_any_node_and_the_managers_too() -> None:
    liveness = cluster("b")
    for name in ("", "b"):
        liveness.cordon(name, True)
        assert liveness.look(1) == (Change(name, CORDONED, "by an operator"),)
        liveness.cordon(name, False)
        assert liveness.look(1) == (Change(name, LINKED, ""),)
    liveness.cordon("b", True)
    liveness.link_down("b", 2)
    assert liveness.look(2) == (Change("b", SILENT, ""),)


def test_a_manager_that_is_cut_off_loses_no_node_until_most_are_back() -> None:
    liveness = cluster("b", "c", "d", "e")
    for name, at in (("b", 100), ("c", 107), ("d", 114)):
        liveness.link_down(name, at)
        liveness.look(at)
    assert liveness.cut_off
    assert (liveness.held_back, liveness.next_look()) == ("", 129)
    assert liveness.look(129) == ()
    assert liveness.held_back.startswith("3 of 5 nodes are silent")
    assert liveness.next_look() == math.inf
    assert liveness.look(4000) == ()
    liveness.link_up("c", 4000)
    assert liveness.look(4000) == (Change("c", LINKED, ""),)
    assert not liveness.cut_off
    assert liveness.next_look() == 4015  # the others may be on their way
    liveness.link_up("d", 4001)
    liveness.look(4001)
    assert liveness.look(4015) == (Change("b", LOST, "silent for 3915 s"),)


def test_half_of_the_nodes_is_not_more_than_half() -> None:
    liveness = cluster("b", "c", "d")
    for name in "bc":
        liveness.link_down(name, 0)
    liveness.look(0)
    assert not liveness.cut_off
    assert {change.node_id for change in liveness.look(15)} == {"b", "c"}


def test_nodes_whose_daemons_end_in_order_are_no_sign_of_a_cut_unless_they_link_again() -> None:
    liveness = cluster("b", "c", "d")
    for name in "bcd":
        liveness.link_down(name, 0, in_order=True)
    liveness.look(0)
    assert not liveness.cut_off
    assert {change.node_id for change in liveness.look(15)} == {"b", "c", "d"}
    for name in "bcd":
        liveness.link_up(name, 20)
    liveness.look(20)
    for name in "bcd":
        liveness.link_down(name, 30)
    liveness.look(30)
    assert liveness.cut_off


def test_losses_one_after_the_other_are_no_cut() -> None:
    liveness = cluster("b", "c", "d")
    for at, name in ((0, "b"), (20, "c"), (40, "d")):
        liveness.link_down(name, at)
        liveness.look(at)
        assert liveness.look(at + 15) == (Change(name, LOST, "silent for 15 s"),)


def test_in_a_cut_the_engines_word_and_an_operators_go_for_one_node_each() -> None:
    liveness = cluster("b", "c", "d")
    for name in "bcd":
        liveness.link_down(name, 0)
    liveness.look(0)
    liveness.engine_says("b", "terminated")
    liveness.look(20)
    liveness.remove("c")
    assert liveness.look(40) == ()
    assert states(liveness, "b", "d") == [LOST, SILENT]
    assert liveness.held_back.startswith("3 of 4")
    liveness.remove("d")
    liveness.look(50)
    assert not liveness.cut_off


def test_a_cut_ends_when_half_are_back_and_new_nodes_count() -> None:
    for new in ("", "x"):
        liveness = cluster("b", "c", "d")
        for name in "bcd":
            liveness.link_down(name, 0)
        liveness.look(0)
        liveness.add(new or "b", 1, was_linked=not new)
        liveness.link_up(new or "b", 1)
        liveness.look(1)
        assert bool(liveness.cut_off) is (new == "x")
    liveness.add("y", 2, was_linked=False)
    liveness.link_up("y", 2)
    liveness.look(2)
    assert not liveness.cut_off


def test_what_is_lost_already_is_no_sign_of_a_cut_and_stays_lost_in_one() -> None:
    liveness = cluster("b", "c", "d", "e", "f")
    for name, gone in (("b", ""), ("c", "terminated")):
        liveness.link_down(name, 0)
        liveness.engine_says(name, gone)
        liveness.look(0)
    liveness.look(15)
    liveness.link_down("d", 20)
    liveness.link_down("e", 20)
    liveness.engine_says("e", "terminated")
    liveness.look(20)
    assert not liveness.cut_off
    liveness.link_down("f", 21)
    liveness.look(21)
    assert liveness.cut_off
    liveness.link_up("f", 30)
    liveness.look(30)
    assert states(liveness, *"bcdef") == [LOST, LOST, SILENT, LOST, LINKED]


def test_what_the_engine_knows_to_be_gone_is_no_sign_of_a_cut() -> None:
    liveness = cluster("b", "c")
    for name in "bc":
        liveness.link_down(name, 0)
    liveness.engine_says("b", "terminated")
    liveness.look(0)
    assert not liveness.cut_off
    liveness.look(15)
    assert states(liveness, "b", "c") == [LOST, LOST]


def test_only_nodes_that_ran_something_are_missed_by_the_next_manager() -> None:
    """It begins with no link; two of its nodes are dead since long."""
    liveness = Liveness(lost_after_s=15)
    for name, ran in (("", False), ("b", True), ("c", True), ("x", False), ("y", False), ("z", False)):
        liveness.add(name, 0, was_linked=ran)
    liveness.link_up("", 0)
    assert liveness.look(0) == (Change("", LINKED, ""),)
    assert liveness.cut_off
    liveness.link_up("b", 1)
    liveness.link_up("c", 1)
    liveness.look(1)
    assert {it.node_id for it in liveness.look(16)} == {"x", "y", "z"}
    assert states(liveness, "", "b", "c") == [LINKED] * 3


@frozen
class Happening:
    pause_s: float
    node: str
    what: str


HAPPENINGS = st.lists(
    st.builds(
        Happening,
        st.sampled_from([0, 0, 0.5, 1, 4, 7, 14, 15, 16, 40]),
        st.sampled_from("abcde"),
        st.sampled_from(["up", "down", "down", "gone", "alive", "cordon", "uncordon"]),
    ),
    max_size=25,
)
NAMES = ("", *"abcde")


def apply(liveness: Liveness, it: Happening, now: float) -> None:
    match it.what:
        case "up":
            liveness.link_up(it.node, now)
        case "down":
            liveness.link_down(it.node, now)
        case "gone" | "alive":
            liveness.engine_says(it.node, "terminated" if it.what == "gone" else "")
        case _:
            liveness.cordon(it.node, it.what == "cordon")


@define
class Truth:
    """What is so, whatever the manager makes of it."""

    down_since: dict[str, float] = Factory(dict)
    gone: set[str] = Factory(set)
    surely_gone: set[str] = Factory(set)
    cordoned: set[str] = Factory(set)

    def can_be(self, it: Happening) -> bool:
        """A link that is down does not go down again."""
        return it.what not in ("up", "down") or (it.what == "up") is (it.node in self.down_since)

    def apply(self, it: Happening, now: float) -> None:
        if it.what == "down":
            self.down_since[it.node] = now
        elif it.what == "up":
            del self.down_since[it.node]
            self.surely_gone.discard(it.node)
        else:
            if it.what == "alive":
                self.surely_gone.discard(it.node)
            elif it.what == "gone" and it.node in self.down_since:
                self.surely_gone.add(it.node)
            names = self.gone if it.what in ("gone", "alive") else self.cordoned
            (names.add if it.what in ("gone", "cordon") else names.discard)(it.node)


@given(HAPPENINGS)
@example([Happening(0, name, "down") for name in "abc"])
def test_any_history(history: list[Happening]) -> None:
    liveness, truth, now = cluster(*"abcde"), Truth(), 0.0
    for it in history:
        now += it.pause_s
        if not truth.can_be(it):
            continue
        while (look := liveness.next_look()) <= now:
            lose_by_silence(liveness, look)
        apply(liveness, it, now)
        truth.apply(it, now)
        liveness.look(now)
        for name in NAMES:
            check_state(liveness, truth, name, now)
        silent = [name for name in NAMES if liveness.state(name) is SILENT]
        if len(silent) > len(NAMES) - len(truth.down_since):
            assert liveness.cut_off
        if not liveness.cut_off:
            assert (liveness.next_look() < math.inf) is bool(silent)


def check_state(liveness: Liveness, truth: Truth, name: str, now: float) -> None:
    state = liveness.state(name)
    if name not in truth.down_since:
        assert state is (CORDONED if name in truth.gone | truth.cordoned else LINKED)
    elif name in truth.surely_gone:
        assert state is LOST
    else:
        assert state in (SILENT, LOST)
        if liveness.reason(name).startswith("silent"):
            assert now - truth.down_since[name] >= 15


def lose_by_silence(liveness: Liveness, now: float) -> None:
    """At most half of those that were not lost yet are lost for their silence at one time."""
    known = [name for name in NAMES if liveness.state(name) is not LOST]
    cut_off, changes = liveness.cut_off, liveness.look(now)
    assert {change.state for change in changes} == (set() if cut_off else {LOST})
    assert 2 * len(changes) <= len(known)


@given(HAPPENINGS)
def test_looking_more_often_decides_the_same(history: list[Happening]) -> None:
    often, seldom = cluster(*"abcde"), cluster(*"abcde")
    truth, now, at = Truth(), 0.0, 0.0
    for it in history:
        at += it.pause_s
        if not truth.can_be(it):
            continue
        truth.apply(it, at)
        while now + 0.5 < at:
            now += 0.5
            often.look(now)
        now = at
        while (look := seldom.next_look()) <= at:
            seldom.look(look)
        for liveness in (often, seldom):
            liveness.look(at)
            apply(liveness, it, at)
            liveness.look(at)
        assert states(often, *NAMES) == states(seldom, *NAMES)
        assert bool(often.cut_off) == bool(seldom.cut_off)
