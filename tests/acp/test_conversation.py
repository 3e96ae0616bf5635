"""A session of the editor whose connection to the agent comes and goes, in one process."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
import trio
import trio.testing
from trio_websocket import open_websocket_url

from agentmgr.acp.agent import EditorAgent
from agentmgr.acp.peer import Peer
from agentmgr.client.session import open_session
from agentmgr.journal.sqlite import open_journal
from agentmgr.testing import hosted


async def agent(message, session):
    if message == "rm":
        yield "gone" if await session.confirm("rm", {}, message="Really?") else "kept"
    elif message == "hang":
        try:
            yield "I hang"
            await trio.sleep_forever()
        finally:
            with trio.move_on_after(0.3, shield=True):
                await trio.sleep_forever()
    else:
        yield f"you said {message}"


class Editor:
    """Writes lines, and has the answers and all that was said besides."""

    def __init__(self) -> None:
        self._lines, self._read = trio.open_memory_channel[bytes](100)
        self._rest = b""
        self.answers: dict[Any, dict[str, Any]] = {}
        self.said: list[dict[str, Any]] = []
        self._news = trio.Event()
        self._count = 0

    async def receive(self) -> bytes:
        try:
            return await self._read.receive()
        except trio.EndOfChannel:
            return b""

    async def write(self, data: bytes) -> None:
        await trio.lowlevel.checkpoint()
        *lines, self._rest = (self._rest + data).split(b"\n")
        for message in map(json.loads, lines):
            if "method" in message:
                self.said.append(message)
            else:
                self.answers[message["id"]] = message
        self._news.set()
        self._news = trio.Event()

    def send(self, method: str, **params: Any) -> int:
        self._count += 1
        self._lines.send_nowait(
            json.dumps({"id": self._count, "method": method, "params": params}).encode() + b"\n"
        )
        return self._count

    def tell(self, fields: dict[str, Any]) -> None:
        self._lines.send_nowait(json.dumps(fields).encode() + b"\n")

    async def until(self, so: Any) -> None:
        with trio.fail_after(30):
            while not so():
                await self._news.wait()

    async def answer(self, id: int) -> Any:
        await self.until(lambda: id in self.answers)
        answer = self.answers[id]
        return answer["error"]["code"] if "error" in answer else answer["result"]

    async def ask(self, method: str, **params: Any) -> Any:
        return await self.answer(self.send(method, **params))

    async def say(self, session: str, text: str) -> Any:
        return await self.answer(self.prompt(session, text))

    def prompt(self, session: str, text: str) -> int:
        return self.send("session/prompt", sessionId=session, prompt=[{"type": "text", "text": text}])

    @property
    def text(self) -> str:
        updates = [it["params"]["update"] for it in self.said if it["method"] == "session/update"]
        return "".join(it["content"]["text"] for it in updates if "chunk" in it["sessionUpdate"])

    def questions(self) -> list[dict[str, Any]]:
        return [it for it in self.said if it["method"] == "session/request_permission"]

    def close(self) -> None:
        self._lines.close()


class Way:
    """To the agent; while it is shut, no connection goes through."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._open: set[trio.SocketStream] = set()
        self.is_shut = False

    async def dial(self, host: Any, port: int) -> trio.SocketStream:
        if self.is_shut:
            raise OSError("shut")
        stream = await trio.open_tcp_stream(host, port)
        self._open.add(stream)
        return stream

    async def shut(self) -> None:
        self.is_shut = True
        for stream in self._open:
            await trio.aclose_forcefully(stream)


@pytest.fixture
def editor_of(tmp_path):
    @asynccontextmanager
    async def open_editor(agent: Any, **options: Any):
        instance = "ins_0000000000000001"
        async with open_journal(tmp_path / "agent.db", instance) as journal:
            async with hosted(agent, journal=journal, instance_id=instance, **options) as url:
                editor, way, logged = Editor(), Way(url), []
                peer = Peer(editor.receive, editor.write, logged.append)
                begin = partial(open_session, url, dial=way.dial, reconnect_for_s=0.2)
                async with trio.open_nursery() as nursery:
                    served = EditorAgent("agent", begin, peer)
                    nursery.start_soon(peer.run, served.handler_of, served.leave)
                    yield editor, way
                    editor.close()
        assert not [line for line in logged if "internal error" in line]

    return open_editor


async def test_what_was_given_up_goes_on_with_the_next_prompt(editor_of):
    async with editor_of(agent) as (editor, way):
        session = (await editor.ask("session/new", cwd="/"))["sessionId"]
        assert await editor.say(session, "hi") == {"stopReason": "end_turn"}
        lost = editor.prompt(session, "hang")
        await editor.until(lambda: editor.text.endswith("I hang"))
        await way.shut()
        assert await editor.answer(lost) == -32603
        assert await editor.say(session, "more") == -32603
        way.is_shut = False
        after = editor.prompt(session, "now")
        editor.tell({"method": "session/cancel", "params": {"sessionId": "another"}})
        await trio.testing.wait_all_tasks_blocked(0.1)
        assert after not in editor.answers  # behind the turn that still hangs
        editor.tell({"method": "session/cancel", "params": {"sessionId": session}})
        assert await editor.answer(after) == {"stopReason": "cancelled"}


