"""P7 and P8 of the figures: how fast a crashed instance is back, and what 300 cost the manager at rest.

    python tests/benchmarks/bench_supervision.py [--kills 12] [--instances 300] [--light] [--seconds 30]

P7 runs the same tiny child under us, with no manager at all, and under supervisord, Circus and PM2 where they
are on the PATH, each in turn. What is timed is what a client sees: from the kill until a WebSocket handshake
succeeds; and, by our own word, until the instance is noticed to be gone, and is routable again.
P8 runs real agent hosts, or with `--light` stand-ins that speak the same protocol and start faster.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

import trio  # noqa: E402

from agentmgr.models import DesiredStatus, Instance, ServiceConfig, ServiceSpec, ServiceStatus  # noqa: E402
from agentmgr.supervisor import Supervisor, listening_sockets, procfs  # noqa: E402
from tests.supervisor.conftest import MemoryRecorder  # noqa: E402

CHILD = ROOT / "tests" / "supervisor" / "child.py"
LOOK_EVERY_S = 0.0005
PAUSE_S = 0.3  #: before each kill


def words(port: int | str) -> list[str]:
    return [sys.executable, "-S", str(CHILD), "--port", str(port)]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def answers(port: int) -> bool:
    with socket.socket() as sock:
        sock.settimeout(5)
        try:
            sock.connect(("127.0.0.1", port))
            key = base64.b64encode(os.urandom(16)).decode()
            sock.sendall(
                f"GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
            )
            return sock.recv(1024).startswith(b"HTTP/1.1 101")
        except OSError:
            return False


def seconds_until_answer(port: int, timeout_s: float = 30) -> float:
    begin = time.monotonic()
    while not answers(port):
        if time.monotonic() - begin > timeout_s:
            raise TimeoutError(f"nobody answers on port {port}")
        time.sleep(LOOK_EVERY_S)
    return time.monotonic() - begin


def pid_on(port: int) -> int:
    inode = listening_sockets.on_port(port)
    assert inode is not None
    pid = listening_sockets.holder(inode)
    assert pid is not None
    return pid


# P7


def bare() -> float:
    """The child, started by nobody: from `Popen` to its first handshake."""
    port = free_port()
    with subprocess.Popen(words(port)) as process:
        taken_s = seconds_until_answer(port)
        process.kill()
    return taken_s


def back(port: int) -> float:
    """From the kill of whoever listens there to the next handshake."""
    os.kill(pid_on(port), signal.SIGKILL)
    return seconds_until_answer(port)


class Notices(MemoryRecorder):
    def __init__(self) -> None:
        super().__init__()
        self.at: dict[ServiceStatus, float] = {}

    def instance_changed(self, instance: Instance) -> None:
        self.at.setdefault(instance.status, time.monotonic())
        super().instance_changed(instance)


async def in_process(kills: int, directory: Path) -> tuple[list[float], list[float], list[float]]:
    """Bare starts, and in turn with them from a crash until it is noticed, and until it is routable."""
    recorder = Notices()
    supervisor = Supervisor(recorder, log_dir=directory)
    config = ServiceConfig(command=words("{port}"), restart_delay=0, stable_after=0)
    started, noticed, routable = [], [], []
    async with trio.open_nursery() as nursery:
        await nursery.start(supervisor.run)
        await supervisor.start(ServiceSpec("bench", config, desired_status=DesiredStatus.RUNNING))
        for _ in range(kills):
            await trio.sleep(PAUSE_S)
            started.append(await trio.to_thread.run_sync(bare))
            await trio.sleep(PAUSE_S)
            (instance,) = supervisor.instances()
            assert instance.pid is not None
            recorder.at.clear()
            begin = time.monotonic()
            os.kill(instance.pid, signal.SIGKILL)
            await recorder.until(lambda: ServiceStatus.RUNNING in recorder.at)
            noticed.append(recorder.at[ServiceStatus.BACKOFF] - begin)
            routable.append(recorder.at[ServiceStatus.RUNNING] - begin)
        await supervisor.shutdown()
    return started, noticed, routable


@contextmanager
def agentmgr(directory: Path, port: int) -> Iterator[None]:
    """With its database, and in a process of its own, like the others."""
    with manager(directory) as process:
        request = {"id": 1, "do": "register", "name": "bench", "command": words("{port}"), "port": port}
        ask(process, {**request, "stable_after": 0, "wait": True})  # no delay, however often
        try:
            yield
        finally:
            ask(process, {"id": 2, "do": "unregister", "name": "bench"})


@contextmanager
def supervisord(directory: Path, port: int) -> Iterator[None]:
    config = directory / "supervisord.conf"
    config.write_text(
        f"[supervisord]\nnodaemon=true\nlogfile={directory}/s.log\npidfile={directory}/s.pid\n"
        f"[program:child]\ncommand={' '.join(words(port))}\nautorestart=true\nstartsecs=0\n"
    )
    with subprocess.Popen(["supervisord", "-c", str(config)], stdout=subprocess.DEVNULL) as process:
        try:
            yield
        finally:
            process.terminate()


@contextmanager
def circus(directory: Path, port: int) -> Iterator[None]:
    config = directory / "circus.ini"
    config.write_text(
        "[circus]\ncheck_delay = 5\nendpoint = tcp://127.0.0.1:{}\npubsub_endpoint = tcp://127.0.0.1:{}\n"
        "[watcher:child]\ncmd = {}\nmax_retry = -1\n".format(free_port(), free_port(), " ".join(words(port)))
    )
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(["circusd", str(config)], **quiet) as process:
        try:
            yield
        finally:
            process.terminate()


@contextmanager
def pm2(directory: Path, port: int) -> Iterator[None]:
    environment = {**os.environ, "PM2_HOME": str(directory / "pm2")}

    def run(*arguments: str) -> None:
        subprocess.run(["pm2", *arguments], env=environment, check=True, stdout=subprocess.DEVNULL)

    python, flag, script, *arguments = words(port)
    run("start", script, "--interpreter", python, "--interpreter-args", flag, "--", *arguments)
    try:
        yield
    finally:
        run("kill")


SYSTEMS: dict[str, tuple[str, Callable[[Path, int], AbstractContextManager[None]]]] = {
    "agentmgr": (sys.executable, agentmgr),
    "supervisord": ("supervisord", supervisord),
    "Circus (check_delay 5)": ("circusd", circus),
    "PM2": ("pm2", pm2),
}


def row(name: str, times: list[float], base: list[float] | None = None) -> None:
    median, least = statistics.median(times), min(times)
    against = ""
    if base is not None:
        ratios = median / statistics.median(base), least / min(base)
        against = "   {:5.2f} × bare, least by least {:.2f}".format(*ratios)
    print(f"  {name:36} {median * 1000:8.1f} ms ({least * 1000:.1f} … {max(times) * 1000:.1f}){against}")


def p7(kills: int) -> None:
    """In turn, not one after the other: the machine is another one from minute to minute."""
    print(f"P7: kill -9 of the child; median of {kills}", flush=True)
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        directory = Path(name)
        started, noticed, routable = trio.run(in_process, kills, directory)
        row("bare start to handshake", started)
        row("agentmgr: noticed", noticed)
        row("agentmgr: routable again", routable, started)
        ports: dict[str, int] = {}
        for title, (program, system) in SYSTEMS.items():
            if shutil.which(program) is None:
                print(f"  {title:36} not installed here")
                continue
            ports[title] = free_port()
            stack.enter_context(system(directory, ports[title]))
            seconds_until_answer(ports[title])
        started, times = [], {title: list[float]() for title in ports}
        for _ in range(kills):
            time.sleep(PAUSE_S)
            started.append(bare())
            for title, port in ports.items():
                time.sleep(PAUSE_S)
                times[title].append(back(port))
        row("bare start to handshake", started)
        for title in ports:
            row(f"{title}: answers again", times[title], started)


@contextmanager
def manager(directory: Path, *options: str) -> Iterator[subprocess.Popen[bytes]]:
    script = ROOT / "tests" / "faults" / "manager_process.py"
    with subprocess.Popen(
        [sys.executable, str(script), str(directory / "m.db"), *options],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    ) as process:
        assert process.stdout is not None
        try:
            process.stdout.readline()
            yield process
        finally:
            process.terminate()


# P8


def p8(instances: int, seconds: float, light: bool) -> None:
    kind = "stand-ins for hosted instances" if light else "hosted instances"
    print(f"P8: {instances} {kind}, health checks every 10 s, over {seconds:g} s")
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        directory = Path(name)
        agent = directory / "agent.py"
        agent.write_text("def create_agent():\n    return lambda message: message\n")
        request = {"id": 1, "do": "register", "name": "bench", "file": str(agent), "instances": instances}
        if light:
            python = directory / "python"
            python.write_text(f'#!/bin/sh\nshift 3\nexec {sys.executable} -S {CHILD} "$@"\n')
            python.chmod(0o755)
            request["python"] = str(python)
        process = stack.enter_context(manager(directory, "--interval", "10"))
        begin = time.monotonic()
        ask(process, {**request, "wait": True})
        print(f"  all ready after {time.monotonic() - begin:.1f} s", flush=True)
        time.sleep(12)  # a round of checks, so that what is made once is made
        before, begin = cpu_s(process.pid), time.monotonic()
        time.sleep(seconds)
        share = (cpu_s(process.pid) - before) / (time.monotonic() - begin)
        stat = procfs.stat(process.pid)
        assert stat is not None
        rss = stat.resident_pages * os.sysconf("SC_PAGE_SIZE") / 2**20
        print(f"  manager: {share * 100:.1f} % of a core, {rss:.0f} MiB resident")
        ask(process, {"id": 2, "do": "unregister", "name": "bench"})


def ask(manager: subprocess.Popen[bytes], request: dict[str, object]) -> dict[str, Any]:
    assert manager.stdin is not None
    assert manager.stdout is not None
    manager.stdin.write(json.dumps(request).encode() + b"\n")
    manager.stdin.flush()
    answer: dict[str, Any] = json.loads(manager.stdout.readline())
    if "error" in answer:
        raise SystemExit(answer["message"])
    return answer


def cpu_s(pid: int) -> float:
    stat = procfs.stat(pid)
    assert stat is not None
    return stat.cpu_ticks / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=12)
    parser.add_argument("--instances", type=int, default=300)
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--light", action="store_true")
    parser.add_argument("--only", choices=["p7", "p8"])
    args = parser.parse_args()
    if args.only != "p8":
        p7(args.kills)
    if args.only != "p7":
        p8(args.instances, args.seconds, args.light)
