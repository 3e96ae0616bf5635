"""Events as updates: whatever an agent says, an editor can take it."""

from __future__ import annotations

from typing import Any

import pytest
from acp import schema
from hypothesis import given
from hypothesis import strategies as st

from agentmgr import protocol
from agentmgr.acp.replay import replay
from agentmgr.acp.rpc import RpcError
from agentmgr.acp.updates import Updates, joined, permission, result_of
from agentmgr.client.events import AgentEvent

ANY = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=2), inner, max_size=2),
    max_leaves=4,
)
CONTENT = ANY | st.fixed_dictionaries(
    {},
    optional={
        "tool": st.sampled_from(["a", "b"]),
        "args": ANY,
        "result": ANY,
        "success": st.booleans(),
        "message": ANY,
        "code": st.sampled_from(["answered", "turn_restarted", "gap"]),
        "confirmed": ANY,
        "missing_from": st.just(1),
        "missing_to": st.just(2),
        "input_tokens": ANY,
    },
)
NAMES = (
    protocol.THINKING,
    protocol.TOOL_CALL,
    protocol.TOOL_RESULT,
    protocol.PARTIAL_ANSWER,
    protocol.USER_CONFIRM,
    protocol.USAGE,
    protocol.NOTICE,
    *sorted(protocol.TURN_ENDS),
    "agent.own",
)
STEPS = st.sampled_from([None, "s1", "s2"])
EVENTS = st.lists(st.tuples(st.sampled_from(NAMES), CONTENT, STEPS), max_size=20).map(
    lambda said: [
        AgentEvent(name, content, "ses", step, seq) for seq, (name, content, step) in enumerate(said, start=2)
    ]
)


def is_valid(update: Any) -> None:
    read = schema.SessionNotification.model_validate({"sessionId": "s", "update": update})
    assert read.model_dump(mode="json", by_alias=True, exclude_unset=True)["update"] == update


def are_in_order(updates: list[Any], *, is_over: bool) -> None:
    """Tool calls begin once, end once, and none is left when the turn is over."""
    begun: set[str] = set()
    running: set[str] = set()
    for update in updates:
        is_valid(update)
        match update["sessionUpdate"]:
            case "tool_call":
                assert update["toolCallId"] not in begun
                begun.add(update["toolCallId"])
                running.add(update["toolCallId"])
            case "tool_call_update":
                assert update["status"] in ("completed", "failed")
                running.remove(update["toolCallId"])
            case _:
                assert update["content"]["text"]
    if is_over:
        assert not running


@given(EVENTS)
def test_whatever_is_said_makes_a_sequence_that_an_editor_can_take(events):
    updates, said = Updates(), []
    for event in events:
        said += updates.feed(event)
        for question in updates.questions.values():
            asked = {"sessionId": "s", **permission(question)}
            read = schema.RequestPermissionRequest.model_validate(asked)
            assert read.model_dump(mode="json", by_alias=True, exclude_unset=True) == asked
        if event.event in protocol.TURN_ENDS:
            for cancelled in (True, False):
                try:
                    result = result_of(event, updates.usage, cancelled=cancelled)
                    schema.PromptResponse.model_validate(result)
                except RpcError as error:
                    schema.Error.model_validate(error.plain)
    is_over = bool(events) and events[-1].event in protocol.TURN_ENDS
    are_in_order(said, is_over=is_over)
    are_in_order(joined(said), is_over=is_over)


HISTORY = st.lists(
    ANY | st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant"]), "content": ANY}),
    max_size=6,
)
RUNNING = st.none() | st.fixed_dictionaries({"step_id": st.sampled_from(["s1", "s2"]), "content": ANY})


@given(EVENTS, HISTORY, RUNNING)
def test_whatever_is_loaded_makes_one_too(events, history, running):
    said, updates = replay(events, {"history": history, "turn": running})
    shown = [update for update in said if "toolCallId" in update]
    ends = [update for update in shown if update["sessionUpdate"] == "tool_call_update"]
    assert len(shown) - len(ends) >= len(updates.questions)
    for update in said:
        is_valid(update)


