"""`examples/cluster/cluster.py --ray`, as its docstring says to run it."""

import json
import re
import sys

import trio

from tests.conditions import until
from tests.examples.test_manager_examples import EXAMPLES, ask, run, running
from tests.ports import own_port
from tests.processes import end_all_in, working_in


def test_services_and_gpus_on_three_machines(tmp_path):
    ports = [f"--{name}={own_port()}" for name in ("port", "cluster-port", "ray-port")]
    example = (sys.executable, EXAMPLES / "cluster/cluster.py", "--ray", *ports)
    there = tmp_path / "ray-demo"
    try:
        with running(tmp_path, *example, pattern=r"clients connect to (ws://\S+)/services") as url:
            found = re.compile(r"answered in (.+?)(?:/bundles/\w+)?, GPUs: (.*)")
            everywhere = {found.search(ask(f"{url}/services/everywhere")).groups() for _ in range(3)}
            assert len(everywhere) == 3
            assert {gpus for _, gpus in everywhere} == {"none"}
            models = {found.search(ask(f"{url}/services/model")).groups() for _ in range(2)}
            assert len(models) == 2  # of one node, which has the GPUs
            assert {gpus for _, gpus in models} < {"0", "1", "2"}
            run(there, "agentmgr", "scale", "model", "4", "--no-wait")
            assert (
                json.loads(run(there, "agentmgr", "status", "model", "--format", "json"))["status"]
                == "running"
            )
        trio.run(until, lambda: working_in(tmp_path) == [])
    finally:
        end_all_in(tmp_path)
