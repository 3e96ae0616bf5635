"""A host that drains: turns are finished and their answers arrive, idle connections end at once."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any

import pytest
import trio
from trio_websocket import ConnectionClosed

from agentmgr.agent import drain as drain_module
from agentmgr.agent.door import Door
from agentmgr.core.proof import DRAIN_PATH
from agentmgr.supervisor.host_drain import HostDrain
from agentmgr.supervisor.host_request import HostRequest
from agentmgr.testing.agents import Hosted, bare_client, hosted

TOKEN = "secret"


class Thinker:
    """Answers when it may, and says nothing meanwhile."""

    def __init__(self) -> None:
        self.thinks, self.may_answer = trio.Event(), trio.Event()

    async def on_message(self, session: Any, message: str) -> str:
        self.thinks.set()
        await self.may_answer.wait()
        return f"answer to {message}"


def drain_of(url: str) -> HostDrain:
    return HostDrain(HostRequest("127.0.0.1", int(url.rpartition(":")[2]), TOKEN))


@asynccontextmanager
async def draining(url: str, code: int = 1012) -> AsyncIterator[trio.Event]:
    """A drain that has begun; the event is set when the host says that no conversation is left."""
    over = trio.Event()
    answers: list[bool] = []

    async def run(task_status: trio.TaskStatus[None]) -> None:
        def answered(knows: bool) -> None:
            if not answers:
                task_status.started()
            answers.append(knows)

        await drain_of(url)(code, answered)
        over.set()

    async with trio.open_nursery() as nursery:
        await nursery.start(run)
        assert answers == [True]
        with trio.fail_after(60):
            yield over
            await over.wait()


async def close_of(client: Any) -> int:
    """The code with which the client's connection is closed."""
    with trio.fail_after(60):
        try:
            while True:
                await client.receive()
        except trio.EndOfChannel:
            return int(client.websocket.closed.code)


async def test_a_turn_that_runs_is_finished_and_its_answer_comes_before_the_close() -> None:
    agent = Thinker()
    async with hosted(agent, token=TOKEN) as url, bare_client(url) as busy, bare_client(url) as idle:
        await idle.open()
        await busy.say("user.message", content="q")
        await agent.thinks.wait()
        async with draining(url) as over:
            assert await close_of(idle) == 1012, "it goes at once"
            assert not over.is_set()
            async with bare_client(url) as again:
                await again.say("user.reconnect", session_id=idle.session_id)
                assert (await again.until("system.error"))["content"]["reason"] == "instance_lost"
            agent.may_answer.set()
            assert (await busy.until("agent.final_answer"))["content"] == "answer to q"
            assert await close_of(busy) == 1012


async def test_messages_that_wait_behind_the_turn_are_answered_too() -> None:
    agent = Thinker()
    async with hosted(agent, token=TOKEN) as url, bare_client(url) as client:
        for text in ("one", "two"):
            await client.say("user.message", content=text)
        await agent.thinks.wait()
        async with draining(url, 1001):
            agent.may_answer.set()
            for text in ("one", "two"):
                assert (await client.until("agent.final_answer"))["content"] == f"answer to {text}"
            assert await close_of(client) == 1001


async def test_a_question_that_waits_for_a_person_is_waited_for() -> None:
    async def careful(message: str, session: Any) -> str:
        return str(bool(await session.confirm("rm", {})))

    async with hosted(careful, token=TOKEN) as url, bare_client(url) as client:
        await client.say("user.message", content="q")
        question = await client.until("agent.user_confirm")
        async with draining(url) as over:
            await trio.testing.wait_all_tasks_blocked(0.05)
            assert not over.is_set()
            await client.say("user.response", step_id=question["step_id"], content={"confirmed": True})
            assert (await client.until("agent.final_answer"))["content"] == "True"
            assert await close_of(client) == 1012


async def test_a_turn_whose_client_is_away_is_finished_and_may_be_taken_up_again() -> None:
    agent = Thinker()
    async with hosted(agent, token=TOKEN) as url:
        async with bare_client(url) as client:
            session_id = await client.open()
            await client.say("user.message", content="q")
            await agent.thinks.wait()
        async with draining(url) as over:
            await trio.testing.wait_all_tasks_blocked(0.05)
            assert not over.is_set()
            async with bare_client(url) as again:
                await again.say("user.reconnect", session_id=session_id, last_seq=1)
                await again.until("system.notice")
                agent.may_answer.set()
                assert (await again.until("agent.final_answer"))["content"] == "answer to q"
                assert await close_of(again) == 1012


async def test_a_turn_whose_client_stays_away_is_finished() -> None:
    agent = Thinker()
    async with hosted(agent, token=TOKEN) as url:
        async with bare_client(url) as client:
            await client.say("user.message", content="q")
            await agent.thinks.wait()
        async with draining(url):
            agent.may_answer.set()


