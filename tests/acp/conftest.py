"""A gateway that can be stopped and started, and an editor: the `acp` package's client, in a thread.

Each message that `agentmgr acp` sends is checked against ACP's schema, as that package has it.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import acp
import pytest
import trio
from acp import schema

from agentmgr.core.routing import Backend, RoutingTable
from agentmgr.journal.sqlite import open_journal
from agentmgr.proxy import Gateway, GatewayLimits
from agentmgr.testing import hosted

RESULTS = {
    "initialize": schema.InitializeResponse,
    "session/new": schema.NewSessionResponse,
    "session/load": schema.LoadSessionResponse,
    "session/resume": schema.ResumeSessionResponse,
    "session/close": schema.CloseSessionResponse,
    "session/prompt": schema.PromptResponse,
}
PARAMS = {
    "session/update": schema.SessionNotification,
    "session/request_permission": schema.RequestPermissionRequest,
}
TIMEOUT_S = 60


class Checked:
    """What an agent sends, each message valid, and each request answered once."""

    def __init__(self) -> None:
        self._methods: dict[Any, str] = {}
        self.wrong: list[str] = []

    def sent(self, message: dict[str, Any]) -> None:
        if "method" in message and "id" in message:
            self._methods[message["id"]] = message["method"]

    def received(self, message: dict[str, Any]) -> None:
        try:
            self._check(message)
        except Exception as error:
            self.wrong.append(f"{message}: {error!r}")

    def _check(self, message: dict[str, Any]) -> None:
        assert message["jsonrpc"] == "2.0"
        if "method" in message:
            self._is_valid(PARAMS[message["method"]], message["params"])
            return
        method = self._methods.pop(message["id"])
        if "error" in message:
            self._is_valid(schema.Error, message["error"])
        else:
            self._is_valid(RESULTS[method], message["result"])

    @staticmethod
    def _is_valid(model: Any, value: Any) -> None:
        read = model.model_validate(value)  # which forgives much: what it read has to be what was there
        assert read.model_dump(mode="json", by_alias=True, exclude_unset=True) == value

    def __call__(self, event: Any) -> None:
        (self.sent if event.direction.value == "outgoing" else self.received)(event.message)


class Editor(acp.Client):
    """What its user sees, and answers."""

    def __init__(self) -> None:
        self.updates: list[Any] = []
        self.questions: list[Any] = []
        self.answer: Callable[[], Awaitable[str | None]] | str | None = "allow"  #: None: it was cancelled
        self.came = asyncio.Event()
        self.agent: Any = None
        self.process: Any = None

    async def session_update(self, session_id: str, update: Any, **_: Any) -> None:
        self.updates.append(update)
        self._news()

    async def request_permission(self, session_id: str, tool_call: Any, options: Any, **_: Any) -> Any:
        self.questions.append(tool_call)
        self._news()
        chosen = await self.answer() if callable(self.answer) else self.answer
        if chosen is None:
            return schema.RequestPermissionResponse(outcome=schema.DeniedOutcome(outcome="cancelled"))
        outcome = schema.AllowedOutcome(outcome="selected", option_id=chosen)
        return schema.RequestPermissionResponse(outcome=outcome)

    def _news(self) -> None:
        self.came.set()
        self.came = asyncio.Event()

    async def until(self, so: Callable[[], bool]) -> None:
        while not so():
            await self.came.wait()

    async def new(self) -> str:
        return str((await self.agent.new_session(cwd="/", mcp_servers=[])).session_id)

    async def say(self, session_id: str, text: str, *more: Any) -> str:
        prompt = [acp.text_block(text), *more]
        return str((await self.agent.prompt(session_id=session_id, prompt=prompt)).stop_reason)

    def text(self, kind: str = "agent_message_chunk") -> str:
        return "".join(it.content.text for it in self.updates if it.session_update == kind)

    def story(self) -> list[str]:
        """What came, in a few words each."""
        said: list[str] = []
        kinds = {"agent_message_chunk": "says", "agent_thought_chunk": "thinks", "user_message_chunk": "user"}
        for it in self.updates:
            if it.session_update not in kinds:
                said.append(f"{it.session_update} {it.title or ''} {it.status}".replace("  ", " "))
            elif said and said[-1].startswith(f"{kinds[it.session_update]} "):
                said[-1] += it.content.text
            else:
                said.append(f"{kinds[it.session_update]} {it.content.text}")
        return said


async def edit(scenario: Callable[[Editor], Awaitable[Any]], *words: str) -> Any:
    """Runs it with an editor that has started `agentmgr acp WORDS`, and returns what it returns."""

    async def main() -> Any:
        editor, checked = Editor(), Checked()
        command = (sys.executable, "-m", "agentmgr", "acp", *words)
        async with acp.spawn_agent_process(
            editor, *command, observers=[checked], use_unstable_protocol=True
        ) as (agent, process):
            editor.agent, editor.process = agent, process
            await agent.initialize(protocol_version=acp.PROTOCOL_VERSION)
            done = await asyncio.wait_for(scenario(editor), TIMEOUT_S)
        assert checked.wrong == []
        return done

    return await trio.to_thread.run_sync(lambda: asyncio.run(main()))


class Stage:
    """A gateway before hosted agents."""

    def __init__(self, nursery: trio.Nursery, make: Callable[[], Gateway]) -> None:
        self.gateway: Gateway
        self.port = 0
        self._nursery, self._make = nursery, make
        self._scope = trio.CancelScope()
        self._down = trio.Event()

    @property
    def words(self) -> tuple[str, str]:
        return "--gateway", f"ws://127.0.0.1:{self.port}"

    async def start(self) -> None:
        (listener,) = await trio.open_tcp_listeners(self.port, host="127.0.0.1")
        self.port = listener.socket.getsockname()[1]
        self.gateway, self._scope, self._down = self._make(), trio.CancelScope(), trio.Event()
        await self._nursery.start(self._serve, listener)

    async def _serve(self, listener: trio.SocketListener, task_status: trio.TaskStatus[None]) -> None:
        with self._scope:
            async with listener:
                await self.gateway.serve([listener], task_status=task_status)
        self._down.set()

    async def stop(self) -> None:
        self._scope.cancel()
        await self._down.wait()

    async def restart(self) -> None:
        await self.stop()
        await self.start()


@pytest.fixture(autouse=True)
def _commands_fork(commands_fork: None) -> None:
    """`agentmgr acp`, and managers."""


@pytest.fixture
def stage_of(tmp_path: Path) -> Callable[..., Any]:
    @asynccontextmanager
    async def open_stage(
        agent: Any, *, durable: bool = True, facts: Any = None, table: Any = None, **options: Any
    ) -> AsyncIterator[Stage]:
        """A service `agent`; `options`: of the gateway."""
        async with AsyncExitStack() as stack:
            host: dict[str, Any] = {"instance_id": "ins_0000000000000001"}
            if durable:
                journal = open_journal(tmp_path / "agent.db", host["instance_id"])
                host["journal"] = await stack.enter_async_context(journal)
            url = await stack.enter_async_context(hosted(agent, **host))
            address, port = url.removeprefix("ws://").strip("/").rsplit(":", 1)
            backend = Backend.at(address, int(port), service="agent", **(facts or {}))
            known = frozenset({"agent"})
            routing = RoutingTable((backend,), **{"service_names": known, **(table or {})})
            limits = GatewayLimits(close_timeout_s=0.5, queue_timeout_s=1)
            nursery = await stack.enter_async_context(trio.open_nursery())
            stage = Stage(nursery, partial(Gateway, routing, limits=limits, **options))
            await stage.start()
            yield stage
            nursery.cancel_scope.cancel()

    return open_stage
