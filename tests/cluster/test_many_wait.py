"""Thousands of instances that wait for a node, when that changes."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from agentmgr.cluster import launcher as launcher_module
from agentmgr.cluster.launcher import ClusterLauncher
from agentmgr.cluster.nodes import OWN, Nodes
from agentmgr.core.placement import place
from agentmgr.models import ServiceConfig, ServiceSpec
from agentmgr.testing import FakeLauncher


async def test_others_have_their_turn_while_a_thousand_look_for_a_node(
    monkeypatch: pytest.MonkeyPatch, nursery: trio.Nursery
) -> None:
    nodes = Nodes("man_1", "a", cordoned=True)
    launcher = ClusterLauncher(FakeLauncher(), nodes, check_interval_s=10)
    nursery.start_soon(launcher.run)
    looks, most, placed = 0, 0, 0

    def counted(*arguments):
        nonlocal looks
        looks += 1
        return place(*arguments)

    async def take_turns() -> None:
        nonlocal looks, most
        while True:
            most, looks = max(most, looks), 0
            await trio.lowlevel.checkpoint()

    async def wait_for_a_node(number: int) -> None:
        nonlocal placed
        spec = ServiceSpec(f"s{number}", ServiceConfig(command=("server", "{port}")))
        await launcher.slot(spec, f"ins_{number}", 0).place(lambda reason: None)
        placed += 1

    monkeypatch.setattr(launcher_module, "place", counted)
    for number in range(1000):
        nursery.start_soon(wait_for_a_node, number)
    await trio.testing.wait_all_tasks_blocked()
    assert (placed, looks) == (0, 1000)
    looks = 0
    nursery.start_soon(take_turns)
    nodes.cordon(OWN, False)
    while placed < 1000:  # it takes some turns
        await trio.lowlevel.checkpoint()
    assert 10 < most <= 100, "of 1,000 that the change has woken at once"
