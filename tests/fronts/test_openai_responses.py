"""The Responses API's translator: tables, and what holds whatever an agent says."""

from __future__ import annotations

import json
from typing import Any

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from agentmgr.fronts.openai_input import ResponsesRequest
from agentmgr.fronts.openai_responses import ResponseEvents, in_sse
from agentmgr.fronts.problem import Problem
from agentmgr.fronts.response_id import ResponseId
from tests.fronts.test_openai_chat import JSON, event

ID = ResponseId("echo", "ses_" + "0" * 40 + ".ins_1", "req_1", 3, 1700000000)
EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
ENDS = {
    "completed": "response.completed",
    "cancelled": "response.incomplete",
    "incomplete": "response.incomplete",
    "failed": "response.failed",
}


def told(*said: dict[str, Any], known: ResponseId = ID) -> tuple[ResponseEvents, list[dict[str, Any]]]:
    events = ResponseEvents(known)
    made = events.begin()
    for each in said:
        made += events.feed(each)
    return events, made


def ask(step_id: str = "ask_1") -> dict[str, Any]:
    return event("user_confirm", {"tool": "rm", "args": {"a": 1}, "message": "Really?"}, step_id=step_id)


def text_of(response: dict[str, Any]) -> str:
    return "".join(
        part["text"] for item in response["output"] if item["type"] == "message" for part in item["content"]
    )


def well_formed(made: list[dict[str, Any]], *, ended: bool) -> None:
    """As a client reads it: each item and part is begun, filled and done, one after another."""
    assert [each["sequence_number"] for each in made] == list(range(len(made)))
    assert made[0]["type"] == "response.created"
    items: dict[int, dict[str, Any]] = {}
    text: dict[int, str] = {}
    for each in made:
        EVENT.validate_python(each)
        kind, index = each["type"], each.get("output_index")
        if kind == "response.output_item.added":
            assert index == len(items)
            assert all(item["done"] for item in items.values())
            items[index] = {"id": each["item"]["id"], "done": False}
            text[index] = ""
        elif kind == "response.output_item.done":
            assert not items[index]["done"]
            items[index] |= {"done": True, "item": each["item"]}
            parts = each["item"].get("content", each["item"].get("summary", []))
            assert "".join(part["text"] for part in parts) == text[index]
        elif index is not None:
            assert each["item_id"] == items[index]["id"]
            assert not items[index]["done"]
            text[index] += each.get("delta", "")
            assert each.get("text", text[index]) == text[index]
    assert len({item["id"] for item in items.values()}) == len(items)
    ends = [each for each in made if each["type"] in ENDS.values()]
    assert len(ends) == ended
    if ended:
        assert made[-1] is ends[0]
        assert all(item["done"] for item in items.values())
        assert ENDS[made[-1]["response"]["status"]] == made[-1]["type"]


def test_the_events_of_a_plain_answer():
    _, made = told(
        event("thinking", "hm"),
        event("partial_answer", "Hel"),
        event("partial_answer", "lo"),
        event("usage", {"input_tokens": 3, "output_tokens": 2, "model": "m"}),
        event("final_answer", "Hello!"),
    )
    assert [each["type"].removeprefix("response.") for each in made] == [
        "created",
        "in_progress",
        "output_item.added",
        "reasoning_summary_part.added",
        "reasoning_summary_text.delta",
        "reasoning_summary_text.done",
        "reasoning_summary_part.done",
        "output_item.done",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.delta",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "completed",
    ]
    well_formed(made, ended=True)
    response = made[-1]["response"]
    assert text_of(response) == "Hello!"
    assert (response["usage"]["input_tokens"], response["usage"]["total_tokens"]) == (3, 5)
    Response.model_validate(response)


@pytest.mark.parametrize(
    ("end", "status", "code"),
    [
        (event("final_answer", "x"), "completed", None),
        (event("interrupted", {"reason": "cancelled by the client"}), "cancelled", None),
        (event("interrupted", {"reason": "a newer message"}), "incomplete", "interrupted"),
        (
            event("interrupted", {"reason": "stop", "code": "service_stopped"}),
            "incomplete",
            "service_stopped",
        ),
        (
            event("error", {"error_id": "err_1", "type": "ValueError", "message": "bad"}),
            "failed",
            "agent_error",
        ),
        (event("error", {"code": "instance_lost", "message": "gone"}), "failed", "instance_lost"),
        (event("timeout", {"timeout_s": 3}), "failed", "turn_timeout"),
        (event("session_end", {"reason": "ended"}), "failed", "session_ended"),
    ],
)
def test_each_end_of_a_turn_is_one_of_a_response(end, status, code):
    events, made = told(event("partial_answer", "x"), end)
    well_formed(made, ended=True)
    response = events.response()
    assert (events.finished, response["status"]) == (True, status)
    found = (response["error"] or {}).get("type") or (response["incomplete_details"] or {}).get("code")
    assert found == code
    assert events.feed(event("partial_answer", "more")) == []