async def test_a_message_that_comes_behind_a_reconnect_is_answered() -> None:
    """A client that was closed between two turns sends the next one to the session that it knows."""
    async with hosted(Thinker(), token=TOKEN) as url:
        async with bare_client(url) as client:
            session_id = await client.open()
        agent_answers = url.sessions._agent  # the adapted one; its subject answers at once from here on
        agent_answers._subject.may_answer.set()
        async with draining(url):
            async with bare_client(url) as again:
                await again.say("user.reconnect", session_id=session_id, last_seq=0)
                await again.until("system.notice")
                assert (await again.ask("late"))["content"] == "answer to late"


async def test_a_client_that_waits_for_the_greeting_is_answered() -> None:
    async def echo(message: str) -> str:
        return message

    async with hosted(echo, token=TOKEN) as url, bare_client(url) as client, draining(url):
        await client.until("system.connected")
        await trio.sleep(0.2)  # its round trip
        assert (await client.ask("q"))["content"] == "q"
        assert await close_of(client) == 1012


async def test_a_client_that_never_pauses_is_closed_between_two_turns() -> None:
    async def echo(message: str) -> str:
        return message

    async with hosted(echo, token=TOKEN) as url, bare_client(url) as client, draining(url) as over:
        with trio.move_on_after(30) as patience:
            while client.websocket.closed is None:
                with suppress(trio.EndOfChannel, ConnectionClosed):
                    assert (await client.ask("q"))["content"] == "q"
                await trio.sleep(drain_module.LINGER_S / 4)
        assert not patience.cancelled_caught
        assert client.websocket.closed.code == 1012
        await over.wait()


async def test_what_arrives_in_the_step_that_closes_the_connection_is_not_begun() -> None:
    agent = Thinker()
    async with hosted(agent, token=TOKEN) as url, bare_client(url) as client:
        await client.open()
        [close] = url.server._closers
        link: Any = close.__self__  # type: ignore[attr-defined]
        comes_to_rest = link._has_come_to_rest

        async def with_a_frame_at_the_end() -> bool:
            if at_rest := await comes_to_rest():
                message = json.dumps({"event": "user.message", "content": "q"})
                link._websocket._send_channel.send_nowait(message)
            return bool(at_rest)

        link._has_come_to_rest = with_a_frame_at_the_end
        async with draining(url):
            assert await close_of(client) == 1012
        assert not agent.thinks.is_set()


async def test_what_arrives_while_the_host_ends_is_not_begun() -> None:
    begun, started, may_end = [], trio.Event(), trio.Event()

    async def stubborn(message: str) -> None:
        begun.append(message)
        started.set()
        with trio.CancelScope(shield=True):
            await may_end.wait()

    async with hosted(stubborn) as url, bare_client(url) as client:
        await client.say("user.message", content="one")
        await started.wait()
        url.server.go_away()
        await client.say("user.create_session")
        await client.say("user.message", content="two")
        await trio.testing.wait_all_tasks_blocked(0.05)
        may_end.set()
        await close_of(client)
    assert begun == ["one"]


async def test_a_turn_that_was_cancelled_long_before_its_code_is_done_does_not_hold_the_drain() -> None:
    stopped, go_on = trio.Event(), trio.Event()

    async def slow_to_stop(message: str) -> None:
        try:
            await trio.sleep_forever()
        finally:
            stopped.set()
            with trio.CancelScope(shield=True):
                await go_on.wait()

    async with hosted(slow_to_stop, token=TOKEN) as url, bare_client(url) as client:
        await client.say("user.message", content="q")
        await client.say("user.cancel")
        await client.until("agent.interrupted")
        await stopped.wait()
        async with draining(url):
            await trio.testing.wait_all_tasks_blocked(0.05)
            go_on.set()
            assert await close_of(client) == 1012


async def test_plain_text_is_answered_first_too() -> None:
    agent = Thinker()
    async with hosted(agent, token=TOKEN) as url, bare_client(url) as client:
        await client.websocket.send_message("q")
        await agent.thinks.wait()
        async with draining(url):
            agent.may_answer.set()
            with trio.fail_after(60):
                assert await client.websocket.get_message() == "answer to q"
                with pytest.raises(ConnectionClosed):
                    await client.websocket.get_message()
            assert client.websocket.closed.code == 1012


async def test_who_comes_when_all_gateways_know_begins_no_session(monkeypatch: Any) -> None:
    monkeypatch.setattr(drain_module, "ROUTED_AWAY_S", -1)
    agent = Thinker()
    async with hosted(agent, token=TOKEN) as url, bare_client(url) as busy:
        await busy.say("user.message", content="q")
        await agent.thinks.wait()
        async with draining(url):
            async with bare_client(url) as late:
                await late.say("user.message", content="me too")
                assert (await late.until("system.error"))["content"]["code"] == "draining"
                assert await close_of(late) == 1012
            agent.may_answer.set()


