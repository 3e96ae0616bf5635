"""Threads and runs of AG-UI, in a gateway before hosted agents."""

from __future__ import annotations

from typing import Any

import pytest
import trio

from tests.fronts.agui import Page, kinds, text


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
        if message == "wait":
            await self.go_on.wait()
        if "delete" in message:
            await session.emit("agent.tool_call", {"tool": "rm", "args": {"a": 1}}, step_id="call")
            agreed = await session.confirm("rm", {"a": 1}, message="Really?")
            await session.emit("agent.tool_result", {"tool": "rm", "result": bool(agreed)}, step_id="call")
            yield "deleted" if agreed else "kept"
        else:
            yield f"{len(session.history)} before"
        session.state["turns"] = self.turns


@pytest.fixture
def teller():
    return Teller()


async def test_a_thread_is_a_session_and_a_run_is_a_turn(stage_of, teller):
    async with stage_of(teller) as stage:
        page = Page(stage)
        events = await page.run("one")
        assert kinds(events) == [
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
        assert (kinds(events)[:4], text(events)) == (
            ["RUN_STARTED", "TOOL_CALL_START", "TOOL_CALL_END", "TOOL_CALL_RESULT"],
            "deleted",
        )
        assert teller.turns == 1
        assert text(await page.run("next")) == "Well. 2 before"
        await stage.at_base()
