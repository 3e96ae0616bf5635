"""Chat Completions' translator: tables, and what holds for every body and every turn."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentmgr.fronts.openai_chat import DONE, ChatAnswer, ChatRequest
from agentmgr.fronts.problem import Problem
from agentmgr.fronts.prompt import Attachment, ChatMessage

TEXT = {"type": "text"}
USER = {"role": "user", "content": "hi"}


def body(*messages, **more):
    return {"model": "echo", "messages": list(messages) or [USER], **more}


def answer(**more):
    return ChatAnswer("chatcmpl-1", 1700000000, "echo", **more)


def event(name, content="", **more):
    return {"event": f"agent.{name}", "content": content, **more}


def chunks(data):
    """The JSON of each event of a stream, and whether it is done."""
    texts = [text.removeprefix("data: ") for text in data.decode().split("\n\n") if text]
    return [json.loads(text) for text in texts if text != "[DONE]"], texts[-1:] == ["[DONE]"]


def test_a_conversation_is_its_newest_message_what_came_before_and_instructions():
    asked = ChatRequest.of(
        body(
            {"role": "system", "content": "be brief"},
            {"role": "user", "content": "one"},
            {"role": "assistant", "content": "two"},
            {"role": "assistant", "content": None, "tool_calls": []},
            {"role": "tool", "content": "of the client's own", "tool_call_id": "a"},
            {"role": "developer", "content": [{"type": "text", "text": "in verse"}]},
            {
                "role": "user",
                "content": [{"type": "text", "text": "three"}, {"type": "text", "text": "four"}],
            },
            stream=True,
            stream_options={"include_usage": True},
            temperature=0.3,
            something_unknown={"a": 1},
        )
    )
    assert (asked.model, asked.stream, asked.include_usage) == ("echo", True, True)
    assert asked.prompt.message == ChatMessage("user", "three\nfour")
    assert asked.prompt.history == (
        ChatMessage("user", "one"),
        ChatMessage("assistant", "two"),
        ChatMessage("assistant", ""),
    )
    assert asked.prompt.instructions == "be brief\n\nin verse"
    assert asked.prompt.metadata == {"instructions": "be brief\n\nin verse"}


def test_images_and_files_are_attachments():
    parts = [
        {"type": "image_url", "image_url": {"url": "https://a.example/b.png", "detail": "low"}},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
        {"type": "file", "file": {"filename": "a.pdf", "file_data": "data:application/pdf;base64,AA=="}},
        {"type": "file", "file": {"file_data": "AA=="}},
    ]
    prompt = ChatRequest.of(body({"role": "user", "content": parts})).prompt
    assert prompt.message.attachments == (
        Attachment("image", "https://a.example/b.png"),
        Attachment("image", "data:image/png;base64,AAAA"),
        Attachment("file", "data:application/pdf;base64,AA==", "a.pdf"),
        Attachment("file", "data:application/octet-stream;base64,AA=="),
    )
    assert prompt.metadata["attachments"][2] == {
        "kind": "file",
        "url": "data:application/pdf;base64,AA==",
        "name": "a.pdf",
    }


@pytest.mark.parametrize(
    ("bad", "param"),
    [
        ({}, "model"),
        ({"model": 1}, "model"),
        ({"model": "echo"}, "messages"),
        ({"model": "echo", "messages": {}}, "messages"),
        ({"model": "echo", "messages": []}, "messages"),
        (body("hi"), "messages[0]"),
        (body({"content": "hi"}), "messages[0].role"),
        (body({"role": "narrator", "content": "hi"}), "messages[0].role"),
        (body({"role": "user", "content": 1}), "messages[0].content"),
        (body({"role": "user", "content": ""}), "messages"),
        (body(USER, {"role": "assistant", "content": "yes"}), "messages"),
        (body({"role": "system", "content": "hi"}), "messages"),
        (body({"role": "user", "content": ["hi"]}), "messages[0].content[0]"),
        (body({"role": "user", "content": [{"text": "hi"}]}), "messages[0].content[0].type"),
        (body({"role": "user", "content": [{"type": "text"}]}), "messages[0].content[0].text"),
        (body({"role": "user", "content": [{"type": "input_audio"}]}), "messages[0].content[0].type"),
        (
            body({"role": "user", "content": [{"type": "image_url", "image_url": {"url": "file:///etc"}}]}),
            "messages[0].content[0].image_url.url",
        ),
        (
            body({"role": "user", "content": [{"type": "file", "file": {"file_id": "file-1"}}]}),
            "messages[0].content[0].file.file_data",
        ),
        (
            body(
                {
                    "role": "user",
                    "content": [{"type": "image_url", "image_url": {"url": "https://a.example"}}] * 33,
                }
            ),
            "messages[0].content",
        ),
        (body(stream="yes"), "stream"),
        (body(stream=1), "stream"),
        (body(n=2), "n"),
        (body(n=True), "n"),
        (body(modalities=["text", "audio"]), "modalities"),
        (body(stream_options=[]), "stream_options"),
        (body(stream_options={"include_usage": 1}), "stream_options.include_usage"),
        (body(metadata="a"), "metadata"),
        (body(prompt_cache_key=1), "prompt_cache_key"),
    ],
)
def test_what_is_of_a_wrong_type_is_named(bad, param):
    with pytest.raises(Problem) as caught:
        ChatRequest.of(bad)
    assert (caught.value.status, caught.value.param) == (400, param)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)
PART = st.fixed_dictionaries({}, optional={"type": st.sampled_from(["text", "file", "image_url"]) | JSON,
                                           "text": JSON, "file": JSON, "image_url": JSON})  # fmt: skip
MESSAGE = st.fixed_dictionaries(
    {}, optional={"role": st.sampled_from(["user", "system", "assistant"]) | JSON,
                  "content": JSON | st.lists(PART, max_size=2)}
)  # fmt: skip


BODY = st.fixed_dictionaries(
    {}, optional={"model": st.text() | JSON, "stream": JSON, "n": JSON,
                  "messages": st.lists(MESSAGE | JSON, max_size=3) | JSON}
)  # fmt: skip


@given(BODY)
def test_any_body_is_taken_or_is_a_problem(asked):
    found = None
    try:
        prompt = ChatRequest.of(asked).prompt
    except Problem as problem:
        found = problem
    if found is None:
        assert prompt.message.text or prompt.message.attachments
    else:
        assert found.status == 400
        assert found.param


def test_a_stream_is_role_reasoning_content_stop_usage_and_done():
    told = answer(include_usage=True)
    data = b"".join(
        map(
            told.feed,
            [
                event("thinking", "hm"),
                event("tool_call", {"tool": "a", "args": {}}),
                event("partial_answer", "Hel"),
                event("partial_answer", "lo"),
                event("usage", {"input_tokens": 3, "output_tokens": 2}),
                event("usage", {"input_tokens": 1, "output_tokens": 1}),
                event("final_answer", "Hello"),
            ],
        )
    )
    seen, done = chunks(data)
    assert done
    assert [chunk["choices"][0]["delta"] for chunk in seen if chunk["choices"]] == [
        {"role": "assistant", "content": ""},
        {"reasoning_content": "hm"},
        {"content": "Hel"},
        {"content": "lo"},
        {},
    ]
    assert seen[-2]["choices"][0]["finish_reason"] == "stop"
    assert seen[-1]["usage"] == {"prompt_tokens": 4, "completion_tokens": 3, "total_tokens": 7}
    assert all(chunk["usage"] is None for chunk in seen[:-1])
    whole = json.loads(told.whole())
    message = whole["choices"][0]["message"]
    assert (message["content"], message["reasoning_content"]) == ("Hello", "hm")
    assert whole["usage"]["total_tokens"] == 7


def test_tools_are_lines_of_reasoning_where_asked_for_and_never_tool_calls():
    told = answer(show_tools=True)
    data = told.feed(event("tool_call", {"tool": "add", "args": {"a": 1}}))
    data += told.feed(event("tool_result", {"tool": "add", "result": 2, "success": True}))
    data += told.feed(event("tool_result", {"tool": "add", "result": "no", "success": False}))
    assert told.reasoning == '\n[add {"a": 1}]\n\n[add: 2]\n\n[add failed: no]\n'
    assert b"tool_calls" not in data


@pytest.mark.parametrize(
    ("already", "streamed", "final", "shown"),
    [
        ("", "", "whole", "whole"),
        ("", "", {"a": "é"}, '{"a": "é"}'),
        ("", "begin", "begin and end", "begin and end"),
        ("", "all", "all", "all"),
        ("", "of a very long stream", "of a very", "of a very long stream"),
        ("", "draft", "other", "draft\n\nother"),
        ("before it asked", " and after", "before it asked and after", " and after"),
        ("", "after", "unknown before, after", "after"),
    ],
)
def test_of_a_final_answer_what_was_not_streamed_is_said(already, streamed, final, shown):
    told = answer(already=already)
    told.feed(event("partial_answer", streamed))
    told.feed(event("final_answer", final))
    assert (told.content, told.finished) == (shown, True)


def test_a_question_is_text_and_ends_the_answer():
    told = answer()
    told.feed(event("partial_answer", "Well."))
    data = told.feed(event("user_confirm", {"tool": "rm", "args": {}, "message": "Really?"}, step_id="ask_1"))
    assert told.content == "Well.\n\nReally? [yes/no]"
    assert (told.finished, told.question) == (True, "ask_1")
    assert chunks(data)[1]


def test_an_interrupted_turn_stops_and_a_failed_one_is_a_problem():
    told = answer()
    told.feed(event("interrupted", {"reason": "cancelled"}))
    assert told.finished
    for failure, code in (
        (event("error", {"error_id": "err_1", "type": "ValueError", "message": "bad"}), "agent_error"),
        (event("error", {"code": "instance_lost", "message": "gone"}), "instance_lost"),
        (event("error", "text"), "agent_error"),
        (event("timeout", {"timeout_s": 3}), "turn_timeout"),
        (event("session_end", {"reason": "ended"}), "session_ended"),
    ):
        with pytest.raises(Problem) as caught:
            answer().feed(failure)
        assert (caught.value.status, caught.value.code, caught.value.retry) == (424, code, False)
    seen, done = chunks(told.cut_off(caught.value))
    assert (seen[0]["error"]["code"], done) == ("session_ended", False)


def test_a_turn_that_runs_again_says_its_answer_anew():
    told = answer()
    told.feed(event("partial_answer", "first try"))
    told.feed({"event": "system.notice", "content": {"code": "turn_restarted", "message": "again"}})
    told.feed(event("partial_answer", "second"))
    told.feed(event("final_answer", "second"))
    assert (told.content, told.shown) == ("second", "first try\n\nsecond")


SAID = st.lists(
    st.tuples(
        st.sampled_from(["thinking", "partial_answer", "tool_call", "usage", "custom"]), st.text() | JSON
    ),
    max_size=8,
)


@given(SAID, st.booleans(), st.booleans())
def test_a_stream_says_what_a_whole_answer_says(said, include_usage, show_tools):
    told = answer(include_usage=include_usage, show_tools=show_tools)
    data = b"".join(told.feed(event(name, content)) for name, content in said)
    data += told.feed(event("final_answer", told.content))
    assert data.endswith(DONE)
    seen, _ = chunks(data)
    deltas = [chunk["choices"][0]["delta"] for chunk in seen if chunk["choices"]]
    message = json.loads(told.whole())["choices"][0]["message"]
    assert "".join(delta.get("content", "") for delta in deltas) == message["content"]
    reasoning = "".join(delta.get("reasoning_content", "") for delta in deltas)
    assert reasoning == message.get("reasoning_content", "")
    assert deltas[0] == {"role": "assistant", "content": ""}
    assert sum(chunk["choices"][0]["finish_reason"] == "stop" for chunk in seen if chunk["choices"]) == 1
