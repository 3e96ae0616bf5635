"""How many files the manager may have open, and what is left for its API when clients take all they can."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

AGENT = """
import resource
print("open files:", *resource.getrlimit(resource.RLIMIT_NOFILE), flush=True)

def create_agent():
    async def answer(message):
        return message
    return answer
"""


@contextmanager
def limited(shell: Any, limit: str, *words: str) -> Iterator[subprocess.Popen[str]]:
    """The command in a shell with that `ulimit`."""
    command = ["sh", "-c", f'ulimit {limit}; exec "$@"', "sh", sys.executable, "-m", "agentmgr", *words]
    with subprocess.Popen(
        command, cwd=shell.directory, env=shell.environment, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.terminate()
            process.communicate()


def until(process: subprocess.Popen[str], mark: str) -> str:
    assert process.stdout is not None
    return next(line for line in process.stdout if mark in line)


def test_the_manager_takes_all_it_can_and_its_services_what_is_usual(shell: Any, write: Any) -> None:
    write("telling.py", AGENT)
    with limited(shell, "-Sn 256; ulimit -Hn 3000", "daemon") as daemon:
        until(daemon, "managing")
        shell.ok("register", "telling", "telling.py", "--auto-start")
        limits = json.loads(shell.ok("info", "--format", "json"))["manager"]["limits"]
        assert (limits["open_files"], limits["connections"]) == (3000, (3000 - 375) // 2)
        assert "open files: 256 3000" in shell.ok("logs", "telling")
        assert "at most 3000" in shell.ok("doctor")


def cpu_s(pid: int) -> float:
    with open(f"/proc/{pid}/stat") as file:
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


def health(port: int) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=60) as sock:
        sock.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        return b"".join(iter(lambda: sock.recv(4096), b""))


def test_the_api_answers_while_clients_take_every_place_there_is(shell: Any) -> None:
    ports = ("--host", "127.0.0.1", "--proxy-port", "0", "--api-port", "0")
    with limited(shell, "-n 256", "daemon", *ports) as daemon, ExitStack() as stack:
        proxy = int(until(daemon, "gateway at").rpartition(":")[2])
        api = int(until(daemon, "API at").rpartition(":")[2].partition("/")[0])
        clients = [socket.create_connection(("127.0.0.1", proxy), timeout=60) for _ in range(400)]
        for client in clients:
            stack.callback(client.close)
        # The places are (256 - 128) / 2; whoever comes later is told so at once.
        refused = [client.recv(4096) for client in clients[64:]]
        assert all(answer.startswith(b"HTTP/1.1 503 ") for answer in refused)
        assert b"too_many_connections" in refused[0]
        before, began = cpu_s(daemon.pid), time.monotonic()
        assert b"healthy" in health(api)
        while time.monotonic() < began + 0.5:
            assert b"healthy" in health(api)
            time.sleep(0.1)
        assert cpu_s(daemon.pid) - before < 0.4, "it does not spin"
