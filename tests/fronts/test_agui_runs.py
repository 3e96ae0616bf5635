"""Threads and runs of AG-UI, in a gateway before hosted agents."""

from __future__ import annotations

import re
from contextlib import suppress
from datetime import UTC, datetime

import pytest
import trio
from trio_websocket import ConnectionClosed

from agentmgr.agent.limits import SessionLimits
from agentmgr.core.routing import RoutingTable
from agentmgr.fronts.agui import AGUI
from agentmgr.fronts.agui_input import RunInput
from agentmgr.fronts.cache import ConversationCache
from agentmgr.fronts.exchange import Route
from tests.fronts.agui import Page, check, kinds, post, text
from tests.fronts.conftest import request


async def test_a_thread_is_a_session_and_a_run_is_a_turn(stage_of, teller):
    async with stage_of(teller) as stage:
        page = Page(stage)
        events = await page.run("one")
        assert [kind for kind in kinds(events) if kind != "STATE_SNAPSHOT"] == [
            "RUN_STARTED",
            "TEXT_MESSAGE_START",
            "TEXT_MESSAGE_CONTENT",
            "TEXT_MESSAGE_CONTENT",
            "TEXT_MESSAGE_END",
            "RUN_FINISHED",
        ]
        assert text(events) == "Well. 0 before"
        assert events[-1]["outcome"] == {"type": "success"}
        events = await page.run("two")
        assert text(events) == "Well. 2 before"
        assert events[1] == {"type": "STATE_SNAPSHOT", "snapshot": {"turns": 1}}
        (session,) = teller.sessions
        assert session.name == "agui:t1"
        await stage.at_base()
        assert not session.ended


async def test_an_approval_is_an_interrupt_that_the_next_run_answers(stage_of, teller):
    async with stage_of(teller) as stage:
        page = Page(stage)
        events = await page.run("delete it")
        (interrupt,) = events[-1]["outcome"]["interrupts"]
        assert (interrupt["reason"], interrupt["message"]) == ("confirmation", "Really?")
        assert interrupt["toolCallId"] == "call"
        events = await page.resume({"confirmed": True})
        told = [kind for kind in kinds(events) if kind != "STATE_SNAPSHOT"]
        assert (told[:4], text(events)) == (
            ["RUN_STARTED", "TOOL_CALL_START", "TOOL_CALL_END", "TOOL_CALL_RESULT"],
            "deleted",
        )
        assert teller.turns == 1
        assert text(await page.run("next")) == "Well. 2 before"
        await stage.at_base()


@pytest.mark.parametrize(
    ("status", "payload", "outcome"),
    [
        ("resolved", False, "kept"),
        ("resolved", {"approved": True}, "deleted"),
        ("resolved", "no", "kept"),
        ("cancelled", None, "kept"),
    ],
)
async def test_only_yes_approves(stage_of, teller, status, payload, outcome):
    async with stage_of(teller) as stage:
        page = Page(stage)
        await page.run("delete it")
        assert text(await page.resume(payload, status=status)) == outcome
        await stage.at_base()


async def test_a_resume_may_have_the_id_of_the_run_that_asked(stage_of, teller):
    async with stage_of(teller) as stage:
        page = Page(stage)
        asked = await page.run("delete it")
        assert text(await page.resume(True, runId=asked[0]["runId"])) == "deleted"
        assert text(await page.run("delete more")) == "Well. "
        assert text(await page.resume(True)) == "deleted"
        assert teller.turns == 2


async def test_a_gateway_that_does_not_know_of_the_question_asks_the_session(stage_of, teller, monkeypatch):
    async with stage_of(teller) as stage:
        page = Page(stage)
        await page.run("one")
        await page.run("delete it")
        monkeypatch.setattr(ConversationCache, "take", lambda *_: None)
        assert text(await page.resume(True)) == "deleted"
        assert teller.turns == 2