TURNS = st.lists(
    st.tuples(
        st.text(min_size=1, max_size=3),  # the message
        st.lists(st.text(min_size=1, max_size=3), max_size=3),  # what is streamed
        st.sampled_from(sorted(protocol.TURN_ENDS)),
    ),
    max_size=5,
)


def told(turns, *, running, seeds=()):
    """The events of these turns, and the state that the host shows behind them."""
    events: list[AgentEvent] = []
    history: list[dict[str, Any]] = list(seeds)
    runs = None
    expected = [(entry["role"], entry["content"]) for entry in seeds]

    def say(name, content, step):
        events.append(AgentEvent(name, content, "ses", step, len(events) + 2))

    for number, (message, streamed, end) in enumerate(turns):
        step, text = f"s{number}", "".join(streamed)
        expected.append(("user", message))
        for piece in streamed:
            say(protocol.PARTIAL_ANSWER, piece, step)
            expected.append(("assistant", piece))
        if running and number == len(turns) - 1:
            runs = {"step_id": step, "content": message}
            break
        say(end, text if end == protocol.FINAL_ANSWER else {}, step)
        history.append({"role": "user", "content": message})
        if end == protocol.FINAL_ANSWER:
            history.append({"role": "assistant", "content": text})
        elif streamed:
            history.append({"role": "assistant", "content": text, "incomplete": True})
    return events, {"history": history, "turn": runs}, expected


def merged(lines):
    found: list[list[str]] = []
    for role, text in lines:
        if found and found[-1][0] == role:
            found[-1][1] += text
        else:
            found.append([role, text])
    return found


def lines_of(updates):
    roles = {"user_message_chunk": "user", "agent_message_chunk": "assistant"}
    return merged((roles[update["sessionUpdate"]], update["content"]["text"]) for update in updates)


@given(TURNS, st.booleans(), st.integers(0, 20))
def test_a_conversation_is_loaded_as_it_was_also_where_its_older_events_are_gone(turns, running, gone):
    seeds = [{"role": "user", "content": "seed"}, {"role": "assistant", "content": "ed"}]
    events, state, expected = told(turns, running=running, seeds=seeds)
    said, _ = replay(events, state)
    assert lines_of(said) == merged(expected)
    ends = [place for place, event in enumerate(events, start=1) if event.event in protocol.TURN_ENDS]
    if ends:
        said, _ = replay(events[ends[gone % len(ends)] :], state)
        assert lines_of(said) == merged(expected)


def test_a_history_that_its_author_has_changed_is_shown_as_it_is():
    events, _, _ = told([("a", ["b"], protocol.FINAL_ANSWER)], running=False)
    said, _ = replay(events, {"history": [{"role": "assistant", "content": "a summary"}]})
    assert lines_of(said) == [["assistant", "a summary"]]
    said, _ = replay(events, {"history": []})
    assert lines_of(said) == [["assistant", "b"]]


@pytest.mark.parametrize(
    ("name", "content", "cancelled", "reason"),
    [
        (protocol.FINAL_ANSWER, "a", False, "end_turn"),
        (protocol.FINAL_ANSWER, "a", True, "cancelled"),
        (protocol.INTERRUPTED, {"reason": "r"}, False, "cancelled"),
        (protocol.INTERRUPTED, {"reason": "r", "code": "service_stopped"}, False, None),
        (protocol.AGENT_ERROR, {"message": "m"}, False, None),
        (protocol.AGENT_ERROR, {"message": "m"}, True, "cancelled"),
        (protocol.TIMEOUT, {"timeout_s": 5}, False, None),
    ],
)
def test_how_a_prompt_ends(name, content, cancelled, reason):
    if reason is None:
        with pytest.raises(RpcError) as failed:
            result_of(AgentEvent(name, content), None, cancelled=cancelled)
        assert failed.value.code == -32603
    else:
        ended = result_of(AgentEvent(name, content), None, cancelled=cancelled)
        assert ended == {"stopReason": reason}


def test_a_long_text_comes_in_pieces():
    said = Updates().feed(AgentEvent(protocol.FINAL_ANSWER, "x" * 20_000, "ses", "s", 2))
    assert [len(update["content"]["text"]) for update in said] == [8192, 8192, 3616]
