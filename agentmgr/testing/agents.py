"""For testing agents: a host in the test's own process, and a client that speaks bare events.

async with hosted(my_agent) as url, bare_client(url) as client:
    await client.say("user.message", content="hello")
    assert (await client.until("agent.final_answer"))["content"] == "…"
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import trio
from attrs import evolve
from trio_websocket import ConnectionClosed, WebSocketConnection

from .. import protocol
from ..agent.adapt import HostedAgent, adapt
from ..agent.door import Door
from ..agent.limits import HOST_BYTES, SessionLimits
from ..agent.runtime import open_runtime
from ..agent.server import AgentServer
from ..agent.session_registry import SessionRegistry
from ..client.transport import with_connection
from ..journal.journal import SessionJournal
from ..models import Runtime
from ..websocket.sockets import Dial
from .memory_network import MemoryListener

PATIENCE_S = 10.0
"""What hangs fails, at the place where it hangs."""


class Hosted(str):
    """The URL of a hosted agent, with what is behind it."""

    sessions: SessionRegistry
    server: AgentServer


class BelievingDoor(Door):
    """Takes every connection for the gateway's, so that a test says for itself who its client is."""

    def admit(self, request: object, sock: object, subject: str) -> bool:
        return True


@asynccontextmanager
async def hosted(
    agent: Any,
    *,
    limits: SessionLimits | None = None,
    max_sessions: int | None = None,
    max_message_bytes: int | None = None,
    token: str = "",
    runtime: Runtime = Runtime.TRIO,
    listener: MemoryListener | None = None,
    door: Door | None = None,
    make: Callable[[], Any] | None = None,
    host_bytes: int = HOST_BYTES,
    journal: SessionJournal | None = None,
    instance_id: str = "",
) -> AsyncIterator[Hosted]:
    """Serves what a factory returned, on a free port of loopback or on `listener`; yields its URL.

    `token` is the secret that its health checks prove to know. `runtime` has no `auto` here: say which.
    `make` makes another one, for agents of which each session has its own, as `create_agent` does.
    `host_bytes` is what it keeps for all its clients at most.
    `journal` keeps its sessions; without one they end with it.
    `door` says who may connect; by default everyone, and as if through a gateway.
    """
    async with _background() as nursery:
        made = agent
        if not isinstance(agent, HostedAgent):
            made = adapt(agent, make, runtime=await open_runtime(runtime, nursery))
        limits = limits or SessionLimits()
        if max_sessions is not None:
            limits = evolve(limits, max_conversations=max_sessions)
        if max_message_bytes is not None:
            limits = evolve(limits, max_message_bytes=max_message_bytes)
        sessions = SessionRegistry(
            made, limits, host_bytes=host_bytes, journal=journal, instance_id=instance_id
        )
        server = AgentServer(made, sessions, token=token, door=door or BelievingDoor())
        await nursery.start(sessions.run)
        if listener is not None:
            await nursery.start(server.serve, listener)
            url = Hosted(listener.url)
        else:
            [tcp_listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
            await nursery.start(server.serve, tcp_listener)
            url = Hosted(f"ws://127.0.0.1:{tcp_listener.socket.getsockname()[1]}")
        url.sessions, url.server = sessions, server
        yield url


@asynccontextmanager
async def _background() -> AsyncIterator[trio.Nursery]:
    """A nursery that ends with the block, whose own error leaves as it is, and in no group."""
    failure: Exception | None = None
    async with trio.open_nursery() as nursery:
        try:
            yield nursery
        except Exception as error:
            failure = error
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure


class BareClient:
    """One connection; what was received stays in `events`."""

    def __init__(self, websocket: WebSocketConnection) -> None:
        self.websocket = websocket
        self.events: list[dict[str, Any]] = []
        self.session_id: str | None = None

    async def say(self, event: str, **fields: Any) -> None:
        """Sends one event."""
        await self.websocket.send_message(json.dumps({"event": event, **fields}))

    async def receive(self) -> dict[str, Any]:
        """The next event. Raises `trio.EndOfChannel` at the connection's end, and `trio.TooSlowError`."""
        try:
            with trio.fail_after(PATIENCE_S):
                event: dict[str, Any] = json.loads(await self.websocket.get_message())
        except ConnectionClosed:
            raise trio.EndOfChannel from None
        self.events.append(event)
        if event["event"] == protocol.SESSION_CREATED:
            self.session_id = event["session_id"]
        return event

    async def until(self, *names: str) -> dict[str, Any]:
        """The next event of one of these names; those before it are in `events`."""
        while (event := await self.receive())["event"] not in names:
            pass
        return event

    async def ask(self, content: Any, **fields: Any) -> dict[str, Any]:
        """Sends a message and returns the event that ends its turn."""
        await self.say(protocol.MESSAGE, content=content, **fields)
        return await self.until(*protocol.TURN_ENDS)

    async def open(self) -> str:
        """Begins a session and returns its id."""
        await self.say(protocol.CREATE_SESSION)
        return str((await self.until(protocol.SESSION_CREATED))["session_id"])


@asynccontextmanager
async def bare_client(
    url: str, headers: Mapping[str, str] | None = None, *, dial: Dial = trio.open_tcp_stream
) -> AsyncIterator[BareClient]:
    """A connection to `url`; leaving the block cuts it as a broken network would."""
    arrived = trio.Event()
    client: list[BareClient] = []

    async def hold(websocket: WebSocketConnection) -> None:
        client.append(BareClient(websocket))
        arrived.set()
        await trio.sleep_forever()

    async with _background() as nursery:
        nursery.start_soon(with_connection, url, list((headers or {}).items()), hold, dial)
        await arrived.wait()
        yield client[0]
