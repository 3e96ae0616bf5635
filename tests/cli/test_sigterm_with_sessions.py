"""SIGTERM while clients are connected: 1001 to each, in paced batches, and the process ends within its grace.

Two hundred sessions here; thousands with

    AGENTMGR_TEST_SESSIONS=5000 python -m pytest -n0 tests/cli/test_sigterm_with_sessions.py
"""

from __future__ import annotations

import os
import re
import resource
import selectors
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

SESSIONS = int(os.environ.get("AGENTMGR_TEST_SESSIONS", "200"))
GRACE_S = 60 + SESSIONS / 50
UPGRADE = (
    b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)
GOING_AWAY = re.compile(rb"\x88[\x02-\x7d]\x03\xe9[^\x88]*$")  # a close frame with 1001, and nothing after it


@pytest.fixture
def open_files() -> Iterator[None]:
    """As many as this process may have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def connected(port: int) -> socket.socket:
    client = socket.create_connection(("127.0.0.1", port), timeout=30)
    client.sendall(UPGRADE)
    answer = b""
    while b"\r\n\r\n" not in answer:
        answer += client.recv(4096)
    assert answer.startswith(b"HTTP/1.1 101 ")
    client.setblocking(False)
    return client


def farewells(clients: list[socket.socket]) -> list[tuple[float, bool]]:
    """For each client when its connection ended, and whether it was told 1001 just before; then it leaves."""
    selector = selectors.DefaultSelector()
    received = dict.fromkeys(clients, b"")
    for client in clients:
        selector.register(client, selectors.EVENT_READ)
    ended: list[tuple[float, bool]] = []
    while selector.get_map():
        ready = selector.select(GRACE_S)
        assert ready, f"{len(ended)} of {len(clients)} were told, and then no more"
        for key, _ in ready:
            client = key.fileobj
            assert isinstance(client, socket.socket)
            data = client.recv(65536)
            received[client] += data
            told = GOING_AWAY.search(received[client]) is not None
            if told or not data:
                ended.append((time.monotonic(), told))
                selector.unregister(client)
                client.close()
    return ended


def test_all_are_told_in_batches_and_it_ends_in_time(shell: Any, open_files: None) -> None:
    limits = ("--max-sessions", "0", "--max-open-files", str(2 * SESSIONS + 500))
    shell.ok("register", "echo", "my_agent.py", *limits)
    # A line for each session would fill the pipe that nobody reads here.
    options = ("--host", "127.0.0.1", "--proxy-port", "0", "--log-level", "warning")
    with shell.background("daemon", *options) as daemon, ExitStack() as stack:
        port = int(daemon.until("gateway at").rpartition(":")[2])
        shell.ok("start", "echo")
        clients = []
        for _ in range(SESSIONS):
            clients.append(connected(port))
            stack.callback(clients[-1].close)
        began = time.monotonic()
        daemon.process.terminate()
        ended = farewells(clients)
        assert daemon.process.wait(GRACE_S) == 0
        took = time.monotonic() - began
    assert sum(told for _, told in ended) == SESSIONS
    times = [at for at, _ in ended]
    # One a millisecond on average, in the order of chance; a busy machine only stretches that.
    assert times[-1] - times[0] > SESSIONS * 0.001 / 2
    assert took < GRACE_S