@pytest.mark.parametrize("after_some", [False, True])
async def test_a_run_that_is_asked_for_again_is_read_again(stage_of, teller, after_some):
    async with stage_of(teller) as stage:
        page = Page(stage)
        await page.run("one")
        body = page.body("wait")
        sent = request("POST", "/agui/echo", body)
        async with await stage.send(sent) as stream:
            got = b""
            while b'"delta":"Well. "' not in got:
                got += await stream.receive_some()
        await stage.at_base()
        frames = b"".join(re.findall(rb"(?:id: \d+\n)?data: .*\n\n", got))
        events = check(frames, cut=True) if after_some else []
        teller.go_on.set()
        headers = {"Last-Event-ID": str(events[-1]["id"])} if after_some else {}
        again = await post(stage, "echo", body, headers)
        assert text(again) == ("2 before" if after_some else "Well. 2 before")
        assert again[-1]["outcome"] == {"type": "success"}
        assert teller.turns == 2
        assert text(await post(stage, "echo", body, {"Last-Event-ID": str(again[-1]["id"])})) == ""
        whole = await post(stage, "echo", body)
        assert text(whole) == "Well. 2 before"
        assert teller.turns == 2


async def test_what_a_client_has_of_an_answer_is_dropped_when_that_comes_again(stage_of, teller):
    async with stage_of(teller) as stage:
        page = Page(stage)
        events = await page.run("one")
        body = page.body(runId=events[0]["runId"])
        again = await page.post(body)
        assert again[1]["type"] == "STATE_SNAPSHOT"
        assert again[2] == {"type": "MESSAGES_SNAPSHOT", "messages": page.messages[:1]}
        assert [message["content"] for message in page.messages] == ["one", "Well. 0 before"]
        assert teller.turns == 1


async def test_a_resume_that_is_sent_again_is_read_again(stage_of, teller):
    async with stage_of(teller) as stage:
        page = Page(stage)
        await page.run("delete it")
        entries = [{"interruptId": page.interrupts[0]["id"], "status": "resolved", "payload": True}]
        body = page.body(resume=entries)
        first = await post(stage, "echo", body)
        assert text(first) == "deleted"
        assert await post(stage, "echo", body) == first
        after = next(event["id"] for event in first if "id" in event)
        assert text(await post(stage, "echo", body, {"Last-Event-ID": str(after)})) == "deleted"
        assert teller.turns == 1
        asked = page.body(runId="t1-run-1", messages=page.messages[:1])
        assert (await post(stage, "echo", asked))[-1]["outcome"]["type"] == "interrupt"  # as it ended


async def test_a_history_that_differs_goes_on_in_a_branch_and_back(stage_of, teller):
    async with stage_of(teller) as stage:
        page = Page(stage)
        await page.run("one")
        await page.run("two")
        kept = list(page.messages)
        del page.messages[2:]
        assert text(await page.run("two, edited")) == "Well. 2 before"
        assert text(await page.run("three")) == "Well. 4 before"
        assert [session.name for session in teller.sessions] == ["agui:t1", "agui:t1~2"]
        page.messages = kept
        assert text(await page.run("three")) == "Well. 4 before"
        assert len(teller.sessions) == 2
        fresh = Page(stage)
        fresh.runs = 10
        assert text(await fresh.run("four")) == "Well. 6 before"  # a client without a history goes on


async def test_a_regenerated_answer_is_of_a_branch(stage_of, teller):
    async with stage_of(teller) as stage:
        page = Page(stage)
        await page.run("one")
        await page.run("two")
        del page.messages[3:]
        assert text(await page.run()) == "Well. 2 before"
        assert (teller.turns, len(teller.sessions)) == (3, 2)


async def test_a_question_waits_as_long_as_sessions_are_kept(stage_of):
    async def asks(message, session):
        yield str(bool(await session.confirm("a", timeout_s=77 if message == "limited" else None)))

    async with stage_of(asks) as stage:
        page = Page(stage)
        for message, seconds in (("limited", 77), ("any", 30 * 86_400)):
            now = datetime.now(UTC)
            (interrupt,) = (await page.run(message))[-1]["outcome"]["interrupts"]
            expires = datetime.fromisoformat(interrupt["expiresAt"]) - now
            assert abs(expires.total_seconds() - seconds) < 60
            assert text(await page.resume(True)) == "True"