async def test_a_question_is_asked_again_on_the_next_connection(editor_of):
    async with editor_of(agent) as (editor, way):
        session = (await editor.ask("session/new", cwd="/"))["sessionId"]
        lost = editor.prompt(session, "rm")
        await editor.until(lambda: len(editor.questions()) == 1)
        await way.shut()
        assert await editor.answer(lost) == -32603
        way.is_shut = False
        after = editor.prompt(session, "now")
        await editor.until(lambda: len(editor.questions()) == 2)
        first, second = editor.questions()
        assert first["params"] == second["params"]
        for asked in (first, second, second):  # the first is not waited for any more
            chosen = {"outcome": "selected", "optionId": "allow" if asked is second else "reject"}
            editor.tell({"id": asked["id"], "result": {"outcome": chosen}})
        assert await editor.answer(after) == {"stopReason": "end_turn"}
        assert editor.text == "goneyou said now"


@pytest.mark.parametrize(
    "answer",
    [
        {"error": {"code": -32601, "message": "no"}},
        {"error": 5},
        {"result": None},
        {"result": {"outcome": 5}},
        {"result": {"outcome": {"outcome": "selected"}}},
        {"result": {"outcome": {"outcome": "selected", "optionId": ["allow"]}}},
    ],
)
async def test_only_a_yes_is_one(editor_of, answer):
    async with editor_of(agent) as (editor, _):
        session = (await editor.ask("session/new", cwd="/"))["sessionId"]
        prompt = editor.prompt(session, "rm")
        await editor.until(lambda: len(editor.questions()) == 1)
        editor.tell({"id": editor.questions()[0]["id"], **answer})
        assert await editor.answer(prompt) == {"stopReason": "end_turn"}
        assert editor.text == "kept"


async def test_prompts_that_wait_are_cancelled_with_the_one_that_is_slow_to_stop(editor_of):
    async with editor_of(agent) as (editor, _):
        session = (await editor.ask("session/new", cwd="/"))["sessionId"]
        prompts = [editor.prompt(session, "hang") for _ in range(3)]
        await editor.until(lambda: editor.text == "I hang")
        editor.tell({"method": "session/cancel", "params": {"sessionId": session}})
        for prompt in prompts:
            assert await editor.answer(prompt) == {"stopReason": "cancelled"}
        assert await editor.say(session, "hi") == {"stopReason": "end_turn"}


async def test_a_question_that_was_cancelled_cancels_no_later_prompt(editor_of):
    async with editor_of(agent) as (editor, _):
        session = (await editor.ask("session/new", cwd="/"))["sessionId"]
        prompt = editor.prompt(session, "rm")
        await editor.until(lambda: len(editor.questions()) == 1)
        after = editor.prompt(session, "hi")
        editor.tell({"id": editor.questions()[0]["id"], "result": {"outcome": {"outcome": "cancelled"}}})
        assert await editor.answer(prompt) == {"stopReason": "cancelled"}
        assert await editor.answer(after) == {"stopReason": "end_turn"}


async def test_messages_that_the_agent_does_not_take(editor_of):
    async with editor_of(agent, max_message_bytes=2000) as (editor, _):
        session = (await editor.ask("session/new", cwd="/"))["sessionId"]
        assert await editor.say(session, "x" * 3000) == -32602
        prompts = [editor.prompt(session, "hang")] + [editor.prompt(session, "hi") for _ in range(20)]
        assert await editor.answer(prompts[-1]) == -32603
        assert editor.answers[prompts[-1]]["error"]["data"] == {"code": "queue_full"}
        editor.tell({"method": "session/cancel", "params": {"sessionId": session}})
        for prompt in prompts:
            await editor.answer(prompt)


async def test_a_session_that_another_client_ends(editor_of):
    async with editor_of(agent) as (editor, way):
        session = (await editor.ask("session/new", cwd="/"))["sessionId"]
        prompt = editor.prompt(session, "hang")
        await editor.until(lambda: editor.text == "I hang")
        async with open_websocket_url(way.url, extra_headers=[("X-Session-Id", session)]) as other:
            await other.send_message(json.dumps({"event": "user.end_session", "session_id": session}))
            # its turn is interrupted first, which says `cancelled`
            assert await editor.answer(prompt) == {"stopReason": "cancelled"}
            for _ in range(2):
                assert await editor.say(session, "hi") == -32002
        assert await editor.ask("session/load", cwd="/", sessionId=session) == -32002
