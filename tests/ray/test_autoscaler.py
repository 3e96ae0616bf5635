"""Ray's autoscaler adds a machine for a claim that waits, keeps it while anything of ours runs there, and
removes it once it is drained.
"""

from __future__ import annotations

import time

from websockets.sync.client import connect

from tests.cli.conftest import Shell
from tests.cluster.conftest import Cluster
from tests.cluster.test_sessions_by_hand import AGENT, ask, event
from tests.ray.conftest import ARay, Ray

IDLE_S = 5.0  #: after which the autoscaler removes a machine
PATIENCE_S = 120.0


def machines(ray: Ray) -> int:
    return sum("/raylet/raylet " in command for _, command in ray.processes())


def test_a_claim_adds_a_machine_and_a_drain_lets_it_go(a_ray: ARay, shell: Shell) -> None:
    with a_ray(workers=None) as ray:
        worker = {"CPU": 2, "licence": 1, "object_store_memory": 80_000_000}
        ray.start_autoscaling(worker=worker, idle_s=IDLE_S)
        shell.environment |= ray.environment
        cluster = Cluster(shell, "--cluster", "ray", "--ray-address", ray.address)
        try:
            cluster.start_manager()
            (shell.directory / "my_agent.py").write_text(AGENT)
            (head,) = cluster.nodes()
            shell.ok("register", "free", "my_agent.py", "--auto-start")
            assert (cluster.placed("free"), machines(ray)) == ({0: head}, 1)
            shell.ok("register", "bound", "my_agent.py", "--resources", "licence=1")
            shell.ok("start", "bound", "--no-wait")
            cluster.until(lambda: "licence" in str(cluster.instances("bound")[0]["error_message"]))

            # The machine comes, and the instance with it.
            cluster.until(lambda: cluster.placed("bound").keys() == {0}, PATIENCE_S)
            (added,) = cluster.placed("bound").values()
            assert (added != head, machines(ray)) == (True, 2)

            # What reserves nothing keeps it, too: after many times the idle time it is there.
            shell.ok("scale", "free", "2")
            assert set(cluster.placed("free").values()) == {head, added}
            shell.ok("unregister", "bound", "--force")
            until = time.monotonic() + 4 * IDLE_S
            while time.monotonic() < until:
                assert machines(ray) == 2
                time.sleep(0.5)  # between looks
            session_ids = set[str]()
            while len({it.rpartition(".")[2] for it in session_ids}) < 2:  # one on each machine
                with connect(f"{cluster.url}/services/free") as client:
                    assert ask(client, "hello") == "1: hello"
                    client.send('{"event": "user.create_session"}')
                    session_ids.add(str(event(client, "agent.session_created")["session_id"]))

            # Drained it is idle for Ray, and goes; its sessions have moved.
            assert shell.ok("nodes", "drain", added).strip() == f"drained {added}: 1 instance moved"
            cluster.until(lambda: machines(ray) == 1, PATIENCE_S)
            for session_id in session_ids:
                with connect(f"{cluster.url}/services/free?session_id={session_id}") as client:
                    assert ask(client, "there?", session_id=session_id) == "1: there?"
        finally:
            cluster.end()
