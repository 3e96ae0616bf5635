"""On which nodes gateways take clients."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from agentmgr.cluster.gateways import choose
from agentmgr.models.nodes import NodeState


def node(name: str, state: NodeState = NodeState.LINKED) -> Any:
    lost = "it was silent" if state is NodeState.LOST else None
    return SimpleNamespace(node_id=f"nod_{name}", name=name, state=state, lost=lost)


@pytest.mark.parametrize(
    ("setting", "chosen"), [("head", []), ("2", ["nod_a", "nod_b"]), ("all", ["nod_a", "nod_b", "nod_c"])]
)
def test_as_many_as_the_setting_says_by_name(setting: str, chosen: list[str]) -> None:
    assert choose(setting, [], map(node, "cab")) == chosen


def test_one_that_serves_goes_on_until_it_is_lost() -> None:
    silent, lost = node("c", NodeState.SILENT), node("c", NodeState.LOST)
    assert choose("1", ["nod_c"], [node("a"), silent]) == ["nod_c"]
    assert choose("1", ["nod_c"], [node("a"), lost]) == ["nod_a"]
    assert choose("1", ["nod_a"], [node("a"), node("c")]) == ["nod_a"], "the one that took its place stays"


def test_a_cordoned_one_keeps_its_own_and_is_not_chosen_anew() -> None:
    cordoned = node("a", NodeState.CORDONED)
    assert choose("1", [], [cordoned, node("b")]) == ["nod_b"]
    assert choose("1", ["nod_a"], [cordoned, node("b")]) == ["nod_a"]
