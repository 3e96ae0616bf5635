"""What a front of AG-UI refuses, and clients that leave."""

from __future__ import annotations

from contextlib import suppress

import pytest
import trio
from trio_websocket import ConnectionClosed

from agentmgr.agent.limits import SessionLimits
from agentmgr.core.routing import RoutingTable
from agentmgr.models.host_config import OnDisconnect
from tests.fronts.agui import Page, post, text
from tests.fronts.conftest import Tokens, request


async def test_a_question_that_is_answered_elsewhere_is_none_for_a_resume(stage_of, teller):
    async with stage_of(teller) as stage:
        page = Page(stage)
        await page.run("delete it")
        (session,) = teller.sessions
        interrupts = page.interrupts
        session.answer(interrupts[0]["id"], True)
        await stage.at_base()  # no door waits any more
        events = await page.resume(True)
        assert [(e["type"], e.get("code")) for e in events[1:]] == [("RUN_ERROR", "unknown_step")]
        page.interrupts = interrupts
        assert (
            text(await page.resume(status="cancelled")) == "deleted"
        )  # given up, so that the thread goes on
        assert text(await page.run("next")) == "Well. 2 before"
        await stage.at_base()


async def test_a_question_that_has_expired_is_none_for_a_resume(stage_of, teller):
    async with stage_of(teller, host={"limits": SessionLimits(confirm_timeout=0.1)}) as stage:
        page = Page(stage)
        asked = await page.run("delete it")
        interrupts = page.interrupts
        assert "expiresAt" in interrupts[0]
        await stage.at_base()
        assert (await page.resume(True))[-1]["code"] == "unknown_step"
        page.interrupts = interrupts
        assert text(await page.resume(status="cancelled")) == "kept"
        assert asked[-1]["outcome"]["interrupts"] == interrupts
        await stage.at_base()


@pytest.mark.parametrize("thread", ["t1", "unknown"])
async def test_an_unknown_question_is_an_error_of_the_run(stage_of, teller, thread):
    async with stage_of(teller) as stage:
        await Page(stage).run("one")
        page = Page(stage, thread)
        page.messages.append({"id": "u", "role": "user", "content": "one"})
        page.interrupts = [{"id": "ask_unknown"}]
        page.runs = 10
        events = await page.resume(True)
        assert [(e["type"], e.get("code")) for e in events[1:]] == [("RUN_ERROR", "unknown_step")]
        assert teller.turns == 1
        await stage.at_base()


async def test_of_two_runs_at_once_one_is_busy(stage_of, teller):
    async with stage_of(teller) as stage:
        page, answers = Page(stage), []
        bodies = [page.body("wait"), page.body()]

        async def run(body):
            answers.append(await post(stage, "echo", body))
            teller.go_on.set()

        async with trio.open_nursery() as nursery:
            for body in bodies:
                nursery.start_soon(run, body)
        assert [(e["type"], e.get("code")) for e in answers[0][1:]] == [("RUN_ERROR", "busy")]
        assert answers[1][-1]["type"] == "RUN_FINISHED"
        assert teller.turns == 1
        await stage.at_base()


async def test_a_message_while_a_question_is_open_is_busy_and_leaves_it_open(stage_of, teller):
    async with stage_of(teller) as stage:
        page = Page(stage)
        await page.run("delete it")
        interrupts, page.interrupts = page.interrupts, []
        assert (await page.run("something else"))[-1]["code"] == "busy"
        page.interrupts = interrupts
        page.messages.pop()
        assert text(await page.resume(True)) == "deleted"


async def test_a_thread_is_its_owners(stage_of, teller):
    async with stage_of(teller, authenticator=Tokens()) as stage:
        assert (await Page(stage).run("hi"))[0] == 401
        for token, identity in (("good", "ann"), ("one", "bob")):
            page = Page(stage, Authorization=f"Bearer {token}")
            assert text(await page.run("hi")) == "Well. 0 before"
            assert (teller.sessions[-1].owner, teller.sessions[-1].name) == (identity, "agui:t1")
        assert len(teller.sessions) == 2
        ann, bob = (Page(stage, "t2", Authorization=f"Bearer {token}") for token in ("good", "one"))
        await ann.run("delete it")
        bob.messages, bob.interrupts = ann.messages, ann.interrupts
        assert (await bob.resume(True))[-1]["code"] == "unknown_step"
        assert text(await ann.resume(True)) == "deleted"


