"""Autobahn's cases of framing, pings, fragments, UTF-8 and closing: the same verdicts through the gateway,
and through a gateway and the gate of another node.

kosoku runs the Autobahn suite's own case files on a runner of its own, on today's Python and in seconds. All
groups, judged by Autobahn itself, take long and are a command: tests/autobahn/run.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from .gates import Cluster, crossing

kosoku = pytest.importorskip("kosoku", reason="kosoku has no wheel for this kind of machine")

SERVER = Path(__file__).parents[1] / "autobahn" / "compare.py"
CASES = ["1.*", "2.*", "3.*", "4.*", "5.*", "6.*", "7.*", "10.*"]


@pytest.fixture
def server_port() -> Iterator[int]:
    """An echo server of the `websockets` library, in a process of its own."""
    command = [sys.executable, str(SERVER), "--serve", "websockets"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        try:
            yield int(process.stdout.readline())
        finally:
            process.kill()


Verdict = tuple[str, str, int | None]


def verdicts(port: int, cases: list[str]) -> dict[str, Verdict]:
    """By case: on its messages, on its closing, and the close code that came."""

    async def run() -> list[Any]:
        try:
            found: list[Any] = await kosoku.run_fuzzingclient(f"127.0.0.1:{port}", cases, None, concurrency=8)
        except kosoku.FailureError as failure:  # a server may fail a case; here it is about the gateway
            found = failure.results
        return found

    return {
        case.case_id: (case.behavior.value, case.behavior_close.value, case.remote_close_code)
        for case in asyncio.run(run())
    }


async def test_the_verdicts_are_those_straight_to_the_server(lab, server_port: int, tmp_path: Path) -> None:
    backend = lab.backend(server_port)
    async with lab.gateway(backend) as stage, crossing(lab, Cluster(tmp_path), backend) as c:
        ways = {"straight": server_port, "through": stage.port, "across": c.near.port}

        async def judged(cases: list[str]) -> dict[str, dict[str, Verdict]]:
            found = {way: await trio.to_thread.run_sync(verdicts, port, cases) for way, port in ways.items()}
            assert found["straight"].keys() == found["through"].keys() == found["across"].keys()
            return found

        first = await judged(CASES)
        straight = first["straight"]
        assert len(straight) == len(stage.witness.opened) == len(c.near.witness.opened) > 240
        assert sum(verdict[0] == "OK" for verdict in straight.values()) > 200

        # Whether a server still echoes what came before a fault is up to how many bytes it reads at once, so
        # some cases have two right verdicts. They differ where none is seen on both ways.
        seen = {case: {way: {first[way][case]} for way in ways} for case in straight}
        for _ in range(10):
            if not (differing := [case for case in seen if differ(seen[case])]):
                break
            for way, found in (await judged(differing)).items():
                for case, verdict in found.items():
                    seen[case][way].add(verdict)
        assert {case: verdicts for case, verdicts in seen.items() if differ(verdicts)} == {}


def differ(seen: dict[str, set[Verdict]]) -> bool:
    return not all(seen["straight"] & found for found in seen.values())
