"""One agent tells the same story through each protocol, also to a client that was cut off and comes back."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import trio
from attrs import evolve
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agentmgr.acp.replay import replay
from agentmgr.acp.updates import Updates
from agentmgr.client.events import decode
from agentmgr.fronts.agui_events import RunStream
from agentmgr.fronts.openai_chat import ChatAnswer
from agentmgr.fronts.openai_responses import ResponseEvents, in_sse
from agentmgr.fronts.problem import Problem
from agentmgr.journal.sqlite import open_journal
from tests.fronts import story
from tests.fronts.story import Line
from tests.fronts.tellers import (
    Teller,
    answers_of,
    over_acp,
    over_agui,
    over_chat,
    over_responses,
    over_responses_socket,
    over_websocket,
)
from tests.fronts.test_openai_responses import ID

TURN = "req_1"
WORDS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=6)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | WORDS, lambda each: st.lists(each, max_size=2)
)
TOOLS = st.sampled_from(["add", "look"])
STEP = st.one_of(
    st.tuples(st.just("say"), WORDS),
    st.tuples(st.just("think"), WORDS),
    st.tuples(st.just("use"), TOOLS, st.dictionaries(WORDS, JSON, max_size=2), JSON, st.booleans()),
    st.tuples(st.just("count"), st.integers(0, 9), st.integers(0, 9)),
    st.tuples(st.just("ask"), TOOLS, st.sampled_from(["Really?", "确定?"]), st.booleans()),
)  # fmt: skip
END = st.sampled_from(["done", "final", "stopped", "failed", "late"])
SCRIPTS = st.tuples(st.lists(STEP, max_size=5), END)


def events_of(script: Any) -> list[dict[str, Any]]:
    """As a host says it."""
    steps, end = script
    said: list[tuple[str, Any, str]] = []
    streamed = ""
    for number, (kind, *rest) in enumerate(steps):
        match kind, rest:
            case "say", [text]:
                said.append(("agent.partial_answer", text, TURN))
                streamed += text
            case "think", [text]:
                said.append(("agent.thinking", text, TURN))
            case "use", [tool, args, result, success]:
                step_id = f"tool_{number}"
                said.append(("agent.tool_call", {"tool": tool, "args": args}, step_id))
                content = {"tool": tool, "result": result, "success": success}
                said.append(("agent.tool_result", content, step_id))
            case "count", [read, written]:
                content = {"input_tokens": read, "output_tokens": written, "model": "m"}
                said.append(("agent.usage", content, TURN))
            case "ask", [tool, message, yes]:
                content = {"tool": tool, "args": {"n": number}, "message": message, "timeout_s": 60}
                said.append(("agent.user_confirm", content, f"ask_{number}"))
                said.append(("system.notice", {"code": "answered", "confirmed": yes}, f"ask_{number}"))
    match end:
        case "done" | "final":
            said.append(("agent.final_answer", streamed + ("!" if end == "final" else ""), TURN))
        case "stopped":
            said.append(("agent.interrupted", {"reason": "cancelled by the client"}, TURN))
        case "failed":
            said.append(("agent.error", {"error_id": "err_1", "message": "it failed"}, TURN))
        case "late":
            said.append(("agent.timeout", {"timeout_s": 5}, TURN))
    return [
        {
            "event": name,
            "content": content,
            "step_id": step_id,
            "seq": 5 + number,
            "timestamp": "2026-01-01T00:00:00Z",
        }
        for number, (name, content, step_id) in enumerate(said)
    ]


def questions_in(events: list[dict[str, Any]]) -> list[int]:
    """Where each part begins."""
    return [0, *(n + 1 for n, event in enumerate(events) if event["event"] == "agent.user_confirm")]


def in_chat(events: list[dict[str, Any]]) -> Iterator[bytes]:
    """The stream of each part."""
    already = ""
    for begin in questions_in(events):
        told = ChatAnswer("c", 1, "echo", include_usage=True, show_tools=True, already=already)
        data = b""
        for event in events[begin:]:
            if told.finished:
                break
            try:
                data += told.feed(event)
            except Problem as problem:
                data += told.cut_off(problem)
                break
        already = told.streamed
        yield data


def in_responses(events: list[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    for part in range(len(questions_in(events))):
        told = ResponseEvents(evolve(ID, part=part))
        yield told.begin() + [made for event in events for made in told.feed(event)]


def in_agui(events: list[dict[str, Any]], begin: int, after: int = 0) -> bytes:
    """The stream of the part that begins there, to a client that has our events up to `after`."""
    told = RunStream("t1", f"run_{begin}")
    for event in events[:begin]:
        told.feed(event)
    told.go_on()
    rest = events[begin:]
    while rest and rest[0]["seq"] <= after:
        told.feed(rest.pop(0))
    return told.begin() + b"".join(map(told.feed, rest))


def in_acp(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    updates = Updates()
    return [made for event in events for made in updates.feed(decode(json.dumps(event)))]


def loaded_in_acp(events: list[dict[str, Any]], known: int) -> list[dict[str, Any]]:
    """What an editor is shown that loads the session when so many events are there, and what comes then."""
    message = {"role": "user", "content": "go"}
    state: dict[str, Any] = {"history": [], "turn": {**message, "step_id": TURN}}
    if known == len(events):
        streamed = "".join(e["content"] for e in events if e["event"] == "agent.partial_answer")
        final = events[-1]["content"] if events[-1]["event"] == "agent.final_answer" else streamed
        has_answer = events[-1]["event"] == "agent.final_answer" or streamed
        state = {"history": [message, *([{"role": "assistant", "content": final}] if has_answer else [])]}
    as_they_came = [decode(json.dumps(event)) for event in events]
    shown, updates = replay(as_they_came[:known], state)
    return shown + [made for event in as_they_came[known:] for made in updates.feed(event)]


def each_cut(data: bytes, heard: story.Heard) -> Iterator[tuple[list[dict[str, str]], list[Line]]]:
    """What a client has that was cut off, and what it has heard: for each byte of the stream."""
    last: tuple[list[dict[str, str]], list[Line]] | None = None
    for cut in range(len(data) + 1):
        if last is None or data[cut - 2 : cut] == b"\n\n":
            came = story.frames(data[:cut])
            last = came, heard(came)
        yield last


@given(SCRIPTS)
@settings(max_examples=40, deadline=None)
def test_each_protocol_tells_the_story_and_each_beginning_of_its_stream_a_beginning(script):
    events = events_of(script)
    parts = story.parts_of(events)
    for part, data in zip(parts, in_chat(events), strict=True):
        whole = story.as_chat(part)
        check_each_cut(data, story.heard_in_chat, whole)
    for part, made in zip(parts, in_responses(events), strict=True):
        whole = story.without_calls(part)
        check_each_cut(
            in_sse(made), lambda came: story.heard_in_responses(json.loads(f["data"]) for f in came), whole
        )
    for part, begin in zip(parts, questions_in(events), strict=True):
        check_each_cut(in_agui(events, begin), story.heard_in_agui, part)
    whole, shown = story.as_acp(parts, answers_of(script)), in_acp(events)
    assert story.heard_in_acp(shown) == whole
    for cut in range(len(shown)):
        assert story.begins(story.heard_in_acp(shown[:cut]), whole)


def check_each_cut(data: bytes, heard: story.Heard, whole: list[Line]) -> None:
    assert heard(story.frames(data)) == whole
    seen: list[Line] | None = None
    for _, told in each_cut(data, heard):
        if told is not seen:
            assert story.begins(told, whole), (told, whole)
            seen = told


@given(SCRIPTS)
@settings(max_examples=40, deadline=None)
def test_who_comes_back_hears_the_rest_and_nothing_twice(script):
    events = events_of(script)
    parts = story.parts_of(events)
    for part, made in zip(parts, in_responses(events), strict=True):
        seen = None
        for came, _ in each_cut(in_sse(made), lambda came: []):
            if came is seen:
                continue
            seen = came
            known = [json.loads(frame["data"]) for frame in came]
            after = known[-1]["sequence_number"] if known else -1
            rest = [event for event in made if event["sequence_number"] > after]
            assert story.heard_in_responses([*known, *rest]) == story.without_calls(part)
    for part, begin in zip(parts, questions_in(events), strict=True):
        data, seen = in_agui(events, begin), None
        for came, _ in each_cut(data, lambda came: []):
            if came is seen:
                continue
            seen = came
            after = max((int(frame["id"]) for frame in came if "id" in frame), default=0)
            again = story.frames(in_agui(events, begin, after))
            assert story.heard_in_agui([*came, *again]) == part
    for known in range(len(events) + 1):
        shown = story.heard_in_acp(loaded_in_acp(events, known))
        assert shown == story.as_acp(parts, answers_of(script))


LIVE = st.tuples(st.lists(STEP, max_size=5), st.sampled_from(["done", "final", "failed"]))


@given(LIVE, st.none() | st.floats(0, 1))
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_an_agent_tells_it_through_a_gateway_to_each_client(stage_of, script, cut):
    trio.run(tell_each, stage_of, script, cut)


async def tell_each(stage_of, script, cut):
    async with stage_of(Teller()) as stage:
        parts = await over_websocket(stage, script)
        assert await over_websocket(stage, script, cut) == parts
        assert await over_chat(stage, script) == [story.as_chat(part) for part in parts]
        assert await over_responses(stage, script, cut) == [story.without_calls(part) for part in parts]
        assert await over_responses_socket(stage, script) == [story.without_calls(part) for part in parts]
        assert await over_agui(stage, script, cut) == parts
        await stage.at_base()


async def test_an_editor_is_told_it_too_and_once_more_when_it_loads_the_session(stage_of, tmp_path):
    steps = [
        ("think", "hm"), ("say", "Well. "), ("use", "look", {"a": [1]}, None, True), ("count", 3, 2),
        ("ask", "rm", "Really?", True), ("use", "rm", {}, "no", False), ("ask", "rm", "确定?", False),
        ("count", 1, 1), ("say", "Done"),
    ]  # fmt: skip
    script = (steps, "final")
    instance = "ins_0000000000000001"
    async with (
        open_journal(tmp_path / "echo.db", instance) as journal,
        stage_of(Teller(), host={"journal": journal, "instance_id": instance}) as stage,
    ):
        whole = story.as_acp(await over_websocket(stage, script), answers_of(script))
        first, again, result = await over_acp(stage, script)
    assert (first, again) == (whole, whole)
    assert result == ("end_turn", 4, 3)
