"""What keeps a daemon on a machine of Ray's, on this machine and without Ray."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio

from agentmgr.cluster import ray_keeper
from agentmgr.codec import to_plain
from agentmgr.generation import Generation
from agentmgr.node.daemon import NodeDaemon, held
from agentmgr.node.kept import kept
from agentmgr.version import __version__
from tests.cluster.conftest import ACluster, Cluster
from tests.processes import alive, end_all_in, working_in

NEWER = Generation(0, 99, "man_newer")


def told(cluster: Cluster, **more: Any) -> dict[str, Any]:
    return {
        "cluster_id": "c1",
        "address": "127.0.0.5",
        "manager": f"127.0.0.1:{cluster.port}",
        "version": __version__,
        "generation": to_plain(NEWER),
        "name": "e",
        **more,
    }


def test_a_daemon_is_started_once_follows_newer_managers_and_is_replaced_after_an_upgrade(
    a_cluster: ACluster, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    state = tmp_path / "state"
    monkeypatch.setenv("XDG_STATE_HOME", str(state))
    with a_cluster(nodes=0) as cluster:
        try:
            assert ray_keeper.ensure(told(cluster)) == {"wants_secret": True}
            secret = cluster.invite().read_text().strip()
            found = ray_keeper.ensure(told(cluster, secret=secret))
            assert found == {"node_id": cluster.nodes()["e"]["node_id"], "remarks": []}
            [directory] = kept()
            assert directory == state / "agentmgr" / "nodes" / "c1" / "127.0.0.5"
            first = ray_keeper.running(directory)
            assert first is not None
            # A pod's preStop need not know where that is.
            cluster.shell.ok("node", "--drain", XDG_STATE_HOME=str(state))
            assert ray_keeper.ensure(told(cluster)) == found
            assert ray_keeper.running(directory) == first

            older = Generation(0, 0, "man_older")
            obeyed = ray_keeper.ensure(told(cluster, generation=to_plain(older)))
            assert obeyed["node_id"] == found["node_id"]
            assert obeyed["obeys"]["manager_id"].startswith("man_")

            with monkeypatch.context() as patch:
                patch.setattr(ray_keeper, "_usual_nice", lambda: -1)
                other, nice = ray_keeper.ensure(told(cluster, version="9.9"))["remarks"]
            assert f"has agentmgr {__version__}, and the manager 9.9" in other
            assert "RAY_worker_niceness=0" in nice

            # The daemon that runs is of another version than what is installed.
            started = directory / "started.json"
            started.write_text(started.read_text().replace(__version__, "0.0.9"))
            assert ray_keeper.ensure(told(cluster)) == {"wants_secret": True}
            assert not alive(first)
            secret = cluster.invite().read_text().strip()
            assert ray_keeper.ensure(told(cluster, secret=secret)) == found
            assert ray_keeper.running(directory) not in (None, first)
        finally:
            end_all_in(state)


def test_a_daemon_that_has_no_manager_and_nothing_to_run_ends(
    a_cluster: ACluster, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    state = tmp_path / "state"
    monkeypatch.setenv("XDG_STATE_HOME", str(state))
    monkeypatch.setattr(ray_keeper, "_UNNEEDED_S", 2.0)
    with a_cluster(nodes=0) as cluster:
        try:
            secret = cluster.invite().read_text().strip()
            assert "node_id" in ray_keeper.ensure(told(cluster, secret=secret))
            [directory] = kept()
            cluster.kill_manager()
            cluster.until(lambda: ray_keeper.running(directory) is None)
            assert "this daemon ends" in (directory / "node.log").read_text()
            cluster.until(lambda: working_in(state) == [])  # its gate has ended too
        finally:
            end_all_in(state)


async def test_a_daemon_that_runs_something_or_serves_clients_does_not_end(
    autojump_clock: trio.abc.Clock,
) -> None:
    ends: list[float] = []

    async def end() -> None:
        ends.append(trio.current_time())

    instance = SimpleNamespace(run=object())
    node = SimpleNamespace(instances={"ins_1": instance}, linked=False)
    gateways = SimpleNamespace(serve_clients=False, end=end)
    daemon = cast(NodeDaemon, SimpleNamespace(node=node, gateways=gateways))

    async def change() -> None:
        await trio.sleep(1000)
        instance.run, gateways.serve_clients = None, True
        await trio.sleep(1000)
        gateways.serve_clients, node.linked = False, True
        await trio.sleep(1000)
        node.linked = False

    async with trio.open_nursery() as nursery:
        nursery.start_soon(change)
        began = trio.current_time()
        await NodeDaemon.unneeded(daemon, 600)
    assert 3590 <= ends[0] - began <= 3620


def test_what_a_machine_lacks_is_said_with_what_to_type(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')  # without what is installed
    bare.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(bare))
    words = {"cluster_id": "c1", "address": "127.0.0.5", "manager": "127.0.0.1:1", "version": "1.2"}
    assert ray_keeper.ensure(words) == {
        "unfit": "its Python lacks agentmgr (No module named 'agentmgr'): "
        f"`{bare} -m pip install 'agentmgr-trio[ray]==1.2'` there"
    }


def test_a_daemon_that_ends_at_once_is_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    words = {"cluster_id": "c1", "address": "127.0.0.5", "manager": "127.0.0.1:1", "version": __version__}
    [said] = ray_keeper.ensure({**words, "secret": "nonsense"}).values()
    assert said.startswith("its daemon has ended: ")
    assert "this is no secret of `agentmgr nodes invite`" in said
    [said] = ray_keeper.ensure({**words, "secret": "nonsense", "version": "9.9"}).values()
    assert f"it has agentmgr {__version__}, and the manager 9.9" in said  # which may be the reason


def test_a_daemon_runs_while_it_holds_its_lock(tmp_path: Path) -> None:
    assert ray_keeper.running(tmp_path) is None
    with held(tmp_path):
        assert ray_keeper.running(tmp_path) == os.getpid()
    assert ray_keeper.running(tmp_path) is None  # its pid still stands there
