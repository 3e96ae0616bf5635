"""A turn: one message, what is said on the way, and exactly one end."""

import logging
import sys

import pytest
import trio

from agentmgr.agent import Event, final_answer, thinking, tool_call, tool_result
from agentmgr.agent.limits import SessionLimits
from agentmgr.models import WhenBusy
from agentmgr.protocol import TURN_ENDS
from agentmgr.testing.agents import bare_client, hosted

ENVELOPE = {"event", "session_id", "connection_id", "step_id", "timestamp", "content", "metadata"}


def names(client):
    return [event["event"] for event in client.events]


async def echo(message):
    return f"echo: {message}"


async def never(message):
    await trio.sleep_forever()


async def test_a_message_is_answered_in_a_session_made_for_it():
    async with hosted(echo) as url, bare_client(url) as client:
        answer = await client.ask("hi", step_id="mine")
        assert answer["content"] == "echo: hi"
        assert answer["step_id"] == "mine"
        assert names(client) == ["system.connected", "agent.session_created", "agent.final_answer"]


async def test_the_envelope_is_complete_and_numbered_from_one_without_holes():
    async with hosted(echo) as url, bare_client(url) as client:
        for _ in range(3):
            await client.ask("hi")
    of_session = [event for event in client.events if event["event"].startswith("agent.")]
    assert [event["seq"] for event in of_session] == [1, 2, 3, 4]
    assert len({event["event_id"] for event in of_session}) == 4
    for event in client.events:
        assert {"event", "session_id", "connection_id", "step_id", "timestamp", "content", "metadata"} <= set(
            event
        )
        assert event["timestamp"].endswith("Z")


async def test_what_a_generator_yields_is_streamed_and_joined_is_the_answer():
    async def agent(message):
        yield thinking("hm")
        yield "Hel"
        yield tool_call("add", {"a": 1}, step_id="s1")
        yield tool_result("add", 2, step_id="s1")
        yield {"event": "my.event", "content": [1]}
        yield Event("my.other", metadata={"x": 1})
        yield "lo"

    async with hosted(agent) as url, bare_client(url) as client:
        answer = await client.ask("hi")
    assert answer["content"] == "Hello"
    assert names(client)[2:] == [
        "agent.thinking", "agent.partial_answer", "agent.tool_call", "agent.tool_result",
        "my.event", "my.other", "agent.partial_answer", "agent.final_answer",
    ]  # fmt: skip
    assert client.events[4]["content"] == {"tool": "add", "args": {"a": 1}}
    assert client.events[4]["step_id"] == client.events[5]["step_id"] == "s1"


async def test_a_generator_may_say_another_final_answer_and_then_says_no_more():
    async def agent(message):
        yield "working"
        yield final_answer({"answer": 42})
        yield "too late"

    async with hosted(agent) as url, bare_client(url) as client:
        answer = await client.ask("hi")
        assert answer["content"] == {"answer": 42}
        assert (await client.ask("again"))["content"] == {"answer": 42}
    assert names(client).count("agent.partial_answer") == 2


async def test_a_message_may_be_an_object_and_is_still_its_text():
    async def agent(message):
        return [message, message.content, message.metadata]

    async with hosted(agent) as url, bare_client(url) as client:
        answer = await client.ask({"question": "why?", "depth": 2}, metadata={"lang": "en"})
    assert answer["content"] == ["why?", {"question": "why?", "depth": 2}, {"lang": "en"}]


async def test_state_and_history_last_as_long_as_the_session():
    async def agent(message, session):
        session.state["count"] = session.state.get("count", 0) + 1
        return f"{session.state['count']}: {[turn['content'] for turn in session.history]}"

    async with hosted(agent) as url, bare_client(url) as client:
        assert (await client.ask("a"))["content"] == "1: []"
        assert (await client.ask("b"))["content"] == "2: ['a', '1: []']"
        await client.say("user.request_state")
        state = (await client.until("agent.state_exported"))["content"]
        assert state["state"] == {"count": 2}
        assert [turn["role"] for turn in state["history"]] == ["user", "assistant"] * 2
        await client.open()
        assert (await client.ask("c"))["content"] == "1: []"


async def test_a_cancel_ends_the_turn_at_once_also_before_its_first_event():
    async with hosted(never) as url, bare_client(url) as client:
        await client.open()
        for _ in range(3):
            await client.say("user.message", content="hi")
            await client.say("user.cancel")
            assert (await client.until(*TURN_ENDS))["event"] == "agent.interrupted"
        assert names(client).count("agent.interrupted") == 3


