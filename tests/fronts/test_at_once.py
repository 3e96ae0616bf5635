"""Chat Completions where another turn of the conversation runs, or the host is silent."""

from __future__ import annotations

import json
from contextlib import suppress

import pytest
import trio
import trio.lowlevel
from trio_websocket import ConnectionClosed

from agentmgr.agent.client_events import ClientEvents
from agentmgr.agent.client_link import ClientLink
from agentmgr.agent.limits import SessionLimits
from agentmgr.core.routing import RoutingTable
from agentmgr.models.host_config import WhenBusy
from tests.fronts.conftest import request
from tests.fronts.test_sessions import CHAT, Client


async def test_requests_at_once_on_one_key_are_answered_each_in_a_branch_of_its_own(stage_of):
    """As a stateless API would: none waits for another, and none gets a word of another's answer."""
    running, go_on = set(), trio.Event()

    async def agent(message, session):
        running.add(str(message))
        for _ in range(3):
            yield f"{message} "
            if message != "first":
                await go_on.wait()

    async with stage_of(agent) as stage:
        client = Client(stage, "k")
        await client.say("first")
        answers = {}

        async def ask(text):
            other = Client(stage, "k")
            other.messages = list(client.messages)
            answers[text] = await other.say(text)

        async with trio.open_nursery() as nursery:
            for number in range(20):
                nursery.start_soon(ask, f"m{number}")
            with trio.fail_after(30):
                while len(running) < 21:  # noqa: ASYNC110
                    await trio.sleep(0.005)
            go_on.set()
        assert answers == {f"m{number}": f"m{number} " * 3 for number in range(20)}
        await stage.at_base()


async def test_requests_at_once_for_a_key_that_is_new(stage_of):
    async def agent(message, session):
        for _ in range(3):
            yield f"{message} "
            await trio.sleep(0.01)

    async with stage_of(agent) as stage:
        answers = []

        async def ask(key, text):
            answers.append((text, await Client(stage, key).say(text)))

        async with trio.open_nursery() as nursery:
            for number in range(20):
                for text in ("a", "b", "c"):
                    nursery.start_soon(ask, f"k{number}", text)
        assert len(answers) == 60
        assert all(answer == f"{text} " * 3 for text, answer in answers)
        await stage.at_base()


@pytest.mark.parametrize("policy", [WhenBusy.QUEUE, WhenBusy.REJECT])
async def test_who_stops_an_answer_and_goes_on_waits_until_its_turn_is_over(stage_of, teller, policy):
    async with stage_of(teller, host={"limits": SessionLimits(when_busy=policy)}) as stage:
        client = Client(stage, "k")
        await client.say("one")
        messages = [*client.messages, {"role": "user", "content": "wait"}]
        body = {"model": "echo", "messages": messages, "stream": True}
        async with await stage.send(request("POST", CHAT, body, {"X-Session-Id": "k"})) as stream:
            got = b""
            while b"Well" not in got:
                got += await stream.receive_some()
        await stage.at_base()
        client.messages = [*messages, {"role": "assistant", "content": "Well."}]  # what it has of it
        answers = []

        async def go_on() -> None:
            answers.append(await client.say("two"))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(go_on)
            while not stage.gateway.connections():  # noqa: ASYNC110
                await trio.sleep(0.005)
            teller.go_on.set()
        assert answers == ["Well. 4 before"]
        assert len(teller.sessions) == 1
        await stage.at_base()


async def test_a_question_that_was_not_seen_is_a_no_where_its_client_goes_on(stage_of, teller):
    async with stage_of(teller) as stage:
        client = Client(stage, "k")
        messages = [{"role": "user", "content": "wait to delete it"}]
        body = {"model": "echo", "messages": messages, "stream": True}
        async with await stage.send(request("POST", CHAT, body, {"X-Session-Id": "k"})) as stream:
            got = b""
            while b"Well" not in got:
                got += await stream.receive_some()
        await stage.at_base()
        teller.go_on.set()
        (session,) = teller.sessions
        while session.questions.oldest is None:  # noqa: ASYNC110
            await trio.sleep(0.005)
        client.messages = [*messages, {"role": "assistant", "content": "Well."}]
        assert await client.say("yes") == "Well. 2 before"
        assert session.history[1]["content"] == "Well. kept"
        assert len(teller.sessions) == 1


@pytest.mark.parametrize("key", [None, "k"])
@pytest.mark.parametrize("stream", [False, True])
async def test_a_host_that_is_silent_is_no_service_without_sessions(
    stage_of, teller, monkeypatch, key, stream
):
    monkeypatch.setattr("agentmgr.fronts.session._SILENCE_S", 0.05)
    monkeypatch.setattr("agentmgr.fronts.session._HOST_SILENCE_S", 0.2)
    take, silent = ClientEvents.take, True

    async def take_nothing(self, event):
        if not silent:
            await take(self, event)

    monkeypatch.setattr(ClientEvents, "take", take_nothing)
    monkeypatch.setattr(ClientLink, "_say_hello", lambda self: None)
    async with stage_of(teller) as stage:
        headers = {"X-Session-Id": key} if key else {}
        status, _, body = await stage.say(headers=headers, stream=stream)
        assert (status, body["error"]["code"]) == (503, "session_unreachable")
        status, _, body = await stage.ask("POST", "/v1/responses", {"model": "echo", "input": "hi"}, headers)
        assert (status, body["error"]["code"]) == (503, "session_unreachable")
        await stage.at_base()
        silent = False
        assert await Client(stage, key).say("hi") == "Well. 0 before"
        assert teller.turns == 1


async def test_a_service_that_has_had_sessions_and_is_silent_is_not_one_without(
    lab, stage_of, teller, monkeypatch
):
    """A host in another language is known by nothing but these."""
    monkeypatch.setattr("agentmgr.fronts.session._SILENCE_S", 0.1)
    heard = []

    async def silent(request):
        websocket = await request.accept()
        with suppress(ConnectionClosed):
            while True:
                heard.append(json.loads(await websocket.get_message())["event"])

    async with stage_of(teller) as stage:
        client = Client(stage, "k")
        await client.say("one")
        stage.gateway.update(RoutingTable((await lab.instance("echo", silent),)))
        body = {"model": "echo", "messages": [*client.messages, {"role": "user", "content": "two"}]}
        status, _, answer = await stage.ask("POST", CHAT, body, {"X-Session-Id": "k"})
        assert (status, answer["error"]["code"]) == (503, "session_unreachable")
        assert "user.message" not in heard
        await stage.at_base()