async def test_idle_connections_are_closed_one_after_another(monkeypatch: Any) -> None:
    monkeypatch.setattr(drain_module, "CLOSES_PER_S", 50.0)
    closed: list[float] = []

    async def hold(url: str, task_status: trio.TaskStatus[None]) -> None:
        async with bare_client(url) as client:
            await client.open()
            task_status.started()
            await close_of(client)
            closed.append(trio.current_time())

    async with hosted(Thinker(), token=TOKEN) as url, trio.open_nursery() as nursery:
        for _ in range(20):
            await nursery.start(hold, url)
        async with draining(url):
            pass
    assert max(closed) - min(closed) > 19 * 0.5 / 50 / 2


async def test_what_an_agent_with_serve_does_cannot_be_seen() -> None:
    class Raw:
        async def serve(self, websocket: Any) -> None:
            await websocket.send_message(await websocket.get_message())
            await trio.sleep_forever()

    answers: list[bool] = []
    async with hosted(Raw(), token=TOKEN) as url, bare_client(url) as client:
        await client.websocket.send_message("hi")
        await client.websocket.get_message()
        with trio.fail_after(60):
            await drain_of(url)(1012, answers.append)
        assert answers == [False]
        assert await drain_of(url).close_code() is None


async def answer(url: str, request: bytes) -> bytes:
    host, port = url.removeprefix("ws://").split(":")
    async with await trio.open_tcp_stream(host, int(port)) as stream:
        await stream.send_all(request)
        received = b""
        with trio.fail_after(60):
            async for data in stream:
                received += data
    return received


async def test_only_the_manager_may_ask_for_it_and_once_with_each_proof(monkeypatch: Any) -> None:
    heads = []
    real = trio.SocketStream.send_all

    async def keep(self: trio.SocketStream, data: bytes) -> None:
        if DRAIN_PATH.encode() in data:
            heads.append(bytes(data))
        await real(self, data)

    async with hosted(Thinker(), token=TOKEN, door=Door(TOKEN)) as url:
        plain = f"POST {DRAIN_PATH}?code=1012 HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
        assert (await answer(url, plain)).startswith(b"HTTP/1.1 403 ")
        monkeypatch.setattr(trio.SocketStream, "send_all", keep)
        assert await drain_of(url).close_code() is None
        assert b" 421 " in (await answer(url, heads[0])).split(b"\r\n")[0]
        assert b" 421 " in (
            await answer(url, heads[0].replace(b"GET", b"POST").replace(b"?", b"?code=1001&"))
        )
        assert await drain_of(url).close_code() is None


async def test_a_code_that_no_manager_gives_begins_nothing() -> None:
    async with hosted(Thinker(), token=TOKEN) as url:
        for code in ("1000", "x"):
            answers: list[bool] = []
            await drain_of(url)(code, answers.append)  # type: ignore[arg-type]
            assert answers == [False]
        assert await drain_of(url).close_code() is None
        async with draining(url):
            pass
        assert await drain_of(url).close_code() is not None


@asynccontextmanager
async def server(handler: Callable[[trio.SocketStream], Awaitable[None]]) -> AsyncIterator[str]:
    async with trio.open_nursery() as nursery:
        [listener] = await nursery.start(partial(trio.serve_tcp, handler, 0, host="127.0.0.1"))
        yield f"ws://127.0.0.1:{listener.socket.getsockname()[1]}"
        nursery.cancel_scope.cancel()


async def test_a_host_of_an_earlier_version_does_not_know_it() -> None:
    async def earlier(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        await stream.send_all(b"HTTP/1.1 426 Upgrade Required\r\nContent-Length: 0\r\n\r\n")

    answers: list[bool] = []
    async with server(earlier) as url:
        with trio.fail_after(60):
            await drain_of(url)(1012, answers.append)
    assert answers == [False]


async def test_one_that_is_too_busy_to_answer_is_asked_again_and_not_taken_to_be_idle(
    monkeypatch: Any,
) -> None:
    monkeypatch.setattr("agentmgr.supervisor.host_drain._PATIENCE_S", 0.2)
    asked, answers = 0, []

    async with hosted(Thinker(), token=TOKEN) as url:

        async def blocked_at_first(stream: trio.SocketStream) -> None:
            nonlocal asked
            asked += 1
            if asked == 1:
                await trio.sleep_forever()
            await stream.send_all(await answer(Hosted(url), bytes(await stream.receive_some())))

        async with server(blocked_at_first) as busy:
            with trio.fail_after(60):
                await drain_of(busy)(1012, answers.append)
    assert answers == [True, True]


async def test_at_the_deadline_the_end_of_the_host_cuts_what_is_left() -> None:
    agent = Thinker()
    async with hosted(agent, token=TOKEN) as url, bare_client(url) as busy:
        await busy.say("user.message", content="q")
        await agent.thinks.wait()
        url.server._drain.begin(1001)
        url.server.go_away()
        assert await close_of(busy) == 1001
