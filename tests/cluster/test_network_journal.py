"""Sessions in a Redis, on nodes of a real cluster: a machine dies under clients that never reconnect."""

from __future__ import annotations

import random
from functools import partial
from random import Random

import trio

from agentmgr.agent.events import expand
from agentmgr.journal.redis_archive import RedisArchive
from agentmgr.journal.redis_connection import RedisAddress, open_redis
from tests.cluster.conftest import LOST_AFTER_S, ACluster, Cluster
from tests.conditions import until
from tests.faults.seamless import AGENT, Chat, Lines, ping_pong
from tests.proxy.conftest import connected
from tests.redis_server import NEEDS_REDIS, RedisServer, running_redis

CLIENTS = 20


@NEEDS_REDIS
def test_a_machine_is_killed_and_redis_restarted_under_clients_and_none_notices(a_cluster: ACluster) -> None:
    """Each gets every event once, in order, as the journal has it, and each message is answered once."""
    with running_redis("--appendonly", "yes") as server:
        words = ("--sessions-url", server.url)
        with a_cluster(3, *words, lost_after_s=LOST_AFTER_S) as cluster:
            (cluster.shell.directory / "agent.py").write_text(AGENT)
            cluster.shell.ok(
                *("register", "svc", "agent.py", "--instances", "3", "--place-on", "zone=in(b,c,d)"),
                *("--on-crash", "retry", "--max-turn-attempts", "100", "--auto-start"),
            )
            assert sorted(cluster.placed("svc").values()) == ["b", "c", "d"]
            assert "remarks" not in cluster.shell.ok("status", "svc"), "nothing is lost with a node"
            trio.run(partial(_converse, cluster, server))
            assert sorted(set(cluster.placed("svc").values())) == ["c", "d"]


async def _converse(cluster: Cluster, server: RedisServer) -> None:
    draw = Random(random.randrange(2**32))
    talkers: list[Chat | Lines] = [(Chat, Chat, Lines)[i % 3](f"c{i}") for i in range(CLIENTS)]
    over = trio.Event()

    async def talk(talker: Chat | Lines) -> None:
        async with connected(f"{cluster.url}/services/svc", greeting=True) as websocket:
            await talker.talk(websocket, over, Random(draw.random()))
            await ping_pong(websocket)

    async def all_answered(more: int) -> None:
        before = [talker.turns for talker in talkers]
        await until(lambda: all(t.turns >= then + more for t, then in zip(talkers, before, strict=True)))

    async with trio.open_nursery() as nursery:
        for talker in talkers:
            nursery.start_soon(talk, talker)
        await all_answered(1)
        await trio.to_thread.run_sync(cluster.kill_machine, "b")
        await all_answered(2)
        server.kill()
        server.start()
        await all_answered(2)
        over.set()

    service_id = await trio.to_thread.run_sync(lambda: cluster.service_id("svc"))
    archive = RedisArchive("redis", lambda: open_redis(RedisAddress.parse(server.url)))
    for talker in talkers:
        if isinstance(talker, Chat):
            kept: list[bytes] = []
            while more := await archive.events(service_id, talker.session_id, len(kept)):
                kept += (
                    expand(it.line, it.seq, session_id=talker.session_id, step_id=it.step_id) for it in more
                )
            talker.check_by(kept)
