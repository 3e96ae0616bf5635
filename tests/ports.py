"""Ports for tests that close one and listen on it again, or have another process listen on it later."""

from __future__ import annotations

import random
import socket
from contextlib import suppress

# Below what the kernel gives to outgoing connections (ip_local_port_range), and what a manager lends.
_CHOICE = range(10_000, 20_000)

_held: list[socket.socket] = []
_random = random.SystemRandom()


def own_port() -> int:
    """One on which nothing listens, and that no other test of this machine gets while this process lives."""
    while True:
        port = _random.choice(_CHOICE)
        claim = socket.socket(socket.AF_UNIX)
        with suppress(OSError):
            claim.bind(f"\0agentmgr tests: port {port}")
            for host, family in (("127.0.0.1", socket.AF_INET), ("::1", socket.AF_INET6)):
                socket.create_server((host, port), family=family).close()
            _held.append(claim)
            return port
        claim.close()
