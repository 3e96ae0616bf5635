"""Fronts before a whole manager: real processes, durable sessions, instances that are killed."""

from __future__ import annotations

import os
import signal
import time
from functools import partial
from typing import Any, cast

import pytest
import trio
from openai import APIError, OpenAI

from agentmgr import AgentManager
from agentmgr.models import ServiceConfig
from agentmgr.models.host_config import OnCrash
from tests.fronts.agui import Page, read, text
from tests.fronts.conftest import Stage, request, split

AGENT = """
import trio

async def agent(message, session):
    if message == "delete":
        yield "gone" if await session.confirm("rm", {}, message="Really?") else "kept"
        return
    session.state["n"] = session.state.get("n", 0) + 1
    for _ in range(5 if message != "long" else 30):
        yield "."
        await trio.sleep(0.05)
    yield f"{session.state['n']} of {len(session.history)}"
"""


class Talk:
    def __init__(self, port: int, key: str | None) -> None:
        self.client = OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="x", max_retries=0, timeout=60)
        self.headers = {"X-Session-Id": key} if key else {}
        self.messages: list[Any] = []

    async def say(self, text: str, *, after_some: Any = None) -> str:
        self.messages.append({"role": "user", "content": text})
        answer = await trio.to_thread.run_sync(partial(self._read, after_some))
        self.messages.append({"role": "assistant", "content": answer})
        return answer

    def _read(self, after_some: Any) -> str:
        answer = ""
        for place, chunk in enumerate(
            self.client.chat.completions.create(
                model="agent", messages=self.messages, stream=True, extra_headers=self.headers
            )
        ):
            answer += chunk.choices[0].delta.content or ""
            if place == 5 and after_some is not None:
                after_some()
        return answer


def kill(manager: AgentManager) -> None:
    for service in manager.list_services():
        for instance in service.instances:
            os.kill(instance.pid, signal.SIGKILL)


async def test_a_conversation_goes_on_whatever_is_killed_or_stopped(tmp_path):
    (tmp_path / "agent.py").write_text(AGENT)
    async with AgentManager(tmp_path / "manager.db") as manager, trio.open_nursery() as nursery:
        config = ServiceConfig(on_crash=OnCrash.RETRY)
        await manager.register_service("agent", str(tmp_path / "agent.py"), config=config, auto_start=True)
        port = await nursery.start(manager.serve_proxy, "127.0.0.1", 0)
        talk = Talk(port, "k")
        assert await talk.say("hi") == ".....1 of 0"
        assert (await talk.say("long", after_some=lambda: kill(manager))).endswith("2 of 2")
        assert await talk.say("hi") == ".....3 of 4"
        await manager.stop_service("agent")
        await manager.start_service("agent")
        assert await talk.say("hi") == ".....4 of 6"
        assert await talk.say("delete") == "Really? [yes/no]"
        other = Talk(await nursery.start(manager.serve_proxy, "127.0.0.1", 0), "k")
        other.messages = talk.messages
        assert await other.say("yes") == "gone"
        alone = Talk(port, None)
        killed = []

        def kill_it() -> None:
            killed.append(time.monotonic())
            kill(manager)

        with pytest.raises(APIError):
            await alone.say("long", after_some=kill_it)
        assert time.monotonic() - killed[0] < 3  # it does not wait for another instance, which knows nothing
        assert await Talk(port, None).say("hi") == ".....1 of 0"
        assert [info.name for info in (await manager.sessions.list()).items] == ["openai:k"]
        nursery.cancel_scope.cancel()


def _stage(port: int) -> Any:
    """A gateway that is not of this test."""
    return Stage(cast(Any, None), port, cast(Any, None))


async def test_a_thread_goes_on_whatever_is_killed_or_stopped(tmp_path):
    (tmp_path / "agent.py").write_text(AGENT)
    async with AgentManager(tmp_path / "manager.db") as manager, trio.open_nursery() as nursery:
        config = ServiceConfig(on_crash=OnCrash.RETRY)
        await manager.register_service("agent", str(tmp_path / "agent.py"), config=config, auto_start=True)
        page = Page(_stage(await nursery.start(manager.serve_proxy, "127.0.0.1", 0)), service="agent")
        assert text(await page.run("hi")) == ".....1 of 0"
        body = page.body("long")
        sent = request("POST", "/agui/agent", body, {"Connection": "close"})
        async with await page.stage.send(sent) as stream:
            got = b""
            while got.count(b"_CONTENT") < 5:
                got += await stream.receive_some()
            kill(manager)
            got += b"".join([chunk async for chunk in stream])
        events = read(split(got)[1])
        assert "agentmgr.turn_restarted" in [event.get("name") for event in events]
        page.take(events)
        assert page.messages[-1]["content"].endswith("2 of 2")
        await manager.stop_service("agent")
        await manager.start_service("agent")
        assert text(await page.run("hi")) == ".....3 of 4"
        await page.run("delete")
        page.stage = _stage(await nursery.start(manager.serve_proxy, "127.0.0.1", 0))
        assert text(await page.resume(True)) == "gone"
        await page.run("delete")
        old = page.interrupts
        kill(manager)
        with trio.fail_after(60):
            while not page.interrupts or page.interrupts == old:  # the turn runs again, and asks again
                page.interrupts = old
                await page.resume(status="cancelled")
        assert text(await page.resume(True)) == "gone"
        assert [info.name for info in (await manager.sessions.list()).items] == ["agui:t1"]
        nursery.cancel_scope.cancel()
