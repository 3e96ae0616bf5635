"""Sessions behind Chat Completions: where a message goes, what that begins with, and what is left of it."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import pytest
import trio
from trio_websocket import ConnectionClosed

from agentmgr.agent.limits import SessionLimits
from agentmgr.core.routing import RoutingTable
from agentmgr.fronts import cache
from agentmgr.models.host_config import OnDisconnect
from tests.fronts.conftest import Stage, Tokens, request

CHAT = "/v1/chat/completions"


class Client:
    def __init__(self, stage: Stage, key: str | None = None) -> None:
        self.stage = stage
        self.key = key
        self.messages: list[dict[str, Any]] = []

    async def ask(self, text: str) -> Any:
        messages = [*self.messages, {"role": "user", "content": text}]
        return await self.stage.say(messages=messages)

    async def say(self, text: str, **headers: str) -> str:
        if self.key is not None:
            headers["X-Session-Id"] = self.key
        self.messages.append({"role": "user", "content": text})
        body = {"model": "echo", "messages": self.messages}
        status, _, answer = await self.stage.ask("POST", CHAT, body, headers)
        assert status == 200, answer
        self.messages.append(answer["choices"][0]["message"])
        return answer["choices"][0]["message"]["content"]

    def back(self, turns: int) -> None:
        del self.messages[len(self.messages) - 2 * turns :]


async def test_without_a_key_a_session_begins_with_the_history_and_ends_with_its_answer(stage_of, teller):
    async with stage_of(teller) as stage:
        client = Client(stage)
        assert await client.say("one") == "Well. 0 before"
        assert await client.say("two") == "Well. 2 before"
        assert [session.name for session in teller.sessions] == [None, None]
        await stage.at_base()
        with trio.fail_after(60):
            for session in teller.sessions:
                await session.gone.wait()


async def test_with_a_key_all_is_said_in_one_session_that_stays(stage_of, teller):
    async with stage_of(teller) as stage:
        client = Client(stage, "a chat/1")
        assert await client.say("one") == "Well. 0 before"
        assert await client.say("two") == "Well. 2 before"
        (session,) = teller.sessions
        assert session.name == "openai:a chat/1"
        await stage.at_base()
        assert not session.ended
        assert await Client(stage, "other").say("one") == "Well. 0 before"


async def test_a_history_that_differs_goes_on_in_a_branch_and_back(stage_of, teller):
    async with stage_of(teller) as stage:
        client = Client(stage, "k")
        await client.say("one")
        await client.say("two")
        kept = list(client.messages)
        client.back(1)
        assert await client.say("two, edited") == "Well. 2 before"
        assert await client.say("three") == "Well. 4 before"
        assert [session.name for session in teller.sessions] == ["openai:k", "openai:k~2"]
        client.messages = kept
        assert await client.say("three") == "Well. 4 before"
        assert len(teller.sessions) == 2  # the first one went on
        fresh = Client(stage, "k")
        assert await fresh.say("one") == "Well. 0 before"  # said again, so a third
        assert teller.sessions[-1].name == "openai:k~3"


async def test_a_gateway_that_remembers_nothing_finds_the_branch(stage_of, teller, monkeypatch):
    monkeypatch.setattr(cache.ConversationCache, "remember", lambda *_: None)
    async with stage_of(teller) as stage:
        client = Client(stage, "k")
        await client.say("one")
        await client.say("two")
        client.back(1)
        await client.say("edited")
        assert await client.say("three") == "Well. 4 before"
        assert [session.name for session in teller.sessions] == ["openai:k", "openai:k~2"]


@pytest.mark.parametrize("key", [None, "k"])
@pytest.mark.parametrize(("word", "outcome"), [("Yes!", "deleted"), ("否", "kept"), ("what?", "kept")])
async def test_a_question_is_answered_by_the_next_message(stage_of, teller, key, word, outcome):
    async with stage_of(teller) as stage:
        client = Client(stage, key)
        await client.say("one")
        assert await client.say("delete it") == "Well. \n\nReally? [yes/no]"
        assert await client.say(word) == outcome
        assert teller.turns == 2
        assert await client.say("next") == ("Well. 4 before" if key else "Well. 6 before")
        assert len(teller.sessions) == (1 if key else 3)
        await stage.at_base()


async def test_a_gateway_that_does_not_know_of_the_question_asks_the_session(stage_of, teller, monkeypatch):
    async with stage_of(teller) as stage:
        client = Client(stage, "k")
        await client.say("one")
        await client.say("delete it")
        monkeypatch.setattr(cache.ConversationCache, "take", lambda *_: None)
        assert await client.say("是") == "deleted"
        assert teller.turns == 2


async def test_who_says_something_else_leaves_the_question_alone(stage_of, teller):
    async with stage_of(teller) as stage:
        asking, other = Client(stage), Client(stage)
        await asking.say("delete it")
        assert await other.say("yes") == "Well. 0 before"
        asking.back(1)
        await asking.say("delete it")  # asked again: another question, of another turn
        assert await asking.say("yes") == "deleted"
        assert teller.turns == 3


async def test_a_question_that_is_settled_elsewhere_keeps_no_seat(stage_of, teller):
    async with stage_of(teller) as stage:
        client = Client(stage, "k")
        await client.say("delete it")
        assert len(stage.gateway.connections()) == 1
        (session,) = teller.sessions
        session.answer(session.questions.oldest, True)
        await stage.at_base()
        assert await client.say("yes") == "Well. 2 before"  # it is a message now: no question is open


async def test_no_more_questions_wait_than_there_is_room_for(stage_of, teller, monkeypatch):
    monkeypatch.setattr(cache, "MOST_PARKED", 2)
    async with stage_of(teller) as stage:
        clients = [Client(stage) for _ in range(4)]
        for number, client in enumerate(clients):
            await client.say(f"delete {number}")
        with trio.fail_after(60):
            while len(stage.gateway.connections()) > 2:  # noqa: ASYNC110
                await trio.sleep(0.005)
        assert await clients[-1].say("yes") == "deleted"


async def test_without_a_key_a_client_has_so_many_open_questions(stage_of, teller, monkeypatch):
    monkeypatch.setattr(cache, "MOST_OF_A_CLIENT", 2)
    async with stage_of(teller) as stage:
        keyed = Client(stage, "k")
        await keyed.say("delete it")
        clients = [Client(stage) for _ in range(4)]
        for number, client in enumerate(clients):
            await client.say(f"delete {number}")
        with trio.fail_after(60):
            while len(stage.gateway.connections()) > 3:  # noqa: ASYNC110
                await trio.sleep(0.005)
        for client in (keyed, *clients[2:]):
            assert await client.say("yes") == "deleted"
        status, _, body = await clients[0].ask("yes")
        assert (status, body["error"]["code"]) == (409, "question_closed")
        await stage.at_base()


async def test_without_a_key_a_question_waits_so_long_and_then_it_is_a_no(stage_of, teller, monkeypatch):
    monkeypatch.setattr(cache, "MOST_PATIENCE_S", 0.1)
    async with stage_of(teller) as stage:
        client = Client(stage)
        await client.say("delete it")
        (session,) = teller.sessions
        await stage.at_base()  # it keeps no seat
        with trio.fail_after(60):
            await session.gone.wait()
        assert session.history[-1]["content"] == "Well. kept"
        for _ in range(2):
            status, _, body = await client.ask("yes")
            assert (status, body["error"]["code"]) == (409, "question_closed")
        assert await client.say("go on then") == "Well. 2 before"  # no answer, so a message
        keyed = Client(stage, "k")
        await keyed.say("delete it")
        await trio.sleep(0.2)
        assert await keyed.say("yes") == "deleted"


async def test_with_a_key_a_question_keeps_its_seat_for_so_long_and_stays_open(stage_of, teller, monkeypatch):
    monkeypatch.setattr(cache, "MOST_PATIENCE_S", 0.1)
    async with stage_of(teller) as stage:
        client = Client(stage, "k")
        await client.say("delete it")
        await stage.at_base()
        assert await client.say("yes") == "deleted"
        assert teller.turns == 1


async def test_without_a_key_a_question_of_an_instance_that_ended_is_closed(stage_of, teller):
    async with stage_of(teller) as stage:
        client = Client(stage)
        await client.say("delete it")
        (connection,) = stage.gateway.connections()
        stage.gateway.cut(connection.instance_id)
        await stage.at_base()
        assert (await client.ask("yes"))[2]["error"]["code"] == "question_closed"


async def test_a_message_that_is_sent_again_is_answered_once(stage_of, teller):
    async with stage_of(teller) as stage:
        client = Client(stage, "k")
        await client.say("one")
        body = {"model": "echo", "messages": [*client.messages, {"role": "user", "content": "wait"}]}
        headers = {"X-Session-Id": "k"}
        async with await stage.send(request("POST", CHAT, body, headers)):  # cut off while it waits
            while teller.turns < 2:  # noqa: ASYNC110
                await trio.sleep(0.005)
        await stage.at_base()
        answers = []

        async def again() -> None:
            answers.append(await client.say("wait", **{"x-stainless-retry-count": "1"}))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(again)
            with trio.fail_after(60):
                while not stage.gateway.connections():  # noqa: ASYNC110
                    await trio.sleep(0.005)
            teller.go_on.set()
        assert answers == ["Well. 2 before"]
        client.back(1)
        assert await client.say("wait", **{"x-stainless-retry-count": "2"}) == "Well. 2 before"
        assert teller.turns == 2
        assert len(teller.sessions) == 1
        client.back(1)
        assert await client.say("wait") == "Well. 2 before"  # asked anew: in a branch
        assert teller.turns == 3


@pytest.mark.parametrize("key", [None, "k"])
@pytest.mark.parametrize("policy", list(OnDisconnect))
async def test_what_becomes_of_a_turn_whose_client_left_is_the_services_choice(stage_of, teller, key, policy):
    async with stage_of(teller, host={"limits": SessionLimits(on_disconnect=policy)}) as stage:
        body = {"model": "echo", "stream": True, "messages": [{"role": "user", "content": "wait"}]}
        async with await stage.send(request("POST", CHAT, body, {"X-Session-Id": key} if key else {})):
            while not teller.turns:  # noqa: ASYNC110
                await trio.sleep(0.005)
        await stage.at_base()
        (session,) = teller.sessions
        with trio.fail_after(60):
            if policy is OnDisconnect.CONTINUE:
                assert session.busy
                teller.go_on.set()
            while session.busy:  # noqa: ASYNC110
                await trio.sleep(0.005)
            if key is None:
                await session.gone.wait()
        assert (session.history[-1]["content"] == "Well. 0 before") == (policy is OnDisconnect.CONTINUE)


async def test_instructions_and_attachments_arrive_with_the_message(stage_of, teller):
    async with stage_of(teller) as stage:
        url = "data:text/plain;base64,aGVsbG8"
        body = {
            "model": "echo",
            "messages": [
                {"role": "system", "content": "be brief"},
                {
                    "role": "user",
                    "content": [
                        {"type": "text", "text": "read this"},
                        {"type": "file", "file": {"filename": "a.txt", "file_data": url}},
                    ],
                },
            ],
        }
        assert (await stage.ask("POST", CHAT, body))[0] == 200
        (message,) = teller.messages
        (attachment,) = message.attachments
        assert (message, message.instructions) == ("read this", "be brief")
        assert (attachment.kind, attachment.name, attachment.data) == ("file", "a.txt", b"hello")


async def test_an_agent_that_fails_is_a_424_which_no_client_asks_again(stage_of):
    async def fails(message, session):
        if message == "late":
            yield "so far "
        raise ValueError("no")
        yield ""

    async with stage_of(fails) as stage:
        for stream in (False, True):
            status, headers, body = await stage.say("early", stream=stream)
            assert (status, headers["x-should-retry"], body["error"]["code"]) == (424, "false", "agent_error")
        status, _, data = await stage.say("late", stream=True)
        assert status == 200
        assert b"so far " in data
        assert b'"code": "agent_error"' in data
        assert b"[DONE]" not in data
        assert (await stage.say("late"))[0] == 424
        await stage.at_base()


async def test_a_connection_that_an_operator_ends_is_an_error(stage_of, teller):
    async with stage_of(teller) as stage:
        answers = []

        async def ask() -> None:
            answers.append(await stage.say("wait"))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            while not teller.turns:  # noqa: ASYNC110
                await trio.sleep(0.005)
            (connection,) = stage.gateway.connections()
            stage.gateway.disconnect(connection.connection_id)
        assert answers[0][2]["error"]["code"] == "connection_lost"
        await stage.at_base()


async def test_a_client_may_leave_at_any_byte(stage_of, teller):
    async with stage_of(teller) as stage:
        body = {"model": "echo", "stream": True, "messages": [{"role": "user", "content": "hi"}]}
        whole = request("POST", CHAT, body, {"Connection": "close"})
        for cut in range(1, len(whole), 7):
            async with await stage.send(whole[:cut]):
                pass
        answer = await stage.raw(whole)
        for cut in range(1, len(answer), len(answer) // 20):
            async with await stage.send(whole) as stream:
                got = b""
                while len(got) < cut and (more := await stream.receive_some(cut - len(got))):
                    got += more
        await stage.at_base()
        with trio.fail_after(60):
            for session in teller.sessions:
                await session.gone.wait()


@pytest.mark.parametrize("key", [None, "k"])
async def test_a_service_that_speaks_plain_text_answers_with_its_next_frame(lab, stage_of, key):
    async def shout(request):
        websocket = await request.accept()
        with suppress(ConnectionClosed):
            while True:
                await websocket.send_message((await websocket.get_message()).upper())

    async with stage_of() as stage:
        stage.gateway.update(RoutingTable((await lab.instance("echo", shout, max_sessions=1),)))
        client = Client(stage, key)
        assert await client.say("hello") == "HELLO"
        assert await client.say("again") == "AGAIN"
        await stage.at_base()


async def test_a_service_that_knows_messages_alone_answers_with_its_events(lab, stage_of, monkeypatch):
    monkeypatch.setattr("agentmgr.fronts.session._SILENCE_S", 0.1)

    async def speaks(request):
        websocket = await request.accept()
        with suppress(ConnectionClosed):
            while True:
                said = json.loads(await websocket.get_message())
                if said["event"] == "user.message":
                    text = f"hello {said['content']}"
                    for name, content in (("partial_answer", "hello "), ("final_answer", text)):
                        event = {"event": f"agent.{name}", "content": content}
                        await websocket.send_message(json.dumps(event))

    async with stage_of() as stage:
        stage.gateway.update(RoutingTable((await lab.instance("echo", speaks),)))
        assert await Client(stage).say("you") == "hello you"
        await stage.at_base()


async def test_a_key_is_its_owners(stage_of, teller):
    async with stage_of(teller, authenticator=Tokens()) as stage:
        for token, identity in (("good", "ann"), ("one", "bob")):
            status, _, said = await stage.ask(
                "POST",
                CHAT,
                {"model": "echo", "messages": [{"role": "user", "content": "hi"}]},
                {"Authorization": f"Bearer {token}", "X-Session-Id": "k"},
            )
            assert (status, said["choices"][0]["message"]["content"]) == (200, "Well. 0 before")
            assert (teller.sessions[-1].owner, teller.sessions[-1].name) == (identity, "openai:k")
        assert len(teller.sessions) == 2