def test_tools_are_reasoning_and_never_calls():
    _, made = told(event("tool_call", {"tool": "look", "args": {}}), event("final_answer", "x"))
    assert [item["type"] for item in made[-1]["response"]["output"]] == ["reasoning", "message"]


def test_a_question_ends_a_response_and_the_next_one_says_what_follows():
    turn = [
        event("partial_answer", "Well."),
        ask(),
        {"event": "system.notice", "seq": 9, "step_id": "ask_1", "content": {"code": "answered"}},
        event("partial_answer", " Done."),
        event("final_answer", "Well. Done. Bye."),
    ]
    first, made = told(*turn)
    well_formed(made, ended=True)
    request = made[-1]["response"]["output"][-1]
    assert (request["type"], request["name"], request["arguments"]) == (
        "mcp_approval_request",
        "rm",
        '{"a": 1}',
    )
    assert ResponseId.parse(request["id"]) == ID
    assert (first.question, text_of(first.response())) == ("ask_1", "Well.")
    second, made = told(*turn, known=evolve(ID, part=1))
    well_formed(made, ended=True)
    assert text_of(second.response()) == " Done. Bye."


def test_a_turn_that_runs_again_says_its_answer_anew():
    restarted = {"event": "system.notice", "content": {"code": "turn_restarted", "message": "again"}}
    _, made = told(
        event("partial_answer", "first"),
        restarted,
        event("partial_answer", "sec"),
        event("final_answer", "second"),
    )
    well_formed(made, ended=True)
    assert text_of(made[-1]["response"]) == "second"


def test_in_the_background_it_is_queued_first():
    events, made = told(known=evolve(ID, background=True))
    assert [each["type"] for each in made] == ["response.created", "response.queued"]
    made += events.feed(event("final_answer", "x"))
    assert made[2]["type"] == "response.in_progress"
    well_formed(made, ended=True)


SAID = st.lists(
    st.tuples(
        st.sampled_from(
            ["thinking", "partial_answer", "tool_call", "tool_result", "usage", "custom", "user_confirm"]
        ),
        st.text() | JSON,
    ),
    max_size=8,
)
END = st.sampled_from(["final_answer", "interrupted", "error", "timeout", "session_end"])


@given(SAID, END, st.text() | JSON, st.integers(0, 8), st.integers(0, 2), st.booleans())
def test_a_stream_is_well_formed_whatever_is_said_and_wherever_it_is_cut(
    said, end, content, cut, part, background
):
    known = evolve(ID, part=part, background=background)
    turn = [event(name, each) for name, each in said] + [event(end, content)]
    _, seen = told(*turn[:cut], known=known)
    events, made = told(*turn, known=known)
    assert made[: len(seen)] == seen  # read again, it says the same
    passed = [each["event"] for each in turn].count("agent.user_confirm") >= part
    well_formed(made, ended=passed)
    assert events.finished is passed
    for line in in_sse(made).split(b"\n\n")[:-1]:
        name, data = line.split(b"\n")
        assert name.removeprefix(b"event: ").decode() == json.loads(data.removeprefix(b"data: "))["type"]
    if passed:
        shown = events.response()
        assert shown == made[-1]["response"]
        Response.model_validate(shown)


NAMES = st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]), min_size=1, max_size=80)


@given(NAMES, st.integers(0, 2**50), st.integers(0, 99), st.booleans())
def test_an_id_is_read_as_it_was_written(model, after, part, background):
    known = ResponseId(model, ID.session_id, "req_1", after, 5, part, background)
    assert ResponseId.parse(str(known)) == known


@given(st.text() | st.binary().map(lambda data: f"resp_{data.hex()}"))
def test_any_other_word_is_no_id(word):
    assert ResponseId.parse(word) is None


def refused(**body: Any) -> tuple[str, str | None]:
    with pytest.raises(Problem) as caught:
        ResponsesRequest.of({"model": "echo", "input": "hi"} | body)
    assert caught.value.status == 400
    return caught.value.code, caught.value.param


