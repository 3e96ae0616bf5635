"""Random schedules of everything that can happen, against the plain facts.

Clients come, talk, close, vanish and give up waiting; instances die and come back; rules and states change;
sessions are cut and instances drained. At every step no instance holds more sessions than it may, and the
counters say what is so. At the end every counter is zero and every descriptor is closed.
"""

from __future__ import annotations

import random
import socket
import struct
from contextlib import suppress
from functools import partial

import pytest
import trio

from agentmgr.core.routing import BackendState, RoutingTable
from agentmgr.errors import ConnectionNotFound
from agentmgr.models import RoutingRule, RoutingStrategy
from agentmgr.proxy import GatewayLimits
from tests.ports import own_port

PATHS = ("/", "/", "/services/a", "/services/b", "/services/nobody")
AFTER_DEATH = (BackendState.COMING, BackendState.DOWN, BackendState.ROUTABLE)
RESET = struct.pack("ii", 1, 0)
STRATEGIES = tuple(RoutingStrategy)
MAX_SESSIONS = 2
LIMITS = GatewayLimits(
    queue_timeout_s=0.2,
    close_timeout_s=0.2,
    handshake_timeout_s=10,
    drain_idle_s=0.0,
    close_pause_s=0.01,
)


class Instance:
    """A server of echoes that can be killed and revived, and knows how many sessions it has."""

    def __init__(self, lab, name: str) -> None:
        self.lab = lab
        self.name = name
        self.state = BackendState.ROUTABLE
        self.live = 0
        self.most = 0
        self.port = own_port()
        self.scope = trio.CancelScope()

    @property
    def backend(self):
        return self.lab.backend(
            self.port, self.name, instance_id=self.name, max_sessions=MAX_SESSIONS, state=self.state
        )

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        with trio.CancelScope() as self.scope:
            (listener,) = await trio.open_tcp_listeners(self.port, host="127.0.0.1")
            await trio.serve_listeners(self.serve, [listener], task_status=task_status)

    async def serve(self, stream: trio.SocketStream) -> None:
        async with stream:
            with suppress(trio.BrokenResourceError, AssertionError, trio.TooSlowError):
                peer = self.lab.Peer(stream)
                await peer.until(b"\r\n\r\n")
                self.live += 1
                self.most = max(self.most, self.live)
                try:
                    await stream.send_all(self.lab.switching())
                    async for data in stream:
                        await stream.send_all(data and self.lab.frame(1, b"?", masked=False))
                finally:
                    self.live -= 1

    def kill(self) -> None:
        self.scope.cancel()


async def client(lab, stage, rng: random.Random) -> None:
    """One of the things that clients do."""
    with trio.move_on_after(2), suppress(trio.BrokenResourceError, AssertionError, OSError):
        stream = await trio.open_tcp_stream("127.0.0.1", stage.port)
        async with stream:
            await stream.send_all(
                lab.upgrade(rng.choice(["/", "/", "/services/a", "/services/b", "/services/nobody"]))
            )
            peer = lab.Peer(stream)
            patience = rng.choice([0.0, 0.02, 1.0, 1.0])
            with trio.move_on_after(patience) as impatient:
                head = await peer.until(b"\r\n\r\n")
            if impatient.cancelled_caught or not head.startswith(b"HTTP/1.1 101 "):
                return
            for _ in range(rng.randrange(4)):
                await stream.send_all(lab.frame(1, b"hello"))
                await peer.exactly(3)
                await trio.sleep(rng.random() * 0.02)
            match rng.randrange(4):
                case 0:
                    await stream.send_all(lab.frame(8, b"\x03\xe8"))
                case 1:
                    stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                case 2:
                    await stream.send_all(lab.frame(1, b"broken off")[:-3])
                case 3:
                    await trio.sleep(rng.random() * 0.1)


@pytest.mark.parametrize("seed", range(6))
async def test_any_schedule_leaves_every_count_exact(lab, seed: int) -> None:
    rng = random.Random(seed)
    instances = [Instance(lab, name) for name in "abc"]
    for instance in instances:
        await lab.nursery.start(instance.run)

    def table() -> RoutingTable:
        rules = []
        if rng.random() < 0.5:
            targets = rng.sample("abc", rng.randrange(1, 3))
            rules.append(RoutingRule("r", target_services=targets, target_strategy=rng.choice(STRATEGIES)))
        listed = [instance.backend for instance in instances if rng.random() < 0.95]
        strategy = rng.choice(STRATEGIES)
        return RoutingTable(tuple(listed), tuple(rules), frozenset("abc"), strategy)

    base = lab.open_descriptors()
    async with lab.gateway(*[instance.backend for instance in instances], limits=LIMITS) as stage:
        gateway = stage.gateway
        async with trio.open_nursery() as nursery:
            for _ in range(200):
                instance = rng.choice(instances)
                match rng.choices(range(7), (60, 30, 3, 6, 4, 4, 1))[0]:
                    case 0:
                        nursery.start_soon(client, lab, stage, rng)
                    case 1:
                        await trio.sleep(rng.random() * 0.02)
                    case 2:
                        instance.kill()
                        await trio.lowlevel.checkpoint()
                        instance.state = rng.choice(AFTER_DEATH)
                    case 3 if instance.scope.cancel_called:
                        await lab.nursery.start(instance.run)
                        instance.state = BackendState.ROUTABLE
                    case 4:
                        gateway.update(table())
                    case 5 if connections := gateway.connections():
                        with suppress(ConnectionNotFound):
                            gateway.disconnect(rng.choice(connections).connection_id, code=4000)
                    case 6:
                        nursery.start_soon(partial(gateway.drain, instance.name, timeout_s=0.05))
                for instance in instances:
                    assert instance.most <= MAX_SESSIONS
                    assert 0 <= gateway.active_connections(instance.name) <= MAX_SESSIONS
                assert len(stage.witness.opened) - len(stage.witness.closed) == len(gateway.connections())
            for instance in instances:
                if instance.scope.cancel_called:
                    await lab.nursery.start(instance.run)
                instance.state = BackendState.ROUTABLE
            gateway.update(RoutingTable(tuple(instance.backend for instance in instances)))

        await lab.eventually(lambda: not gateway.connections())
        await lab.eventually(lambda: not any(instance.live for instance in instances))
        assert [gateway.active_connections(instance.name) for instance in instances] == [0, 0, 0]
        opened = sorted(connection.connection_id for connection in stage.witness.opened)
        assert opened == sorted(end.connection_id for end in stage.witness.closed)
        assert len({end.connection_id for end in stage.witness.closed}) == len(stage.witness.closed) > 0
        assert not gateway._lobby._waiting
        assert not gateway._quotas._open
        assert gateway._connection_limit._taken == 0
        # Each instance has all its seats again.
        for instance in instances:
            for _ in range(MAX_SESSIONS):
                await stage.open(f"/services/{instance.name}")
    await lab.eventually(lambda: lab.open_descriptors() <= base)
