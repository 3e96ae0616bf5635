"""The benchmark of a manager with many nodes, in a tiny form: the manager takes what is played for real."""

import re
import sys
from pathlib import Path

import trio

BENCH = Path(__file__).parents[1] / "benchmarks" / "bench_hundred.py"
TINY = "--nodes 3 --instances 4 --services 2 --sessions 6 --seconds 0.5 --minute 1 --players 2"


async def test_clients_come_and_the_manager_comes_back() -> None:
    command = [sys.executable, str(BENCH), *TINY.split(), "--only", "come,kill"]
    with trio.fail_after(120):
        done = await trio.run_process(command, capture_stdout=True)
    found = dict(re.findall(r"\| (.+?) \| (.+) \|", done.stdout.decode()))
    assert "a seat comes after" in found["18 sessions come, 18 a second"], "half of the services have seats"
    assert "12 adopted" in found["the manager is killed and started again"]