async def test_a_cancelled_turn_says_nothing_more_though_it_cleans_up_slowly():
    go_on, ended = trio.Event(), trio.Event()

    async def agent(message, session):
        if message == "next":
            return "next"
        try:
            await session.emit("agent.thinking", "started")
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await go_on.wait()
                await session.emit("agent.partial_answer", "from the grave")
                ended.set()

    async with hosted(agent) as url, bare_client(url) as client:
        await client.say("user.message", content="hi")
        await client.until("agent.thinking")
        await client.say("user.cancel")
        await client.until("agent.interrupted")
        await client.say("user.message", content="next")
        await client.say("ping")
        await client.until("pong")
        go_on.set()
        assert (await client.until(*TURN_ENDS))["content"] == "next"
        assert ended.is_set()
        assert "agent.partial_answer" not in names(client)


async def test_a_cancel_with_nothing_running_or_for_another_turn_is_harmless():
    async with hosted(never) as url, bare_client(url) as client:
        await client.open()
        await client.say("user.cancel")
        assert (await client.until("system.notice"))["content"]["code"] == "nothing_running"
        await client.say("user.message", content="hi", step_id="one")
        await client.say("user.cancel", step_id="another")
        assert (await client.until("system.notice"))["content"]["code"] == "nothing_running"
        await client.say("user.cancel", step_id="one")
        assert (await client.until(*TURN_ENDS))["step_id"] == "one"


async def test_an_exception_is_an_error_with_an_id_and_the_session_lives_on(caplog):
    async def agent(message):
        if message == "bad":
            raise ValueError("the secret is 1234")
        return "fine"

    async with hosted(agent) as url, bare_client(url) as client:
        with caplog.at_level(logging.ERROR):
            error = (await client.ask("bad"))["content"]
        assert error["type"] == "ValueError"
        assert "1234" not in str(error)
        assert error["error_id"] in caplog.text
        assert "the secret is 1234" in caplog.text
        assert (await client.ask("good"))["content"] == "fine"


@pytest.mark.parametrize("what", ["exit", "group", "generator_exit", "unsayable", "bad_yield", "cleanup"])
async def test_nothing_an_author_raises_ends_more_than_the_turn(what):
    async def agent(message, session):
        if message != "bad":
            yield "fine"
        elif what == "exit":
            sys.exit(3)
        elif what == "group":
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.to_thread.run_sync, sys.exit)
        elif what == "generator_exit":
            raise GeneratorExit
        elif what == "unsayable":
            yield final_answer(object())
        elif what == "bad_yield":
            yield 5
        elif what == "cleanup":
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_fail_in_cleanup)
                await trio.lowlevel.checkpoint()
                session.cancel()
                await trio.sleep_forever()

    async def _fail_in_cleanup():
        try:
            await trio.sleep_forever()
        finally:
            raise KeyError("in clean-up")

    async with hosted(agent) as url, bare_client(url) as client, bare_client(url) as other:
        await other.open()
        expected = "agent.interrupted" if what == "cleanup" else "agent.error"
        assert (await client.ask("bad"))["event"] == expected
        assert (await client.ask("good"))["content"] == "fine"
        assert (await other.ask("good"))["content"] == "fine"


async def test_a_turn_that_takes_too_long_is_ended():
    async with hosted(never, limits=SessionLimits(turn_timeout=0.05)) as url, bare_client(url) as client:
        assert (await client.ask("hi"))["event"] == "agent.timeout"
        assert (await client.ask("hi"))["event"] == "agent.timeout"


async def test_messages_wait_for_the_running_turn_up_to_a_bound():
    go_on = trio.Event()

    async def agent(message):
        await go_on.wait()
        return message

    async with hosted(agent) as url, bare_client(url) as client:
        for number in range(20):
            await client.say("user.message", content=str(number), step_id=f"step {number}")
        for number in range(17, 20):
            refusal = await client.until("system.error")
            assert refusal["content"]["code"] == "queue_full"
            assert refusal["step_id"] == f"step {number}"
        go_on.set()
        assert [(await client.until(*TURN_ENDS))["content"] for _ in range(17)] == [str(n) for n in range(17)]


async def test_a_service_may_refuse_a_message_while_busy():
    async with (
        hosted(never, limits=SessionLimits(when_busy=WhenBusy.REJECT)) as url,
        bare_client(url) as client,
    ):
        await client.say("user.message", content="one")
        await client.say("user.message", content="two")
        assert (await client.until("system.error"))["content"]["code"] == "busy"
        await client.say("user.cancel")
        assert (await client.until(*TURN_ENDS))["event"] == "agent.interrupted"