async def test_what_the_gateway_refuses_has_its_status_and_code(stage_of, teller):
    async with stage_of(teller, facts={"max_sessions": 1, "max_message_bytes": 3000}) as stage:
        page = Page(stage)
        status, said = await Page(stage, service="nothing").run("hi")
        assert (status, said["type"], said["code"]) == (404, "RUN_ERROR", "service_not_found")
        status, said = await page.run("x" * 4000)
        assert (status, said["code"]) == (413, "too_large")
        page.messages.clear()
        for body, expected in (
            (b"{", (400, "invalid_json")),
            (b"[]", (400, "invalid_json")),
            (b"{}", (400, "missing_field")),
            (page.body(messages="x"), (400, "invalid_field")),
            (page.body(messages=[]), (400, "invalid_field")),
        ):
            status, said = await post(stage, "echo", body)
            assert (status, said["code"]) == expected
            assert said["message"]
        async with await stage.send(request("POST", "/agui/echo", Page(stage, "busy").body("wait"))):
            while not teller.turns:  # noqa: ASYNC110
                await trio.sleep(0.005)
            status, said = await Page(stage, "t2").run("hi")
            assert (status, said["type"]) == (503, "RUN_ERROR")
        await stage.at_base()


async def test_what_the_host_refuses_is_an_error_of_the_run(stage_of, teller):
    async with stage_of(teller, host={"limits": SessionLimits(max_message_bytes=500)}) as stage:
        events = await Page(stage).run("x" * 600)
        assert [(e["type"], e.get("code")) for e in events[1:]] == [("RUN_ERROR", "too_large")]
        assert not teller.turns
        await stage.at_base()


async def test_an_agent_that_fails_is_an_error_of_the_run(stage_of):
    async def fails(message, session):
        yield "so far "
        raise ValueError("no")

    async with stage_of(fails) as stage:
        events = await Page(stage).run("hi")
        assert (text(events), events[-1]["type"], events[-1]["code"]) == (
            "so far ",
            "RUN_ERROR",
            "agent_error",
        )


async def test_a_client_may_leave_at_any_byte(stage_of, teller):
    async with stage_of(teller) as stage:
        page = Page(stage)
        for cut in range(1, 600, 31):
            body = page.body("delete it", threadId=f"cut{cut}")
            page.messages.clear()
            sent = request("POST", "/agui/echo", body, {"Connection": "close"})
            async with await stage.send(sent[:cut]):
                pass
            async with await stage.send(sent) as stream:
                got = b""
                while len(got) < cut and (more := await stream.receive_some(cut - len(got))):
                    got += more
        for session in teller.sessions:
            session.cancel()
        await stage.at_base()


@pytest.mark.parametrize("policy", list(OnDisconnect))
async def test_what_becomes_of_a_turn_whose_client_left_is_the_services_choice(stage_of, teller, policy):
    async with stage_of(teller, host={"limits": SessionLimits(on_disconnect=policy)}) as stage:
        body = Page(stage).body("wait")
        async with await stage.send(request("POST", "/agui/echo", body)):
            while not teller.turns:  # noqa: ASYNC110
                await trio.sleep(0.005)
        await stage.at_base()
        teller.go_on.set()
        events = await post(stage, "echo", body)
        kept = policy is OnDisconnect.CONTINUE
        assert events[-1]["outcome"]["type"] == ("success" if kept else "cancelled")
        page = Page(stage, "t2")  # a question waits with its door, whatever the service says
        await page.run("delete it")
        assert text(await page.resume(True)) == "deleted"


async def test_a_host_that_does_not_answer_is_not_taken_for_a_service_without_sessions(
    lab, stage_of, teller, monkeypatch
):
    monkeypatch.setattr("agentmgr.fronts.session._SILENCE_S", 0.1)

    async def silent(request):
        websocket = await request.accept()
        with suppress(ConnectionClosed):
            while True:
                await websocket.get_message()

    async with stage_of(teller) as stage:
        page = Page(stage)
        await page.run("one")
        stage.gateway.update(RoutingTable((await lab.instance("echo", silent),)))
        assert (await page.run("two"))[-1]["code"] == "session_unreachable"
        page.interrupts = [{"id": "ask"}]
        assert (await page.resume(True))[-1]["code"] == "session_unreachable"
        await stage.at_base()


async def test_a_question_keeps_its_seat_for_so_long_and_stays_open(stage_of, teller, monkeypatch):
    monkeypatch.setattr("agentmgr.fronts.cache.MOST_PATIENCE_S", 0.1)
    async with stage_of(teller) as stage:
        page = Page(stage)
        await page.run("delete it")
        await stage.at_base()
        assert text(await page.resume(True)) == "deleted"
        await stage.at_base()