async def test_a_question_that_is_given_up_does_not_keep_the_next_message(stage_of, teller):
    async with stage_of(teller) as stage:
        page = Page(stage)
        await page.run("one")
        page.interrupts = [{"id": "ask_of_an_instance_that_died"}]
        assert (
            text(await page.resume(status="cancelled", messages=page.body("two")["messages"]))
            == "Well. 2 before"
        )
        page.interrupts = [{"id": "ask_of_an_instance_that_died"}]
        assert kinds(await page.resume(status="cancelled"))[-1] == "RUN_FINISHED"
        assert teller.turns == 2


async def test_several_questions_are_interrupts_one_after_another(stage_of):
    async def asks(message, session):
        answers = {}

        async def ask(name):
            answers[name] = bool(await session.confirm(name, message=name))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, "a")
            nursery.start_soon(ask, "b")
        yield f"{answers['a']} {answers['b']}"

    async with stage_of(asks) as stage:
        page = Page(stage)
        first = (await page.run("go"))[-1]["outcome"]["interrupts"][0]["message"]
        second = (await page.resume(first == "a"))[-1]["outcome"]["interrupts"][0]["message"]
        assert {first, second} == {"a", "b"}
        assert text(await page.resume(second == "a")) == "True False"
        await stage.at_base()


async def test_what_the_client_says_beside_its_message_arrives_with_it(stage_of, teller):
    async with stage_of(teller) as stage:
        page = Page(stage)
        page.messages.append({"id": "s", "role": "system", "content": "be brief"})
        image = {"type": "image", "source": {"type": "data", "value": "aGVsbG8", "mimeType": "image/png"}}
        page.messages.append(
            {"id": "u", "role": "user", "content": [{"type": "text", "text": "look"}, image]}
        )
        await page.run(tools=[{"name": "mine", "description": "", "parameters": {}}], state={"a": 1})
        (message,) = teller.messages
        assert (message, message.instructions) == ("look", "be brief")
        assert message.attachments[0].data == b"hello"
        assert message.metadata["agui"]["state"] == {"a": 1}
        assert message.metadata["agui"]["tools"][0]["name"] == "mine"


async def test_the_state_is_shown_when_it_has_changed(stage_of, teller):
    async with stage_of(teller) as stage:
        page = Page(stage)
        shown = [
            [e["snapshot"] for e in await page.run("one") if e["type"] == "STATE_SNAPSHOT"] for _ in "ab"
        ]
        assert shown == [[{"turns": 1}], [{"turns": 1}, {"turns": 2}]]


async def test_a_service_that_speaks_plain_text_answers_with_its_next_frame(lab, stage_of):
    async def shout(request):
        websocket = await request.accept()
        with suppress(ConnectionClosed):
            while True:
                await websocket.send_message((await websocket.get_message()).upper())

    async with stage_of() as stage:
        stage.gateway.update(RoutingTable((await lab.instance("echo", shout, max_sessions=1),)))
        page = Page(stage)
        assert text(await page.run("hello")) == "HELLO"
        assert text(await page.run("again")) == "AGAIN"
        page.interrupts = [{"id": "ask"}]
        assert (await page.resume(True))[-1]["code"] == "unknown_step"
        await stage.at_base()


class WithSeams(AGUI):
    """With routes for what other fronts do with a thread."""

    def __init__(self) -> None:
        super().__init__()
        self.routes = (
            *self.routes,
            Route("POST", "/agui/{service}/connect", self._connect),
            Route("POST", "/agui/{service}/stop", self._stop),
        )

    async def _connect(self, exchange):
        asked = await exchange.read(lambda body: RunInput.of(body, connects=True))
        await self.runs.connect(exchange, exchange.parts["service"], asked)

    async def _stop(self, exchange):
        asked = await exchange.read(dict)
        stopped = await self.runs.stop(exchange, "echo", asked["threadId"], asked.get("runId"))
        await exchange.reply(200, b"true" if stopped else b"false")


@pytest.fixture
def seams(monkeypatch):
    monkeypatch.setattr("agentmgr.fronts.agui.AGUI", WithSeams)