async def test_a_service_may_let_a_newer_message_interrupt():
    async def agent(message):
        if message == "one":
            await trio.sleep_forever()
        return message

    async with (
        hosted(agent, limits=SessionLimits(when_busy=WhenBusy.INTERRUPT)) as url,
        bare_client(url) as client,
    ):
        await client.say("user.message", content="one", step_id="one")
        await client.say("user.message", content="two", step_id="two")
        assert (await client.until(*TURN_ENDS))["event"] == "agent.interrupted"
        assert (await client.until(*TURN_ENDS))["content"] == "two"


async def test_a_message_sent_twice_with_one_step_id_is_taken_once():
    async with hosted(echo) as url, bare_client(url) as client:
        await client.ask("hi", step_id="once")
        await client.say("user.message", content="hi", step_id="once")
        assert (await client.until("system.error"))["content"]["code"] == "duplicate"


@pytest.mark.parametrize("answer", [{"confirmed": True}, {"approved": True}])
async def test_a_question_is_answered_by_its_step_id(answer):
    async def agent(message, session):
        decision = await session.confirm("rm", {"path": "/"})
        return [bool(decision), decision.content]

    async with hosted(agent) as url, bare_client(url) as client:
        await client.say("user.message", content="go")
        question = await client.until("agent.user_confirm")
        assert question["content"]["tool"] == "rm"
        assert question["content"]["args"] == {"path": "/"}
        await client.say("user.response", step_id=question["step_id"], content=answer)
        assert (await client.until(*TURN_ENDS))["content"] == [True, answer]
        await client.say("user.response", step_id=question["step_id"], content=answer)
        assert (await client.until("system.error"))["content"]["code"] == "unknown_step"


async def test_all_who_read_a_session_hear_that_its_question_is_open_no_more():
    async def agent(message, session):
        return bool(await session.confirm("rm"))

    async with hosted(agent) as url, bare_client(url) as client, bare_client(url) as other:
        await client.say("user.message", content="go")
        question = await client.until("agent.user_confirm")
        await other.say("user.watch", session_id=question["session_id"], last_seq=question["seq"])
        assert (await other.until("system.notice"))["content"]["code"] == "resumed"
        await other.say("user.response", step_id=question["step_id"], content={"confirmed": False})
        for one in (client, other):
            notice = await one.until("system.notice")
            settled = {"code": "answered", "message": "the answer was no", "confirmed": False}
            assert notice["content"] == settled
            assert (notice["step_id"], notice["seq"]) == (question["step_id"], question["seq"] + 1)
            assert (await one.until(*TURN_ENDS))["content"] is False


async def test_an_unanswered_question_means_no():
    async def agent(message, session):
        return bool(await session.confirm("rm"))

    async with (
        hosted(agent, limits=SessionLimits(confirm_timeout=0.1)) as url,
        bare_client(url) as client,
    ):
        await client.say("user.message", content="go")
        notice = await client.until("system.notice")
        assert notice["content"]["code"] == "answered"
        assert "in time" in notice["content"]["message"]
        assert (await client.until(*TURN_ENDS))["content"] is False


async def test_an_answer_that_is_no_answer_is_refused_and_the_question_stays():
    async def agent(message, session):
        return bool(await session.confirm("rm"))

    async with hosted(agent) as url, bare_client(url) as client:
        await client.say("user.message", content="go")
        question = await client.until("agent.user_confirm")
        await client.say("user.response", step_id=question["step_id"], content={"confirmed": "maybe"})
        assert (await client.until("system.error"))["content"]["code"] == "invalid_field"
        await client.say("user.response", step_id=question["step_id"], content={"confirmed": True})
        assert (await client.until(*TURN_ENDS))["content"] is True


async def test_half_a_surrogate_pair_from_an_author_still_arrives():
    async def agent(message):
        yield "\ud83d"
        yield "\ude00"

    async with hosted(agent) as url, bare_client(url) as client:
        assert (await client.ask("hi"))["content"] == "\U0001f600"


async def test_heartbeats_come_while_a_client_is_there_and_stop_when_it_has_gone_quiet(monkeypatch):
    monkeypatch.setattr("agentmgr.agent.client_link.HEARTBEAT_S", 0.02)
    monkeypatch.setattr("agentmgr.agent.client_link.QUIET_S", 0.2)
    async with hosted(echo) as url, bare_client(url) as client:
        await client.ask("hi")
        for _ in range(3):
            await client.until("system.heartbeat")
        with trio.fail_after(60):
            silent = False
            while not silent:
                with trio.move_on_after(0.4) as silence:
                    await client.receive()
                silent = silence.cancelled_caught


