"""AG-UI's RunAgentInput: tables, and what holds for every body."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentmgr.fronts.agui_input import RunInput, session_name
from agentmgr.fronts.problem import Problem
from agentmgr.fronts.prompt import Attachment, ChatMessage
from tests.fronts.agui import JSON

USER = {"id": "u1", "role": "user", "content": "hi"}
AGENT = {"id": "a1", "role": "assistant", "content": "hello"}


def body(*messages, **more):
    return {"threadId": "t", "runId": "r", "messages": list(messages) or [USER], **more}


def test_of_the_messages_the_newest_of_the_user_is_said_and_the_rest_is_history():
    asked = RunInput.of(
        body(
            {"id": "s", "role": "system", "content": "be brief"},
            {"id": "1", "role": "user", "content": "one"},
            {"id": "2", "role": "assistant", "content": "two "},
            {"id": "3", "role": "reasoning", "content": "hm"},
            {"id": "4", "role": "assistant", "toolCalls": [{"id": "c1", "type": "function", "function": {}}]},
            {"id": "5", "role": "tool", "content": "done", "toolCallId": "c1"},
            {"id": "6", "role": "assistant", "content": "halves"},
            {"id": "d", "role": "developer", "content": [{"type": "text", "text": "in verse"}]},
            {"id": "7", "role": "user", "content": [{"type": "text", "text": "three"}]},
            state={"a": 1},
            tools=[{"name": "mine"}],
            context=[{"description": "x", "value": "y"}],
            forwardedProps={},
            protocolVersion="1.0",
            something_unknown=1,
        )
    )
    assert asked.prompt.message == ChatMessage("user", "three")
    assert asked.prompt.history == (ChatMessage("user", "one"), ChatMessage("assistant", "two halves"))
    assert asked.prompt.instructions == "be brief\n\nin verse"
    assert asked.calls == {"c1"}
    assert (asked.modern, asked.nothing_new, len(asked.messages)) == (True, False, 9)
    metadata = asked.prompt.metadata
    assert metadata["agui"] == {
        "state": {"a": 1},
        "tools": [{"name": "mine"}],
        "context": [{"description": "x", "value": "y"}],
    }
    assert metadata["confirm_timeout"] == 30 * 86_400


def test_a_whole_answer_stands_in_place_of_what_was_streamed_before_it():
    draft = {"id": "a0", "role": "assistant", "content": "draft"}
    final = {"id": "r-final", "role": "assistant", "content": "other"}
    asked = RunInput.of(body(USER, draft, final, {**USER, "id": "u2"}))
    assert asked.prompt.history == (ChatMessage("user", "hi"), ChatMessage("assistant", "other"))


def test_images_and_files_are_attachments():
    parts = [
        {"type": "image", "source": {"type": "data", "value": "AAAA", "mimeType": "image/png"}},
        {"type": "image", "source": {"type": "url", "value": "https://a.example/b.png"}},
        {"type": "document", "source": {"type": "data", "value": "AA==", "mimeType": "application/pdf"}},
        {"type": "binary", "mimeType": "image/png", "data": "AAAA", "filename": "c.png"},
    ]
    assert RunInput.of(body({"id": "u", "role": "user", "content": parts})).prompt.message.attachments == (
        Attachment("image", "data:image/png;base64,AAAA"),
        Attachment("image", "https://a.example/b.png"),
        Attachment("file", "data:application/pdf;base64,AA=="),
        Attachment("image", "data:image/png;base64,AAAA", "c.png"),
    )


@pytest.mark.parametrize(
    ("payload", "confirmed"),
    [
        (True, True),
        (False, False),
        ("yes", True),
        ("否", False),
        ({"confirmed": True}, True),
        ({"approved": True, "note": "x"}, True),
        ({"approved": "no"}, False),
    ],
)
def test_only_yes_is_yes(payload, confirmed):
    (answer,) = RunInput.of(
        body(resume=[{"interruptId": "q", "status": "resolved", "payload": payload}])
    ).answers
    assert (answer.question, answer.cancelled, answer.content["confirmed"]) == ("q", False, confirmed)
    (answer,) = RunInput.of(body(resume=[{"interruptId": "q", "status": "cancelled"}])).answers
    assert (answer.cancelled, answer.content["confirmed"]) == (True, False)


def test_the_tilde_of_a_thread_is_not_that_of_a_branch():
    assert session_name("a~2") == "agui:a~~2"
    assert len(session_name("x" * 10_000)) == len("agui:") + 64


@pytest.mark.parametrize(
    ("bad", "param"),
    [
        ({}, "threadId"),
        ({"threadId": "t"}, "runId"),
        ({"threadId": 1, "runId": "r"}, "threadId"),
        ({"threadId": "", "runId": "r"}, "threadId"),
        ({"threadId": "t", "runId": ""}, "runId"),
        ({"threadId": "t", "runId": "r" * 257}, "runId"),
        ({"threadId": "t", "runId": "r"}, "messages"),
        (body(messages={}), "messages"),
        ({"threadId": "t", "runId": "r", "messages": []}, "messages"),
        (body(AGENT), "messages"),
        (body({**USER, "content": ""}), "messages"),
        (body("hi"), "messages[0]"),
        (body({"content": "hi"}), "messages[0].role"),
        (body({**USER, "role": "narrator"}), "messages[0].role"),
        (body({**USER, "content": 1}), "messages[0].content"),
        (body({**USER, "content": ["hi"]}), "messages[0].content[0]"),
        (body({**USER, "content": [{"text": "hi"}]}), "messages[0].content[0].type"),
        (body({**USER, "content": [{"type": "text"}]}), "messages[0].content[0].text"),
        (body({**USER, "content": [{"type": "hologram"}]}), "messages[0].content[0].type"),
        (body({**USER, "content": [{"type": "image"}]}), "messages[0].content[0].source"),
        (
            body({**USER, "content": [{"type": "image", "source": {"type": "file", "value": "f"}}]}),
            "messages[0].content[0].source.type",
        ),
        (
            body({**USER, "content": [{"type": "image", "source": {"type": "url", "value": "file:///etc"}}]}),
            "messages[0].content[0].source.value",
        ),
        (body(protocolVersion=1), "protocolVersion"),
        (body(resume={}), "resume"),
        (body(resume=["q"]), "resume[0]"),
        (body(resume=[{"status": "resolved"}]), "resume[0].interruptId"),
        (body(resume=[{"interruptId": "q"}]), "resume[0].status"),
        (body(resume=[{"interruptId": "q", "status": "maybe"}]), "resume[0].status"),
        (body(resume=[{"interruptId": "q", "status": "resolved"}]), "resume[0].payload"),
        (
            body(resume=[{"interruptId": "q", "status": "resolved", "payload": "perhaps"}]),
            "resume[0].payload",
        ),
        (body(resume=[{"interruptId": "q", "status": "cancelled"}] * 65), "resume"),
    ],
)
def test_what_is_of_a_wrong_type_is_named(bad, param):
    with pytest.raises(Problem) as caught:
        RunInput.of(bad)
    assert (caught.value.status, caught.value.param) == (400, param)


ROLE = st.sampled_from(["user", "assistant", "system", "tool", "reasoning"])
PART = st.fixed_dictionaries(
    {}, optional={"type": st.sampled_from(["text", "image", "binary"]) | JSON, "text": JSON, "source": JSON}
)
MESSAGE = st.fixed_dictionaries(
    {}, optional={"id": JSON, "role": ROLE | JSON, "content": JSON | st.lists(PART, max_size=2),
                  "toolCalls": JSON}
)  # fmt: skip
RESUME = st.fixed_dictionaries(
    {}, optional={"interruptId": st.text() | JSON, "payload": JSON,
                  "status": st.sampled_from(["resolved", "cancelled"]) | JSON}
)  # fmt: skip
BODY = st.fixed_dictionaries(
    {}, optional={"threadId": st.text() | JSON, "runId": st.text(min_size=1) | JSON,
                  "messages": st.lists(MESSAGE | JSON, max_size=3) | JSON,
                  "resume": st.lists(RESUME | JSON, max_size=2) | JSON, "state": JSON, "tools": JSON}
)  # fmt: skip


@given(BODY)
def test_any_body_is_taken_or_is_a_problem(asked):
    found = None
    try:
        taken = RunInput.of(asked)
    except Problem as problem:
        found = problem
    if found is None:
        assert taken.prompt is not None or taken.answers
    else:
        assert found.status == 400
        assert found.param
