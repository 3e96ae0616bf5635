"""A manager with Ray under it, as it is used, and the death of each part of Ray under open sessions."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from websockets.sync.client import ClientConnection, connect

from tests.cli.conftest import ECHO, Shell
from tests.cluster.conftest import Cluster
from tests.conditions import heard
from tests.ray.conftest import ARay, Ray, bridges_of

CLIENTS = 6
BRIDGES = 3  #: that are killed, each a second or more after the one before; 20 where nobody waits for it


@contextmanager
def managed(shell: Shell, ray: Ray) -> Iterator[Cluster]:
    shell.environment |= ray.environment
    cluster = Cluster(shell, "--cluster", "ray", "--ray-address", ray.address, "--gateways", "all")
    cluster.lost_after_s = 20.0
    try:
        cluster.start_manager()
        cluster.until(lambda: list(cluster.states().values()) == ["linked"] * 3)
        yield cluster
    finally:
        cluster.end()


def answer(client: ClientConnection, message: str) -> str:
    client.send(message)
    return str(heard(client))


def test_no_session_notices_the_death_of_any_part_of_ray(a_ray: ARay, shell: Shell) -> None:
    with a_ray(workers=2) as ray, managed(shell, ray) as cluster, ExitStack() as stack:
        (shell.directory / "my_agent.py").write_text(ECHO)
        shell.ok("register", "plain", "my_agent.py", "--instances", "3", "--auto-start")
        shell.ok(
            *("register", "reserved", "my_agent.py", "--instances", "2", "--cpus", "0.5"),
            *("--place-on", "zone=in(z0,z1)", "--auto-start"),
        )
        cluster.until(lambda: len(cluster.placed("plain")) == 3 and len(cluster.placed("reserved")) == 2)
        assert len(set(cluster.placed("plain").values())) == 3
        pids = {name: cluster.pids(name) for name in ("plain", "reserved")}
        clients = [
            stack.enter_context(connect(f"{cluster.url}/services/{name}"))
            for name in ("plain", "reserved") * (CLIENTS // 2)
        ]
        turns = 0

        def all_go_on() -> None:
            nonlocal turns
            turns += 1
            assert [answer(it, f"turn {turns}") for it in clients] == [f"echo: turn {turns}"] * CLIENTS
            assert {name: cluster.pids(name) for name in pids} == pids

        all_go_on()

        for _ in range(BRIDGES):
            cluster.until(lambda: bridges_of(cluster.processes[""].pid))
            [bridge] = bridges_of(cluster.processes[""].pid)
            os.kill(bridge, signal.SIGKILL)
            cluster.until(lambda: bridge not in bridges_of(cluster.processes[""].pid))  # noqa: B023
            all_go_on()

        ray.kill_raylet(0)
        all_go_on()
        host = ray.host(0)
        cluster.until(
            lambda: "cordoned" in {it["state"] for it in cluster.nodes().values() if it["address"] == host}
        )
        all_go_on()
        ray.start_worker(0)
        cluster.until(lambda: set(cluster.states().values()) == {"linked"})
        all_go_on()

        ray.kill_gcs()
        all_go_on()
        ray.stop()
        all_go_on()
        ray.start()
        cluster.until(
            lambda: "connected with Ray" in cluster.log("head").rpartition("Ray cannot be asked")[2]
        )
        all_go_on()

        # And what needs Ray goes on: more instances, on what is reserved for them.
        shell.ok("scale", "reserved", "4")
        cluster.until(lambda: len(cluster.placed("reserved")) == 4)
        assert {position: cluster.pids("reserved")[position] for position in (0, 1)} == pids["reserved"]
        shell.ok("scale", "reserved", "2")
        cluster.until(lambda: cluster.pids("reserved") == pids["reserved"])  # the others have ended
        all_go_on()
