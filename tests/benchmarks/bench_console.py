"""What the console costs the manager: one viewer beside running services, and tables of very many.

    python tests/benchmarks/bench_console.py [--running 100] [--registered 10000] [--seconds 30]

The services are programs that sleep. A viewer reads `GET /events?sample=` as the console does: the overview,
a row for each service, and figures of those on its screen.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

import httpx2  # noqa: E402
import trio  # noqa: E402

from agentmgr.api import serve_api  # noqa: E402
from agentmgr.manager import AgentManager  # noqa: E402
from agentmgr.models import ServiceConfig  # noqa: E402
from agentmgr.supervisor import procfs  # noqa: E402

SETTLES_S = 35.0  #: for so long it is looked whether a command opens its port
SLEEPER = ServiceConfig(command=("sleep", "1000000"), ready="started", health="none")


async def manage(path: str, registered: int, running: int) -> None:
    """A manager with such services, as a process of its own; writes its port once all run."""
    async with AgentManager(path) as manager, trio.open_nursery() as nursery:
        for number in range(registered):
            await manager.register_service(f"s{number:05}", config=SLEEPER)
        for number in range(running):
            await manager.start_service(f"s{number:05}")
        await trio.sleep(SETTLES_S if running else 0)
        print(await nursery.start(partial(serve_api, manager, port=0)), flush=True)
        await trio.sleep_forever()


@contextmanager
def managed(registered: int, running: int) -> Iterator[tuple[int, str]]:
    """The pid of such a manager, and the address of its API."""
    with tempfile.TemporaryDirectory() as directory:
        words = [sys.executable, __file__, "--manage", f"{directory}/bench.db"]
        words += ["--registered", str(registered), "--running", str(running)]
        process = subprocess.Popen(words, stdout=subprocess.PIPE)
        try:
            assert process.stdout is not None
            yield process.pid, f"http://localhost:{int(process.stdout.readline())}/api/v1"
        finally:
            process.terminate()
            process.wait()


def cpu_s(pid: int) -> float:
    stat = procfs.stat(pid)
    assert stat is not None
    return stat.cpu_ticks / os.sysconf("SC_CLK_TCK")


def share(pid: int, seconds: float) -> float:
    """CPU time of a process, in percent of a core."""
    before, begin = cpu_s(pid), time.monotonic()
    time.sleep(seconds)
    return (cpu_s(pid) - before) / (time.monotonic() - begin) * 100


async def viewers(pid: int, url: str, words: str, count: int, seconds: float) -> float:
    async with trio.open_nursery() as nursery:

        async def view(*, task_status: trio.TaskStatus[None]) -> None:
            async with (
                httpx2.AsyncClient(timeout=60) as http,
                http.stream("GET", f"{url}/events", params={"sample": words}) as stream,
            ):
                task_status.started()
                async for _ in stream.aiter_bytes():
                    pass

        for _ in range(count):
            await nursery.start(view)
        await trio.sleep(3)  # the first sample is the largest
        found = await trio.to_thread.run_sync(share, pid, seconds)
        nursery.cancel_scope.cancel()
    return found


def beside_running(running: int, seconds: float) -> None:
    print(f"{running} running services, over {seconds:g} s, in percent of a core")
    with managed(running, running) as (pid, url):
        items = httpx2.get(f"{url}/services", params={"limit": 200}).json()["items"]
        ids = ",".join(item["service_id"] for item in items)
        print(f"  no viewer                 {share(pid, seconds):.2f}", flush=True)
        for name, words, count in (
            ("one on the overview", "overview", 1),
            ("one on the table", f"overview,services,{','.join(ids.split(',')[:30])}", 1),
            (f"one on all {len(items)} figures", f"overview,services,{ids}", 1),
            ("three of those", f"overview,services,{ids}", 3),
        ):
            print(f"  {name:25} {trio.run(viewers, pid, url, words, count, seconds):.2f}", flush=True)


def beside_registered(registered: int, seconds: float) -> None:
    print(f"{registered} registered services, none running")
    with managed(registered, 0) as (pid, url):
        with httpx2.Client(timeout=60) as http:
            for query in (
                "", "q=s09", "sort=-name", "sort=-restart_count", "status=stopped", "sort=status&fields=rows"
            ):  # fmt: skip
                before, taken = cpu_s(pid), []
                for _ in range(50):
                    begin = time.perf_counter()
                    assert http.get(f"{url}/services?{query}").status_code == 200
                    taken.append(time.perf_counter() - begin)
                used, least = (cpu_s(pid) - before) / 50 * 1e3, min(taken) * 1e3
                print(
                    f"  GET /services?{query:30} {used:5.1f} ms of CPU, at least {least:.1f} ms", flush=True
                )
        print(f"  no viewer                 {share(pid, seconds):.2f} % of a core")
        words = "overview,services"
        print(f"  one on the table          {trio.run(viewers, pid, url, words, 1, seconds):.2f} % of a core")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--running", type=int, default=100)
    parser.add_argument("--registered", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--manage", metavar="DATABASE", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.manage:
        trio.run(manage, args.manage, args.registered, args.running)
    else:
        beside_running(args.running, args.seconds)
        beside_registered(args.registered, args.seconds)
