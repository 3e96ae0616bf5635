"""The engine on a real Ray: its machines, its claims, and what dies, without any instance.

All share one Ray, which takes 15 s to start. What breaks it comes last.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from agentmgr.cluster.engine import Claim, Demand, Machine, claim_id
from agentmgr.cluster.ray_engine import RayEngine
from agentmgr.cluster.ray_keeper import running
from agentmgr.generation import Generation
from tests.conditions import until
from tests.ports import own_port
from tests.processes import alive, end_all_in
from tests.ray.conftest import HEAD, Ray, bridges_of

CLUSTER = "tests"
TOLD_WITHIN_S = 30.0  #: what is wrong with the connection


class Observer:
    """Keeps what it was told."""

    def __init__(self) -> None:
        self.up: dict[str, Machine] = {}
        self.gone: dict[str, str] = {}
        self.forgotten: set[str] = set()
        self.claims: Mapping[str, Claim] | None = None  #: as found last
        self.found = 0

    def machine_up(self, machine: Machine) -> None:
        self.up[machine.engine_id] = machine

    def machine_gone(self, engine_id: str, reason: str) -> None:
        self.gone[engine_id] = reason
        del self.up[engine_id]

    def machine_forgotten(self, engine_id: str) -> None:
        self.forgotten.add(engine_id)
        del self.up[engine_id]

    def claims_found(self, claims: Mapping[str, Claim]) -> None:
        self.claims = claims
        self.found += 1

    def at(self, address: str) -> Machine:
        return next(machine for machine in self.up.values() if machine.address == address)


class Manager:
    """What the nodes of all these engines join."""

    def __init__(self, directory: Path) -> None:
        self.directory, self.port = directory, own_port()
        words = ["daemon", "--cluster", "joined", "--cluster-host", "127.0.0.1"]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "agentmgr", *words, "--cluster-port", str(self.port)],
            cwd=directory,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert self.process.stdout is not None
        while not self.process.stdout.readline().startswith("managing"):
            assert self.process.poll() is None

    async def invite(self) -> str:
        words = ["-m", "agentmgr", "nodes", "invite"]
        done = await trio.run_process(
            [sys.executable, *words], cwd=self.directory, capture_stdout=True, capture_stderr=True
        )
        return done.stdout.decode().strip()

    def engine(self, address: str) -> RayEngine:
        return RayEngine(
            CLUSTER,
            self.invite,
            manager_host="127.0.0.1",
            manager_port=self.port,
            generation=Generation(0, 99, "man_tests"),
            obeys=lambda node_id, newer: None,
            address=address,
        )


@pytest.fixture(scope="module")
def ray(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ray]:
    ray = Ray(tmp_path_factory.mktemp("ray"))
    try:
        ray.start_head()
        ray.start_worker(0, "--num-gpus", "4", "--resources", '{"licence": 1}')
        ray.start_worker(1)
        yield ray
    finally:
        ray.end()


@pytest.fixture(scope="module")
def manager(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Manager]:
    directory = tmp_path_factory.mktemp("manager")
    manager = Manager(directory)
    try:
        yield manager
    finally:
        manager.process.terminate()
        manager.process.communicate()
        end_all_in(directory)


@asynccontextmanager
async def an_engine(
    ray: Ray, manager: Manager, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[tuple[RayEngine, Observer]]:
    """It runs, and knows all machines."""
    for name, value in ray.environment.items():
        monkeypatch.setenv(name, value)
    engine, observer = manager.engine(ray.address), Observer()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(engine.run, observer)
        try:
            await until(lambda: len(observer.up) == 3 and observer.claims is not None)
        except trio.TooSlowError:
            raise AssertionError(f"{observer.up} {engine.troubles()} {engine._said}") from None
        yield engine, observer
        nursery.cancel_scope.cancel()


def daemon_at(ray: Ray, number: int) -> int:
    pid = running(ray.state / "agentmgr" / "nodes" / CLUSTER / ray.host(number))
    assert pid is not None
    return pid


def bridge_of_this_test() -> int:
    [pid] = bridges_of(os.getpid())
    return pid


def own(name: str) -> str:
    return claim_id(CLUSTER, name)


async def test_each_machine_gets_a_daemon_that_has_nothing_of_rays(
    ray: Ray, manager: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with an_engine(ray, manager, monkeypatch) as (engine, observer):
        head, gpus, other = (observer.at(host) for host in (HEAD, ray.host(0), ray.host(1)))
        assert head.node_id == ""
        assert gpus.node_id.startswith("nod_")
        assert gpus.node_id != other.node_id
        assert (dict(gpus.labels), gpus.resources["GPU"], gpus.resources["CPU"]) == ({"zone": "z0"}, 4, 2)
        assert engine.troubles() == ()
        pid = daemon_at(ray, 0)
        variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        strange = [
            it for it in variables if it.startswith((b"RAY_", b"OMP_NUM", b"PYTHONBREAK", b"LD_PRELOAD"))
        ]
        assert strange == []
        assert Path(f"/proc/{pid}/oom_score_adj").read_text() == "0\n"

    # The next manager finds the same nodes, and their daemons as they are.
    async with an_engine(ray, manager, monkeypatch) as (engine, observer):
        assert observer.at(ray.host(0)) == gpus
        assert daemon_at(ray, 0) == pid


async def test_claims_are_made_where_they_fit_and_are_found_again(
    ray: Ray, manager: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: dict[str, list[str]] = {name: [] for name in "abcdefg"}

    async with an_engine(ray, manager, monkeypatch) as (engine, observer), trio.open_nursery() as nursery:

        async def claim(name: str, demand: Demand, prefer: str | None = None) -> Claim:
            return await engine.claim(own(name), demand, prefer=prefer, waits=said[name].append)

        first, second = observer.at(ray.host(0)), observer.at(ray.host(1))
        a = await claim("a", Demand(cpus=0.5, place_on=("zone=z1",)), prefer=first.node_id)
        assert (a.engine_id, a.gpu_ids) == (second.engine_id, ())
        b = await claim("b", Demand(cpus=0.5), prefer=second.node_id)
        assert b.engine_id == second.engine_id
        c = await claim("c", Demand(resources={"licence": 1}), prefer=second.node_id)
        assert c.engine_id == first.engine_id
        d = await claim("d", Demand(gpus=1))
        e = await claim("e", Demand(gpus=2))
        assert len({*d.gpu_ids, *e.gpu_ids}) == 3
        assert await claim("d", Demand(gpus=1)) == d  # the one that there is

        # One that has to wait gets what another one gives back; one that is cancelled leaves nothing behind.
        waiting = trio.CancelScope()

        async def wait_in_vain() -> None:
            with waiting:
                await claim("f", Demand(gpus=2))

        got: list[Claim] = []

        async def wait() -> None:
            got.append(await claim("g", Demand(resources={"licence": 1}, place_on=("zone=!z1",))))

        nursery.start_soon(wait_in_vain)
        nursery.start_soon(wait)
        await until(lambda: said["f"] != [] and said["g"] != [])
        assert said["f"] == ["waits for 2 GPUs: none is free"]
        assert said["g"] == ["waits for 1 licence (zone=!z1): none is free"]
        waiting.cancel()
        engine.release(own("c"))
        await until(lambda: got != [])
        assert got[0].engine_id == first.engine_id

    async with an_engine(ray, manager, monkeypatch) as (engine, observer):
        assert observer.claims == {own("a"): a, own("b"): b, own("d"): d, own("e"): e, own("g"): got[0]}
        for name in "abdeg":
            engine.release(own(name))
        whole = await engine.claim(own("h"), Demand(gpus=4), prefer=None, waits=said["f"].append)
        assert len(whole.gpu_ids) == 4
        engine.release(own("h"))  # and ends: what was given back goes to Ray still


async def test_what_no_machine_has_is_said_and_waits(
    ray: Ray, manager: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    async with an_engine(ray, manager, monkeypatch) as (engine, observer), trio.open_nursery() as nursery:
        assert observer.claims == {}
        ask = lambda: engine.claim(own("x"), Demand(gpus=9), prefer=None, waits=said.append)  # noqa: E731
        nursery.start_soon(ask)
        await until(lambda: said != [])
        assert said == ["waits for 9 GPUs: no machine of Ray's has that"]
        nursery.cancel_scope.cancel()


async def test_a_bridge_that_is_killed_again_and_again_is_noticed_by_nothing_else(
    ray: Ray, manager: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agentmgr.cluster.ray_engine._FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr("agentmgr.cluster.ray_engine._LONGEST_PAUSE_S", 0.01)
    async with an_engine(ray, manager, monkeypatch) as (engine, observer):
        claim = await engine.claim(own("k"), Demand(gpus=1), prefer=None, waits=lambda why: None)
        before, daemons = dict(observer.up), [daemon_at(ray, number) for number in range(2)]
        for _ in range(20):
            found = observer.found
            os.kill(bridge_of_this_test(), signal.SIGKILL)
            await until(lambda: observer.found > found)  # noqa: B023
            assert observer.claims == {own("k"): claim}
        assert (observer.up, observer.gone, observer.forgotten) == (before, {}, set())
        assert [daemon_at(ray, number) for number in range(2)] == daemons
        engine.release(own("k"))


async def test_a_daemon_that_has_died_is_started_again_as_the_same_node(
    ray: Ray, manager: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with an_engine(ray, manager, monkeypatch) as (engine, observer):
        before, machine = daemon_at(ray, 0), observer.at(ray.host(0))
        os.kill(before, signal.SIGKILL)
        await until(lambda: not alive(before))
        engine.revive(machine.node_id)
        directory = ray.state / "agentmgr" / "nodes" / CLUSTER / ray.host(0)
        await until(lambda: running(directory) not in (None, before))
        assert observer.at(ray.host(0)) == machine


async def test_a_wrong_token_is_explained(
    ray: Ray, manager: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in ray.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "f" * 32)
    engine = manager.engine(ray.address)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(engine.run, Observer())
        await until(lambda: engine.troubles() != (), within_s=TOLD_WITHIN_S)
        [trouble] = engine.troubles()
        assert "the token of this manager is not that of Ray's cluster" in trouble
        assert "~/.ray/auth_token" in trouble
        nursery.cancel_scope.cancel()


async def test_a_raylet_that_dies_leaves_its_daemon_and_comes_back_as_the_same_node(
    ray: Ray, manager: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with an_engine(ray, manager, monkeypatch) as (engine, observer):
        machine, daemon = observer.at(ray.host(1)), daemon_at(ray, 1)
        demand = Demand(cpus=1, place_on=("zone=z1",))
        await engine.claim(own("r"), demand, prefer=None, waits=lambda why: None)
        engine.hold(frozenset(observer.up))
        found = observer.found
        ray.kill_raylet(1)
        await until(lambda: machine.engine_id in observer.gone)
        await until(lambda: observer.found > found)
        assert own("r") not in (observer.claims or {})
        assert alive(daemon)
        ray.start_worker(1)
        await until(lambda: len(observer.up) == 3)
        back = observer.at(ray.host(1))
        assert (back.node_id, daemon_at(ray, 1)) == (machine.node_id, daemon)
        assert back.engine_id != machine.engine_id
        again = await engine.claim(own("r"), demand, prefer=back.node_id, waits=lambda why: None)
        assert again.engine_id == back.engine_id
        engine.release(own("r"))
        engine.hold(frozenset())


async def test_all_of_ray_may_end_and_be_started_anew(
    ray: Ray, manager: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with an_engine(ray, manager, monkeypatch) as (engine, observer):
        before = dict(observer.up)
        daemons = [daemon_at(ray, number) for number in range(2)]
        claim = await engine.claim(own("s"), Demand(cpus=1), prefer=None, waits=lambda why: None)
        assert claim.engine_id in before
        ray.stop()
        await until(lambda: engine.troubles() != (), within_s=TOLD_WITHIN_S)
        ray.start_head()
        ray.start_worker(0, "--num-gpus", "4")
        ray.start_worker(1)
        await until(lambda: len(observer.up) == 3 and not before.keys() & observer.up.keys(), within_s=150)
        assert observer.claims == {}
        # What a new Ray does not know is not dead.
        assert (observer.gone, observer.forgotten) == ({}, set(before))
        assert {it.node_id for it in observer.up.values()} == {it.node_id for it in before.values()}
        assert [daemon_at(ray, number) for number in range(2)] == daemons
        await engine.claim(own("s"), Demand(cpus=1), prefer=None, waits=lambda why: None)
        engine.release(own("s"))
