"""Journals move to where their service runs, whatever dies in between: each session is in one place then."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio
import trio.testing

from agentmgr.core.affinity import named_place, place_named
from agentmgr.core.moves import where
from agentmgr.core.placement import Candidate, Placed
from agentmgr.errors import StorageError
from agentmgr.journal import moving, sqlite_archive
from agentmgr.journal.archive import Found
from agentmgr.journal.journal import Frame, SessionRecord
from agentmgr.journal.sqlite import open_journal
from agentmgr.manager import session_moves
from agentmgr.manager.session_moves import SessionMover
from agentmgr.models import ServiceConfig, ServiceSpec
from agentmgr.models.nodes import NodeState
from agentmgr.node.session_moves import SessionMoves
from agentmgr.testing import MemoryStore

SPEC = ServiceSpec("svc", ServiceConfig("agent.py"))
B, C = "nod_b", "nod_c"


class Nodes:
    def __init__(self) -> None:
        self.states = {"": NodeState.LINKED, B: NodeState.LINKED, C: NodeState.LINKED}
        self.news = trio.lowlevel.ParkingLot()

    def __iter__(self) -> Any:
        return iter([self.get(B), self.get(C)])

    def get(self, node_id: str) -> Any:
        state = self.states[node_id]
        return SimpleNamespace(node_id=node_id, name=node_id, state=state, linked=state == NodeState.LINKED)

    def name_of(self, node_id: str) -> str:
        return node_id or "a"

    def candidates(self) -> list[Candidate]:
        return [Candidate(key, key or "a", state) for key, state in self.states.items()]


class Mover(SessionMover):
    """Without links; each order and each write is a step."""

    machines: dict[str, SessionMoves]
    step: Callable[[], Any]

    async def _ask(self, node_id: str, order: Any, kind: Any) -> Any:
        if not self._is_linked(node_id):
            raise StorageError(f"node {node_id} is away")
        await self.step()
        answer = await self.machines[node_id].answer(order)
        await self.step()
        if not self._is_linked(node_id):
            raise StorageError("it has done it, and its answer is lost")
        return answer

    async def _write(self, changed: Any) -> None:
        await self.step()
        await super()._write(changed)
        await self.step()


class Cluster:
    """Three machines, and one manager after the other."""

    def __init__(self, directory: Path) -> None:
        self.directory, self.nodes, self.placed, self.store = directory, Nodes(), Placed(), MemoryStore()
        self.machines = {
            node_id: SessionMoves(self.sessions(node_id), lambda service_id: False) for node_id in ("", B, C)
        }
        self.steps = 0
        self.at_step: Callable[[int], None] = lambda number: None
        self.begun: list[str] = []

    def sessions(self, node_id: str) -> Path:
        return self.directory / (node_id or "a")

    def journal(self, node_id: str) -> Path:
        return self.sessions(node_id) / f"{SPEC.service_id}.db"

    async def begin(self, node_id: str, count: int = 2) -> None:
        """Some sessions of an instance there."""
        path = self.journal(node_id)
        path.parent.mkdir(exist_ok=True)
        place = place_named(node_id, moving.generation_of(path))
        async with open_journal(path, "ins_1") as journal:
            for _ in range(count):
                number = len(self.begun)
                session_id = f"ses_{number:040x}.{f'{place}.' if place else ''}ins_1"
                held = await journal.create(SessionRecord(session_id, None, 1.0, 1.0))
                held.write(Frame(1, 1, b'{"event":"agent.status","content":"x"}'))
                await held.settled()
                self.begun.append(session_id)

    def runs_on(self, *node_ids: str) -> None:
        for instance_id in ("ins_0", "ins_1", "ins_2"):
            self.placed.remove(instance_id)
        for position, node_id in enumerate(node_ids):
            self.placed.put(f"ins_{position}", SPEC.service_id, position, node_id)
        self.nodes.news.unpark_all()

    async def figures(self, node_id: str) -> Any:
        if self.nodes.states[node_id] is not NodeState.LINKED:
            raise StorageError("it is away")
        path = self.journal(node_id)
        return Found({SPEC.service_id: sqlite_archive.figures(path)} if path.exists() else {})

    @asynccontextmanager
    async def manager(self) -> AsyncIterator[Mover]:
        places = (await self.store.load()).journal_places
        nodes: Any = self.nodes
        mover = Mover(self.store, places, nodes, self.placed, self.sessions(""))
        mover.machines, mover.step = self.machines, self._step
        async with trio.open_nursery() as nursery:
            self.killed = nursery.cancel_scope

            async def run() -> None:
                await mover.run(
                    {SPEC.service_id: SPEC}.get,
                    self.figures,
                    changed=lambda: mover.look(),
                    published=trio.lowlevel.checkpoint,
                    announce=lambda event: None,
                )

            nursery.start_soon(run)
            while not mover._runs:
                await trio.lowlevel.checkpoint()
            yield mover
            nursery.cancel_scope.cancel()

    async def _step(self) -> None:
        self.steps += 1
        self.at_step(self.steps)
        await trio.lowlevel.checkpoint()

    async def settle(self, *, may_leave: str = "") -> None:
        """Under a manager that lives. `may_leave`: the node that was lost with a copy, which goes later."""
        self.at_step = lambda number: None
        async with self.manager() as mover:
            with trio.fail_after(10):
                for node_id in ("", B, C):
                    await mover.empty(node_id, lambda node_id=node_id: self.figures(node_id))
                    assert mover.left_on(node_id) == ()
            table = mover.look()
            for session_id in self.begun:
                named = named_place(session_id)
                assert named is not None
                at, is_moving = where(table.get(SPEC.service_id, {}), *named)
                found = [key for key in ("", B, C) if self.has(key, session_id)]
                assert (found, is_moving) == ([at], False), (session_id, at)
            assert not any(mover.is_closed(SPEC.service_id, node_id) for node_id in ("", B, C))
        left = [key for key in ("", B, C) for _ in self.sessions(key).glob("*ing")]
        assert [key for key in left if key != may_leave] == []

    def has(self, node_id: str, session_id: str) -> bool:
        return sqlite_archive.session(self.journal(node_id), session_id) is not None


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_moves, "LINGER_S", 0.0)
    monkeypatch.setattr(session_moves, "_LOOK_S", 0.0)
    monkeypatch.setattr(session_moves, "_AGAIN_S", 0.01)


async def test_a_manager_that_is_killed_at_any_step_is_followed_by_one_that_goes_on(tmp_path: Path) -> None:
    killed_at = 0
    while True:
        killed_at += 1
        cluster = Cluster(tmp_path / str(killed_at))
        cluster.directory.mkdir()
        await cluster.store.add_service(SPEC)
        await cluster.begin(B)
        cluster.runs_on(C)

        def kill(step: int, cluster: Cluster = cluster, at: int = killed_at) -> None:
            if step == at:
                cluster.killed.cancel()

        cluster.at_step = kill
        async with cluster.manager() as mover:
            await mover.empty(B, lambda cluster=cluster: cluster.figures(B))
        was_killed = cluster.steps >= killed_at
        await cluster.settle()
        assert all(cluster.has(C, session_id) for session_id in cluster.begun)
        if killed_at % 4 == 0:  # back again, where what is begun now is another generation
            cluster.runs_on(C, B)
            await cluster.begin(B, 1)
            await cluster.settle()
            cluster.runs_on(B)
            await cluster.settle()
            assert all(cluster.has(B, session_id) for session_id in cluster.begun)
        if not was_killed:
            break
    assert killed_at > 15


async def test_a_target_that_is_lost_at_any_step_and_comes_back_leaves_nothing_twice(tmp_path: Path) -> None:
    lost_at = 0
    while True:
        lost_at += 1
        cluster = Cluster(tmp_path / str(lost_at))
        cluster.directory.mkdir()
        await cluster.store.add_service(SPEC)
        await cluster.begin(B)
        cluster.runs_on(C)

        def lose(step: int, cluster: Cluster = cluster, at: int = lost_at) -> None:
            if step == at:
                cluster.nodes.states[C] = NodeState.LOST
                cluster.runs_on("")

        cluster.at_step = lose
        async with cluster.manager() as mover:
            await mover.empty(B, lambda cluster=cluster: cluster.figures(B))
        was_lost = cluster.nodes.states[C] is NodeState.LOST
        cluster.nodes.states[C] = NodeState.LINKED
        await cluster.settle(may_leave=C if was_lost else "")
        assert all(cluster.has("" if was_lost else C, session_id) for session_id in cluster.begun)
        if not was_lost:
            break
    assert lost_at > 15


@pytest.mark.parametrize("is_damaged", [False, True])
async def test_what_a_node_has_a_part_of_goes_to_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_damaged: bool
) -> None:
    """Its disk was full in between, or what had come is damaged; and the service has left it by then."""
    cluster = Cluster(tmp_path)
    await cluster.store.add_service(SPEC)
    await cluster.begin(B, 5)
    cluster.runs_on(C)
    put, count = moving._put, 0

    def put_some(*args: Any) -> bool:
        nonlocal count
        count += 1
        if count == 4:
            trio.from_thread.run_sync(cluster.runs_on, "")
            if is_damaged:
                (copy,) = cluster.sessions(C).glob("*.arriving")
                copy.write_bytes(copy.read_bytes()[:-4096])
            raise sqlite3.OperationalError("database or disk is full")
        return put(*args)

    monkeypatch.setattr(moving, "_put", put_some)
    monkeypatch.setattr(moving, "_BATCH_SESSIONS", 2)
    async with cluster.manager() as mover:
        with trio.fail_after(10):
            while mover.is_moving(SPEC.service_id, B) or count < 5:
                await mover.idle.park()
    await cluster.settle()


async def test_nothing_moves_that_is_not_left_behind(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path)
    await cluster.store.add_service(SPEC)
    await cluster.begin(B)
    cluster.runs_on(B, C)
    await cluster.settle()
    assert cluster.steps == 0
    cluster.runs_on()  # it is stopped, or sleeps
    async with cluster.manager() as mover:
        mover.look()
        await trio.testing.wait_all_tasks_blocked()
        assert (cluster.steps, mover.is_moving(SPEC.service_id, B)) == (0, False)
    # Where no node can take what is to move, it stays, and the reason is known.
    cluster.nodes.states |= {"": NodeState.CORDONED, C: NodeState.LOST}
    async with cluster.manager() as mover:
        await mover.empty(B, lambda: cluster.figures(B))
        assert "is cordoned" in " ".join(mover.left_on(B))
    assert all(cluster.has(B, session_id) for session_id in cluster.begun)
