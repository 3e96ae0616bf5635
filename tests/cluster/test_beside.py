"""What an agent needs of its node, as an operator types it: its files, its Python, its log, what doctor says.

Real daemons; one cluster serves all of it, as it takes seconds to make.
"""

import json
import os

from tests.cluster.conftest import ACluster, Cluster

AGENT = """
import os
import words
print(f"{words.WORD} in {os.getcwd()}", flush=True)
def create_agent():
    async def answer(message):
        return words.WORD
    return answer
"""


def bundles(cluster: Cluster, name: str) -> list[str]:
    return [each.name for each in (cluster.directory(name) / "agent_node.d/bundles").iterdir()]


def test_files_python_logs_and_doctor(a_cluster: ACluster) -> None:
    with a_cluster(nodes=2) as cluster:
        shell, here = cluster.shell, cluster.shell.directory
        project = here / "project"
        (project / "lib").mkdir(parents=True)
        (project / "agent.py").write_text(AGENT)
        (project / "words.py").write_text("WORD = 'first'\n")
        (project / "data").write_bytes(os.urandom(2_000_000))
        on_b = ("--place-on", "node=b")
        shell.ok("register", "one", str(project / "agent.py"), "--cwd", str(project), *on_b)
        shell.ok("register", "two", str(project / "agent.py"), "--instances", "2", *on_b)

        # Three instances of two services: one bundle, sent once, and each runs in it.
        shell.ok("start", "one", "two")
        (digest,) = bundles(cluster, "b")
        assert cluster.log("head").count("to node b in") == 1
        assert not (cluster.directory("c") / "agent_node.d/bundles").exists()
        root = cluster.directory("b") / "agent_node.d/bundles" / digest
        assert (root / "words.py").read_text() == "WORD = 'first'\n"
        assert shell.ok("logs", "one", "--grep", "first") == f"first in {root}\n"
        assert sorted(shell.ok("logs", "two", "--grep", "first").splitlines()) == [
            f"[0] first in {root}",
            f"[1] first in {root}",
        ]

        # What is saved runs after a restart, and is another bundle; `apply` and `status` see what runs.
        (project / "words.py").write_text("WORD = 'second'\n")
        shell.ok("restart", "one")
        assert f"second in {root.parent}" in shell.ok("logs", "one")
        assert len(bundles(cluster, "b")) == 2

        # A log is there when its service has stopped, its manager is another one, and under a new name.
        shell.ok("stop", "one")
        cluster.kill_manager()
        cluster.start_manager()
        cluster.until(lambda: cluster.states()["b"] == "linked")
        assert "second in" in shell.ok("logs", "one")
        shell.ok("change", "one", "--rename", "renamed")
        assert "second in" in shell.ok("logs", "renamed")

        # What is lacking there is said with the node's name, and what to do.
        shell.ok("register", "lacks", str(project / "agent.py"), "--python", "/not/there/python", *on_b)
        said = shell.fails("start", "lacks")
        assert "on node b: /not/there/python is not there, and packages are not sent along" in said
        (project / "lib/out").symlink_to("/etc/hosts")
        shell.ok("register", "leads-out", str(project / "agent.py"), *on_b)
        assert "leads out of the directory, to /etc/hosts" in shell.fails("start", "leads-out")
        (project / "lib/out").unlink()

        # Figures and findings of nodes.
        cluster.until(lambda: (cluster.nodes()["b"]["memory_bytes"] or 0) > 2**20)
        found = json.loads(shell("doctor", "--format", "json").stdout)
        of_b = [finding for finding in found if finding["what"] == "node b"]
        assert of_b[0]["result"] == "ok"
        assert [it["found"] for it in of_b[1:]] == ["/not/there/python is not found"]

        # A node that is silent: its log cannot be read, and that is said in its place.
        cluster.kill_node("b")
        cluster.until(lambda: cluster.states()["b"] != "linked")
        assert "agentmgr: the log is on node b, which cannot be asked now" in shell.ok("logs", "two")
        cluster.start_node("b")
        cluster.until(lambda: cluster.states()["b"] == "linked")
        assert "first in" in shell.ok("logs", "two")
