"""Thousands of forks of one fork server: memory, descriptors and children are where they were."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from agentmgr.supervisor import procfs
from agentmgr.supervisor.accounts import Identity
from agentmgr.supervisor.fork_server import ForkServer


@asynccontextmanager
async def fork_server(python: str | None = None) -> AsyncIterator[ForkServer]:
    """One by itself, that ends with the block."""
    server = ForkServer.spawned(python, {}, Identity())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.run)
        yield server
        server.close()


async def fork_many(server: ForkServer, count: int) -> None:
    """Forks and reaps so many, after some that make what is made once and kept."""
    await _fork(server, 20)
    before = _footprint(server)
    await _fork(server, count)
    after = _footprint(server)
    assert after.pop("memory") <= before.pop("memory") + 2**18
    assert after == before


async def _fork(server: ForkServer, count: int) -> None:
    for _ in range(count):
        fork = await server.fork()
        assert fork is not None, server.problem
        fork.abandon()


def _footprint(server: ForkServer) -> dict[str, object]:
    stats = filter(None, map(procfs.stat, procfs.pids()))
    return {
        "descriptors": os.listdir(f"/proc/{server.pid}/fd"),
        "memory": procfs.resident_bytes(server.pid),
        "our descriptors": len(os.listdir("/proc/self/fd")),
        "children": {stat.pid for stat in stats if stat.parent == os.getpid()},
    }