async def test_who_connects_reads_what_was_said_and_what_runs(stage_of, teller, seams):
    async with stage_of(teller) as stage:
        reader, page = Page(stage), Page(stage)
        assert await post(stage, "echo/connect", reader.body()) == [
            {"type": "RUN_STARTED", "threadId": "t1", "runId": "t1-run-1", "protocolVersion": "1.0"},
            {"type": "MESSAGES_SNAPSHOT", "messages": []},
            {"type": "RUN_FINISHED", "threadId": "t1", "runId": "t1-run-1", "outcome": {"type": "success"}},
        ]
        assert not teller.sessions
        await page.run("one")
        reader.take(await post(stage, "echo/connect", reader.body()))
        assert [m["content"] for m in reader.messages] == ["one", "Well. 0 before"]
        async with await stage.send(request("POST", "/agui/echo", page.body("wait"))) as stream:
            while b"Well. " not in await stream.receive_some():
                pass
            got = []

            async def connect():
                got.extend(await post(stage, "echo/connect", reader.body()))

            async with trio.open_nursery() as nursery:
                nursery.start_soon(connect)
                while len(stage.gateway.connections()) < 2:  # noqa: ASYNC110
                    await trio.sleep(0.005)
                teller.go_on.set()
        reader.take(got)
        contents = ["one", "Well. 0 before", "wait", "Well. 2 before"]
        assert [m["content"] for m in reader.messages] == contents
        assert text(await reader.run("three", runId="r3")) == "Well. 4 before"  # its history is the session's
        await stage.at_base()


async def test_who_connects_to_an_open_question_gets_it_and_answers(stage_of, teller, seams):
    async with stage_of(teller) as stage:
        page, reader = Page(stage), Page(stage)
        await page.run("delete it")
        events = await post(stage, "echo/connect", reader.body())
        reader.take(events)
        assert (text(events), reader.interrupts[0]["id"]) == ("Well. ", page.interrupts[0]["id"])
        assert text(await reader.resume(True, runId=events[0]["runId"])) == "deleted"
        events = await post(stage, "echo/connect", reader.body())
        assert [m["content"] for m in events[2]["messages"]] == ["delete it", "Well. deleted"]
        await stage.at_base()


async def test_what_runs_can_be_stopped(stage_of, teller, seams):
    async with stage_of(teller) as stage:
        page = Page(stage)

        async def stop(**more):
            return (await stage.ask("POST", "/agui/echo/stop", {"threadId": "t1", **more}))[2]

        assert await stop() is False
        asked = await page.run("delete it")
        assert await stop(runId="other") is False
        assert await stop(runId=asked[0]["runId"]) is True
        assert await stop() is False
        await stage.at_base()
        assert (await page.resume(True))[-1]["code"] == "unknown_step"
        body = page.body("wait")
        async with await stage.send(request("POST", "/agui/echo", body)) as stream:
            got = b""
            while b"Well. " not in got:
                got += await stream.receive_some()
            assert await stop() is True
            while b"RUN_FINISHED" not in got:
                got += await stream.receive_some()
        assert b'"outcome":{"type":"cancelled"}' in got


async def test_events_that_are_gone_are_a_gap_and_a_snapshot(stage_of, teller, seams):
    async def talks(message, session):
        for number in range(60):
            yield f"{number} "
        if message == "wait":
            await teller.go_on.wait()
        yield "end"

    async with stage_of(talks, host={"limits": SessionLimits(buffer_events=20)}) as stage:
        page = Page(stage)
        body = page.body("wait")
        async with await stage.send(request("POST", "/agui/echo", body)) as stream:
            got = b""
            while b'"59 "' not in got:
                got += await stream.receive_some()
        await stage.at_base()
        teller.go_on.set()
        for events in (await post(stage, "echo", body), await post(stage, "echo/connect", page.body())):
            page.take(events)
            assert page.messages[-1]["content"].endswith("58 59 end")
        names = [e.get("name") for e in await post(stage, "echo", body)]
        assert "agentmgr.gap" in names
