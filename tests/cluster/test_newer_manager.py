"""Two managers of one cluster: a node obeys the newer one, wherever it is led, and shows it to the other."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import trio
import trio.testing

from agentmgr.ca import Authority
from agentmgr.cluster.node_handle import NodeHandle
from agentmgr.generation import Generation, Obeyed, begin
from agentmgr.node.joining import tell_of_newer
from agentmgr.node.node import Node
from agentmgr.node.protocol import Facts
from agentmgr.testing.fake_launcher import FakeLauncher
from tests.cluster.test_joining import Machine, Place
from tests.cluster.test_joining import place as place

OLD, NEW = Generation(0, 5, "man_1", "one"), Generation(9, 1, "man_2", "two")


def handle(generation: Generation) -> NodeHandle:
    return NodeHandle("nod_b", "b", manager_id=generation.manager_id, generation=generation)


async def test_a_node_that_has_obeyed_the_newer_one_obeys_no_older_one_again(
    tmp_path: Path,
    nursery: trio.Nursery,
    autojump_clock: trio.testing.MockClock,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    old, new, again = handle(OLD), handle(NEW), handle(OLD)
    leads_to, shown = old, list[Generation]()
    again.on_newer = shown.append
    moved = trio.Event()

    async def dial() -> trio.abc.Stream:
        ours, theirs = trio.testing.memory_stream_pair()
        nursery.start_soon(leads_to.serve, theirs)
        return ours

    async def has_moved() -> None:
        nonlocal moved
        await moved.wait()
        moved = trio.Event()

    node = Node(tmp_path, FakeLauncher(), Facts("nod_b", "b"), dial, moved=has_moved)
    await nursery.start(node.run)
    await trio.sleep(1)
    assert old.linked
    assert node.obeys == OLD

    leads_to = new
    moved.set()
    await trio.sleep(1)
    assert (old.linked, new.linked) == (False, True)
    assert Obeyed(tmp_path).read() == NEW

    # Led to the older one, as by a name or a daemon's old configuration, each says what is the matter.
    leads_to = again
    moved.set()
    await trio.sleep(10)
    assert (again.linked, node.linked) == (False, False)
    assert again.refused == f"this manager was replaced: the node obeys {NEW}"
    assert set(shown) == {NEW}
    assert f"not linked with the manager: {again.refused}" in caplog.text

    # Nor does it obey one that lets it in, as an agentmgr that knows nothing of this does.
    monkeypatch.setattr(NodeHandle, "_is_replaced", lambda self, hello: False)
    caplog.set_level(logging.WARNING)
    await trio.sleep(10)
    assert f"{OLD} is not obeyed: this node obeys {NEW}, which is newer" in caplog.text
    assert (again.linked, node.obeys) == (False, NEW)
    nursery.cancel_scope.cancel()


async def test_a_manager_of_before_is_told_by_a_node_and_by_no_stranger(place: Place, tmp_path: Path) -> None:
    _, secret = await place.joining.invite()
    machine = Machine.at(tmp_path / "machine")
    await machine.join(place, secret)
    newer = begin(tmp_path / "cluster", "man_9", Authority.open(tmp_path / "cluster"))
    await tell_of_newer(place.address, machine.credentials, machine.node_id, newer)
    ((node_id, shown),) = place.obeyed
    assert (node_id, shown) == (machine.node_id, newer)
    assert place.authority.has_signed(shown.signed, shown.signature)
    await place.joining.forget("vm-2", linked=lambda node_id: False)
    await tell_of_newer(place.address, machine.credentials, machine.node_id, newer)
    assert len(place.obeyed) == 1