def user(content: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": content}]


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        ({"model": None}, "missing_field", "model"),
        ({"model": ""}, "invalid_field", "model"),
        ({"model": 3}, "invalid_field", "model"),
        ({"input": None}, "missing_field", "input"),
        ({"input": ""}, "invalid_field", "input"),
        ({"input": 3}, "invalid_field", "input"),
        ({"input": []}, "invalid_field", "input"),
        ({"input": ["hi"]}, "invalid_field", "input[0]"),
        ({"input": [{"role": "robot", "content": "hi"}]}, "invalid_field", "input[0].role"),
        ({"input": [{"content": "hi"}]}, "missing_field", "input[0].role"),
        ({"input": [{"role": "user"}]}, "missing_field", "input[0].content"),
        ({"input": [{"role": "assistant", "content": "hi"}]}, "invalid_field", "input"),
        ({"input": user(3)}, "invalid_field", "input[0].content"),
        ({"input": user([3])}, "invalid_field", "input[0].content[0]"),
        ({"input": user([{"type": "input_audio"}])}, "invalid_field", "input[0].content[0].type"),
        (
            {"input": user([{"type": "input_image", "file_id": "f"}])},
            "missing_field",
            "input[0].content[0].image_url",
        ),
        (
            {"input": user([{"type": "input_image", "image_url": "x"}])},
            "invalid_field",
            "input[0].content[0].image_url",
        ),
        (
            {"input": user([{"type": "input_file", "file_id": "f"}])},
            "missing_field",
            "input[0].content[0].file_data",
        ),
        ({"input": [{"type": "image_generation", "id": "x"}]}, "invalid_field", "input[0].type"),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "item_not_found", "input[0].id"),
        ({"input": [{"type": "item_reference", "id": f"msg_0.{ID.word}"}]}, "invalid_field", "input"),
        (
            {"input": [{"type": "mcp_approval_response", "approval_request_id": "x", "approve": True}]},
            "approval_not_found",
            "input[0].approval_request_id",
        ),
        (
            {"input": [{"type": "mcp_approval_response", "approval_request_id": str(ID), "approve": "yes"}]},
            "invalid_field",
            "input[0].approve",
        ),
        ({"instructions": []}, "invalid_field", "instructions"),
        ({"stream": "yes"}, "invalid_field", "stream"),
        ({"store": 1}, "invalid_field", "store"),
        ({"metadata": []}, "invalid_field", "metadata"),
        ({"background": True, "store": False}, "invalid_field", "background"),
        ({"conversation": "c", "store": False}, "invalid_field", "conversation"),
        ({"conversation": "", "store": True}, "invalid_field", "conversation"),
        ({"conversation": {}}, "missing_field", "conversation.id"),
        ({"conversation": "c", "previous_response_id": "resp_1"}, "invalid_field", "conversation"),
        ({"previous_response_id": 3}, "invalid_field", "previous_response_id"),
    ],
)
def test_what_is_wrong_with_a_request_is_said_of_its_field(body, code, param):
    assert refused(**body) == (code, param)


def test_an_input_is_a_history_and_the_newest_message():
    asked = ResponsesRequest.of(
        {
            "model": "echo",
            "instructions": "be brief",
            "unknown": {},
            "input": [
                {"role": "developer", "content": "in English"},
                {"role": "user", "content": "one"},
                {"type": "reasoning", "id": "rs_1", "summary": []},
                {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "O"}]},
                {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "K"}]},
                {"type": "function_call_output", "call_id": "c", "output": "x"},
                {
                    "role": "user",
                    "content": [
                        {"type": "input_text", "text": "two"},
                        {"type": "input_image", "image_url": "https://example.org/a.png", "detail": "auto"},
                        {"type": "input_file", "file_data": "aGk=", "filename": "a.txt"},
                    ],
                },
            ],
        }
    )
    assert asked.prompt.instructions == "be brief\n\nin English"
    assert [(said.role, said.text) for said in asked.prompt.history] == [("user", "one"), ("assistant", "OK")]
    assert asked.prompt.message.text == "two"
    assert [part.kind for part in asked.prompt.message.attachments] == ["image", "file"]


def test_behind_a_response_all_of_the_input_is_new():
    said = [{"role": "user", "content": "one"}, {"role": "user", "content": "two"}]
    asked = ResponsesRequest.of({"input": said, "previous_response_id": "resp_1"})
    assert (asked.model, asked.prompt.message.text, asked.prompt.history) == ("", "one\n\ntwo", ())
    assert refused(input=[{"role": "assistant", "content": "x"}, *said], previous_response_id="resp_1") == (
        "invalid_field",
        "input",
    )


def test_an_item_that_is_referred_to_is_of_the_response_before():
    _, made = told(event("partial_answer", "hi"), event("thinking", "hm"), ask())
    names = {each["item"]["id"] for each in made if each["type"] == "response.output_item.added"}
    assert len(names) == 3
    for name in names:
        item = {"type": "item_reference", "id": name}
        asked = ResponsesRequest.of({"model": "echo", "input": [*user("one"), item, *user("two")]})
        assert (asked.previous, asked.prompt.message.text, asked.prompt.history) == (str(ID), "two", ())
    answer = {"type": "mcp_approval_response", "approval_request_id": name, "approve": True}
    asked = ResponsesRequest.of({"model": "echo", "input": [*user("one"), item, answer]})
    assert asked.approval is not None
    assert asked.previous is None
    asked = ResponsesRequest.of({"model": "echo", "input": [*user("one"), item, answer, item, *user("two")]})
    assert (asked.approval, asked.previous) == (None, str(ID))