@pytest.mark.parametrize("value", [float("inf"), {"x": float("nan")}, object(), {(1, 2): 3}])
async def test_an_answer_that_json_cannot_say_is_the_turns_failure(value):
    async def agent(message):
        return value if message == "fail" else "fine"

    async with hosted(agent) as url, bare_client(url) as client:
        assert (await client.ask("fail"))["event"] == "agent.error"
        assert (await client.ask("hi"))["content"] == "fine"


async def test_an_answer_nested_too_deep_is_the_turns_failure_also_in_plain_text():
    def agent(message):
        answer = []
        for _ in range(int(message)):
            answer = [answer]
        return answer

    async with hosted(agent) as url, bare_client(url) as client, bare_client(url) as plain:
        for depth, end in ((250, "agent.final_answer"), (300, "agent.error"), (900, "agent.error")):
            assert (await client.ask(str(depth)))["event"] == end
            await plain.websocket.send_message(str(depth))
            assert ("[error]" in await plain.websocket.get_message()) is (end == "agent.error")


@pytest.mark.parametrize("when_busy", [WhenBusy.QUEUE, WhenBusy.INTERRUPT])
async def test_a_message_that_is_not_to_wait_hears_behind_which_event_its_turn_is(when_busy):
    """So that it can tell its answer from the end of the one before."""

    async def agent(message, session):
        for _ in range(50):
            yield f"{message} "
        if message == "one" and when_busy is WhenBusy.INTERRUPT:
            await trio.sleep_forever()

    async with hosted(agent, limits=SessionLimits(when_busy=when_busy)) as url, bare_client(url) as client:
        await client.say("user.message", content="one", step_id="one")
        before = [await client.until("agent.partial_answer") for _ in range(50)]
        if when_busy is WhenBusy.QUEUE:
            before.append(await client.until("agent.final_answer"))
        await client.say("user.message", content="two", step_id="two", queue=False)
        notice = await client.until("system.notice")
        after = notice["content"]["after_seq"]
        assert (notice["content"]["code"], notice["step_id"]) == ("taken", "two")
        assert after == before[-1]["seq"] + (when_busy is WhenBusy.INTERRUPT)
        end = await client.until("agent.final_answer")
        assert (end["step_id"], end["seq"]) == ("two", after + 51)


async def test_a_message_that_is_not_to_wait_is_busy_while_a_turn_runs():
    async def agent(message, session):
        return bool(await session.confirm("rm"))

    async with hosted(agent) as url, bare_client(url) as client:
        await client.say("user.message", content="go", step_id="one", queue=False)
        assert (await client.until("system.notice"))["content"]["code"] == "taken"
        question = await client.until("agent.user_confirm")
        for step_id, code in (("two", "busy"), ("one", "duplicate")):
            await client.say("user.message", content="more", step_id=step_id, queue=False)
            assert (await client.until("system.error"))["content"]["code"] == code
        await client.say("user.request_state", session_id=question["session_id"])
        shown = (await client.until("agent.state_exported"))["content"]
        assert (shown["busy"], shown["turn"]) == (True, {"step_id": "one", "content": "go"})
        answer = {"confirmed": True, "answer_id": "two"}
        await client.say("user.response", step_id=question["step_id"], content=answer)
        assert (await client.until("system.notice"))["content"]["answer_id"] == "two"
        assert (await client.until(*TURN_ENDS))["content"] is True
        await client.say("user.message", content="again", step_id="three", queue=False)
        assert (await client.until("agent.user_confirm"))["content"]["timeout_s"] == 300


@pytest.mark.parametrize(
    ("limits", "asked", "expected"),
    [
        ({}, 5000, 5000),
        ({}, 1e9, 30 * 86_400),
        ({}, "x", 300),
        ({}, -1, 300),
        ({"confirm_timeout": 7}, 50, 7),
    ],
)
async def test_a_message_says_how_long_its_questions_wait_where_the_service_does_not(limits, asked, expected):
    async def agent(message, session):
        return bool(await session.confirm("rm", timeout_s=9 if message == "nine" else None))

    async with hosted(agent, limits=SessionLimits(**limits)) as url, bare_client(url) as client:
        for message, timeout_s in (("any", expected), ("nine", 9)):
            await client.say("user.message", content=message, metadata={"confirm_timeout": asked})
            question = await client.until("agent.user_confirm")
            assert question["content"]["timeout_s"] == timeout_s
            await client.say("user.response", step_id=question["step_id"], content=True)
            await client.until(*TURN_ENDS)
