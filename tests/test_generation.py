"""Which manager of two is the newer one.

The rules: a later restore is newer than any number of starts before it; else the later start is newer. Of
two that are equally new, nodes obey the one that they knew first. A manager that was replaced does not start
again until its database is restored. Only a manager of the cluster can say that there is a newer one.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest
import trio
import trio.testing
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from agentmgr.ca import Authority
from agentmgr.codec import from_json, to_json
from agentmgr.dialing import ManagerAddress, ManagerFile
from agentmgr.errors import CannotUseCluster, ManagerReplaced
from agentmgr.generation import Generation, Obeyed, begin, note_replaced, note_restored
from agentmgr.node.following import follow, manager_file

generations = st.builds(
    Generation,
    st.integers(0, 2),
    st.integers(1, 3),
    st.sampled_from(["m", "n"]),
    at=st.just(datetime.now(UTC)),
)


@given(generations, generations)
def test_of_two_managers_one_yields_to_the_other_and_both_only_where_equally_new(
    a: Generation, b: Generation
) -> None:
    older = (a.restored, a.start) < (b.restored, b.start)
    assert older <= a.yields_to(b)
    both = a.yields_to(b) and b.yields_to(a)
    assert both is ((a.restored, a.start) == (b.restored, b.start) and a.manager_id != b.manager_id)
    assert not a.yields_to(a)


def test_each_start_is_newer_and_a_restore_newer_than_any_start(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    authority = Authority.open(here)
    there.mkdir()
    first, second = begin(here, "man_1", authority), begin(here, "man_2", authority)
    assert first.yields_to(second)
    note_restored(there)
    moved = begin(there, "man_3", authority)
    for _ in range(3):
        assert begin(here, "man_4", authority).yields_to(moved)

    # It is known here, however often this one is started, until it is restored in turn.
    note_replaced(here, moved)
    for _ in range(2):
        with pytest.raises(ManagerReplaced, match=rf"obey the manager on {moved.host}, started"):
            begin(here, "man_5", authority)
    note_restored(here)
    assert moved.yields_to(begin(here, "man_6", authority))

    (here / "generation.json").write_text("{")
    with pytest.raises(CannotUseCluster, match=r"generation\.json cannot be read"):
        begin(here, "man_7", authority)


def test_only_the_clusters_own_ca_vouches_for_a_manager(tmp_path: Path) -> None:
    authority = Authority.open(tmp_path / "one")
    real = from_json(to_json(begin(tmp_path / "one", "man_1", authority)), Generation)
    assert authority.has_signed(real.signed, real.signature)
    for forged in (
        evolve(real, start=real.start + 1),
        evolve(real, signature=""),
        evolve(real, signature="é"),
        begin(tmp_path / "one", "man_1", Authority.open(tmp_path / "two")),
    ):
        assert not authority.has_signed(forged.signed, forged.signature)


async def test_a_node_follows_a_manager_unless_it_obeys_a_newer_one(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    first, second = Generation(0, 1, "man_1"), Generation(5, 1, "man_2")
    here, there = ManagerAddress("a", 1), ManagerAddress("::1", 2)
    file = manager_file(tmp_path)
    with pytest.raises(CannotUseCluster, match=rf"--join HOST:PORT --directory {tmp_path}` does"):
        file.read()
    assert follow(tmp_path, here, first) is None
    assert (file.to_dial(), file.before()) == (here, None)

    moved = trio.Event()

    async def look() -> None:
        await file.moved()
        moved.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(look)
        Obeyed(tmp_path).write(second)
        assert follow(tmp_path, there, first) == second  # and nothing is changed
        assert ManagerFile(file.path).read() == here
        await trio.testing.wait_all_tasks_blocked()
        file.path.write_text("{")  # a file that cannot be read moves nobody
        await trio.sleep(1.2)
        assert not moved.is_set()
        file.write(here)
        assert follow(tmp_path, there, second) is None
        await moved.wait()
    assert (file.to_dial(), file.before()) == (there, here)
    follow(tmp_path, there, second)
    assert file.before() == here  # nothing new
