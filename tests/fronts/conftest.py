"""A gateway with fronts before hosted agents, in the test's own process, and clients of it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
import trio

from agentmgr.core.routing import Backend, RoutingTable
from agentmgr.fronts import Fronts
from agentmgr.proxy import Gateway, GatewayLimits, Identity
from agentmgr.testing import hosted
from tests.proxy.conftest import lab as lab


class Tokens:
    """Who may come in, and where to."""

    required = True

    async def bearer(self, token):
        known = {"good": Identity("ann"), "one": Identity("bob"), "two": Identity("cy", frozenset({"echo2"}))}
        return known.get(token)

    async def ticket(self, ticket):
        raise AssertionError("a ticket is for a WebSocket")


class Stage:
    def __init__(self, gateway: Gateway, port: int, fronts: Fronts) -> None:
        self.gateway = gateway
        self.fronts = fronts
        self.port = port
        self.url = f"http://127.0.0.1:{port}/v1"

    async def send(self, *data: bytes) -> trio.SocketStream:
        stream = await trio.open_tcp_stream("127.0.0.1", self.port)
        for chunk in data:
            await stream.send_all(chunk)
        return stream

    async def raw(self, *data: bytes) -> bytes:
        """All that comes back, to the end of the connection."""
        async with await self.send(*data) as stream:
            with trio.fail_after(30):
                return b"".join([chunk async for chunk in stream])

    async def ask(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> tuple[int, dict[str, str], Any]:
        """Status, headers and JSON of an answer."""
        answer = await self.raw(request(method, path, body, {"Connection": "close", **(headers or {})}))
        head, rest = split(answer)
        status, *lines = head.decode().split("\r\n")
        fields = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
        if fields.get("transfer-encoding") == "chunked":
            return int(status.split()[1]), fields, rest
        return int(status.split()[1]), fields, json.loads(rest) if rest else None

    async def say(self, text: str = "hi", **more: Any) -> tuple[int, dict[str, str], Any]:
        headers = more.pop("headers", None)
        body = {"model": "echo", "messages": [{"role": "user", "content": text}], **more}
        return await self.ask("POST", "/v1/chat/completions", body, headers)

    async def at_base(self) -> None:
        """Returns once no connection, no seat and no memory is taken."""
        with trio.fail_after(30):
            while self.gateway.connections() or self.gateway.lobby.live or self.held:  # noqa: ASYNC110
                await trio.sleep(0.005)  # not announced

    @property
    def held(self) -> int:
        """The bytes of requests that the gateway counts."""
        return self.fronts.memory.taken if self.fronts.memory else 0


def request(method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> bytes:
    fields = {"Host": "localhost"}
    data = b""
    if body is not None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        fields |= {"Content-Type": "application/json", "Content-Length": str(len(data))}
    lines = "".join(f"{name}: {value}\r\n" for name, value in (fields | (headers or {})).items())
    return f"{method} {path} HTTP/1.1\r\n{lines}\r\n".encode() + data


def split(answer: bytes) -> tuple[bytes, bytes]:
    """Head and body of an answer."""
    head, _, rest = answer.partition(b"\r\n\r\n")
    return head, dechunked(rest) if b"transfer-encoding: chunked" in head.lower() else rest


def dechunked(data: bytes) -> bytes:
    text = b""
    while data:
        size, _, data = data.partition(b"\r\n")
        text, data = text + data[: int(size, 16)], data[int(size, 16) + 2 :]
    return text


async def echo(message, session):
    yield f"you said {message}"


class Teller:
    """An agent that asks, uses tools, keeps state, and remembers which sessions there were."""

    def __init__(self) -> None:
        self.sessions: list[Any] = []
        self.messages: list[Any] = []
        self.turns = 0
        self.go_on = trio.Event()

    async def __call__(self, message, session):
        self.turns += 1
        self.messages.append(message)
        if session not in self.sessions:
            self.sessions.append(session)
        yield "Well. "
        if message.startswith("wait"):
            await self.go_on.wait()
        if "delete" in message:
            await session.emit("agent.tool_call", {"tool": "rm", "args": {"a": 1}}, step_id="call")
            agreed = await session.confirm("rm", {"a": 1}, message="Really?")
            await session.emit("agent.tool_result", {"tool": "rm", "result": bool(agreed)}, step_id="call")
            yield "deleted" if agreed else "kept"
        else:
            yield f"{len(session.history)} before"
        session.state["turns"] = self.turns


@pytest.fixture(autouse=True)
def _fork_servers_fork(fork_servers_fork: None) -> None:
    pass


@pytest.fixture
def teller() -> Teller:
    return Teller()


Open = Callable[..., Any]


@pytest.fixture
def stage_of() -> Open:
    @asynccontextmanager
    async def open_stage(
        *agents: Any, limits: GatewayLimits | None = None, table: Any = None, **options: Any
    ) -> AsyncIterator[Stage]:
        """Services `echo`, `echo2` … or `names`. `options`: of the gateway; `host`: of the agents' hosts."""
        host = options.pop("host", {})
        facts = options.pop("facts", {})
        names = options.pop("names", ())
        async with AsyncExitStack() as stack:
            backends = []
            for place, agent in enumerate(agents or (echo,)):
                url = await stack.enter_async_context(hosted(agent, **host))
                name = names[place] if names else f"echo{place + 1 if place else ''}"
                address, port = url.removeprefix("ws://").strip("/").rsplit(":", 1)
                backends.append(Backend.at(address, int(port), service=name, **facts))
            known = frozenset(backend.service_name for backend in backends)
            fronts = Fronts("openai,agui")
            gateway = Gateway(
                RoutingTable(tuple(backends), service_names=known, **(table or {})),
                limits=limits or GatewayLimits(close_timeout_s=0.5, queue_timeout_s=1),
                fronts=fronts,
                **options,
            )
            listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
            async with listeners[0], trio.open_nursery() as nursery:
                nursery.start_soon(gateway.serve, listeners)
                try:
                    yield Stage(gateway, listeners[0].socket.getsockname()[1], fronts)
                finally:
                    nursery.cancel_scope.cancel()

    return open_stage
