"""AG-UI's translators: tables, and what holds for every body, every turn and every cut."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentmgr.fronts.agui_events import RunStream, transcript
from agentmgr.fronts.agui_turns import run_begins
from agentmgr.fronts.problem import Problem
from tests.fronts.agui import JSON, check, kinds, read, text

USER = {"id": "u1", "role": "user", "content": "hi"}


def stream(**more):
    return RunStream("t", "r", messages=(USER,), **more)


def event(name, content="", **more):
    return {"event": f"agent.{name}", "step_id": "r", "content": content, **more}


def notice(code, **content):
    return {"event": "system.notice", "step_id": "r", "content": {"code": code, "message": "", **content}}


def told(*events, **more):
    """All that a stream says of these, read and judged."""
    run = stream(**more)
    data = run.begin() + b"".join(map(run.feed, events))
    return read(data + (b"" if run.finished else run.feed(event("interrupted"))))


def test_a_run_is_started_reasoned_called_answered_and_finished():
    events = told(
        event("thinking", "hm", seq=2),
        event("thinking", " so", seq=3),
        event("tool_call", {"tool": "add", "args": {"a": 1}}, step_id="c1", seq=4),
        event("tool_result", {"tool": "add", "result": 2, "success": True}, step_id="c1", seq=5),
        event("partial_answer", "Hel", seq=6),
        event("partial_answer", "", seq=7),
        event("partial_answer", "lo", seq=8),
        event("usage", {"input_tokens": 3, "output_tokens": 2, "model": "m"}, seq=9),
        event("usage", {"input_tokens": 1, "output_tokens": 1, "model": "m"}, seq=10),
        event("final_answer", "Hello", seq=11),
    )
    assert kinds(events) == [
        "RUN_STARTED",
        "REASONING_START",
        "REASONING_MESSAGE_START",
        "REASONING_MESSAGE_CONTENT",
        "REASONING_MESSAGE_CONTENT",
        "REASONING_MESSAGE_END",
        "REASONING_END",
        "TOOL_CALL_START",
        "TOOL_CALL_ARGS",
        "TOOL_CALL_END",
        "TOOL_CALL_RESULT",
        "TEXT_MESSAGE_START",
        "TEXT_MESSAGE_CONTENT",
        "TEXT_MESSAGE_CONTENT",
        "TEXT_MESSAGE_END",
        "RUN_FINISHED",
    ]
    assert events[0] == {"type": "RUN_STARTED", "threadId": "t", "runId": "r", "protocolVersion": "1.0"}
    assert (events[7]["toolCallId"], events[7]["toolCallName"], events[8]["delta"]) == (
        "c1",
        "add",
        '{"a":1}',
    )
    assert (events[10]["toolCallId"], events[10]["content"]) == ("c1", "2")
    assert events[-1] == {
        "type": "RUN_FINISHED",
        "threadId": "t",
        "runId": "r",
        "outcome": {"type": "success"},
        "usage": [{"model": "m", "inputTokens": 4, "outputTokens": 3}],
        "id": 11,
    }
    assert [event.get("id") for event in events] == [
        None, None, None, 2, 3, None, None, None, 4, 4, 5, None, 6, 8, 11, 11
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("streamed", "final", "shown"),
    [
        ("", "whole", "whole"),
        ("", {"a": "é"}, '{"a": "é"}'),
        ("begin", "begin and end", "begin and end"),
        ("all", "all", "all"),
        ("of a very long stream", "of a very", "of a very long stream"),
        ("draft", "other", "draftother"),
    ],
)
def test_of_a_final_answer_what_was_not_streamed_is_said(streamed, final, shown):
    events = told(event("partial_answer", streamed), event("final_answer", final))
    assert text(events) == shown
    assert events[-1].get("result") == (None if isinstance(final, str) else final)
    if shown == "draftother":
        assert [e["messageId"] for e in events if e["type"] == "TEXT_MESSAGE_END"] == ["r-n1", "r-final"]


def test_a_question_closes_what_is_open_and_is_the_interrupt_of_the_run():
    events = told(
        event("tool_call", {"tool": "rm", "args": None}, step_id="c1"),
        event("partial_answer", "Well."),
        event(
            "user_confirm",
            {"tool": "rm", "args": {"name": "a"}, "message": "", "timeout_s": 90.5},
            step_id="ask_1",
            timestamp="2026-01-31T23:59:00.000Z",
        ),
        event("partial_answer", "not said"),
    )
    assert kinds(events)[-2:] == ["TEXT_MESSAGE_END", "RUN_FINISHED"]
    assert events[-1]["outcome"] == {
        "type": "interrupt",
        "interrupts": [
            {
                "id": "ask_1",
                "reason": "confirmation",
                "message": "May I run rm(name='a')?",
                "toolCallId": "c1",
                "responseSchema": {
                    "type": "object",
                    "properties": {"confirmed": {"type": "boolean"}, "message": {"type": "string"}},
                    "required": ["confirmed"],
                },
                "expiresAt": "2026-02-01T00:00:30.500Z",
                "metadata": {"tool": "rm", "args": {"name": "a"}},
            }
        ],
    }


def test_the_ends_of_a_turn_are_those_of_the_run():
    assert told(event("interrupted", {"reason": "cancelled"}))[-1]["outcome"] == {"type": "cancelled"}
    assert "outcome" not in told(event("interrupted", {"reason": "cancelled"}), modern=False)[-1]
    for failure, code in (
        (event("error", {"error_id": "err_1", "type": "ValueError", "message": "bad"}), "agent_error"),
        (event("error", {"code": "instance_lost", "message": "gone"}), "instance_lost"),
        (event("error", "text"), "agent_error"),
        (event("timeout", {"timeout_s": 3}), "turn_timeout"),
        (event("session_end", {"reason": "ended"}), "session_ended"),
    ):
        events = told(event("partial_answer", "so far"), failure)
        assert (events[-1]["type"], events[-1]["code"]) == ("RUN_ERROR", code)


def test_a_stream_that_is_cut_off_says_so_once():
    problem = Problem(503, "gateway_stopping", "It ends.")
    assert kinds(read(stream().cut_off(problem))) == ["RUN_STARTED", "RUN_ERROR"]
    run = stream()
    data = run.begin() + run.feed(event("partial_answer", "so"))
    assert kinds(read(data + run.cut_off(problem)))[-2:] == ["TEXT_MESSAGE_END", "RUN_ERROR"]
    assert run.cut_off(problem) == b""


def test_calls_of_one_step_id_are_not_one_call_to_the_client():
    calls = [event("tool_call", {"tool": "a", "args": n}, step_id="x", seq=n) for n in (1, 2)]
    calls += [event("tool_call", {"tool": "b", "args": {}}, seq=3), event("tool_call", "odd", step_id=None)]
    ids = [
        e["toolCallId"] for e in told(*calls, taken=frozenset({"x"}))[1:] if e["type"] == "TOOL_CALL_START"
    ]
    assert ids == ["x-r-1", "x-r-2", "r-3", "r-n4"]


def test_a_result_without_a_call_has_one_in_the_stream():
    events = told(event("tool_result", {"tool": "a", "result": {"b": 1}, "success": False}, step_id="x"))
    assert kinds(events)[1:4] == ["TOOL_CALL_START", "TOOL_CALL_END", "TOOL_CALL_RESULT"]
    assert (events[3]["content"], events[3]["metadata"]) == ('{"b": 1}', {"success": False})


def test_after_a_gap_the_client_is_shown_what_is_known():
    run = stream()
    data = run.begin() + run.feed(event("partial_answer", "lost"))
    data += run.feed(notice("gap", missing_from=3, missing_to=9))
    data += run.feed(event("partial_answer", "tail")) + run.feed(event("final_answer", "all of the tail"))
    events = read(data)
    gap = events[kinds(events).index("CUSTOM")]
    assert (gap["name"], gap["value"]) == ("agentmgr.gap", {"missing_from": 3, "missing_to": 9})
    snapshots = [place for place, e in enumerate(events) if e["type"] == "MESSAGES_SNAPSHOT"]
    assert [events[place]["messages"] for place in snapshots] == [[USER], [USER]]
    assert text(events[snapshots[-1] :]) == "all of the tail"


def test_a_turn_that_runs_again_drops_what_it_had_said():
    events = told(event("partial_answer", "first"), notice("turn_restarted"), event("final_answer", "second"))
    after = kinds(events).index("MESSAGES_SNAPSHOT")
    assert (events[after - 1]["name"], text(events[after:])) == ("agentmgr.turn_restarted", "second")


def test_other_events_of_the_agent_are_custom():
    events = told(event("chart", {"bars": [1]}), notice("answered"), {"event": "agent.state_restored"})
    assert [(e["name"], e["value"]) for e in events[1:-1]] == [("agent.chart", {"bars": [1]})]


def test_a_history_is_messages_with_ids_that_stay():
    ours = [{"role": "user", "content": {"text": "hi"}}, {"role": "assistant", "content": ["a"]}]
    assert transcript(ours, "t", 4) == [
        {"id": "t-4", "role": "user", "content": "hi"},
        {"id": "t-5", "role": "assistant", "content": '["a"]'},
    ]


NAME = st.sampled_from(
    ["thinking", "partial_answer", "tool_call", "tool_result", "user_confirm", "usage", "chart",
     "final_answer", "interrupted", "error", "timeout", "session_end", "session_created"]
)  # fmt: skip
FIELDS = st.fixed_dictionaries(
    {}, optional={"tool": st.sampled_from(["a", "b"]) | JSON, "args": JSON, "result": JSON, "success": JSON,
                  "message": JSON, "timeout_s": JSON, "code": JSON, "input_tokens": JSON,
                  "output_tokens": JSON, "model": JSON}
)  # fmt: skip
STEP = st.sampled_from(["r", "c1", "c2", None])
OURS = st.one_of(
    st.builds(lambda n, c, s: event(n, c, step_id=s), NAME, FIELDS | JSON | st.text(), STEP),
    st.builds(lambda text: event("partial_answer", text), st.text(min_size=1, max_size=4)),
    st.builds(lambda text: event("thinking", text), st.text(min_size=1, max_size=4)),
    st.builds(notice, st.sampled_from(["gap", "turn_restarted", "answered", "odd"])),
)
TURN = st.lists(OURS, max_size=12).map(
    lambda events: [each | {"seq": seq} for seq, each in enumerate(events, start=2)]
)


def shown(data):
    """What a client has of a stream in the end: texts, calls and results."""
    texts, calls, results = {}, {}, {}
    for each in data:
        match each["type"]:
            case "TEXT_MESSAGE_CONTENT" | "REASONING_MESSAGE_CONTENT":
                texts[each["messageId"]] = texts.get(each["messageId"], "") + each["delta"]
            case "TOOL_CALL_ARGS":
                calls[each["toolCallId"]] = calls.get(each["toolCallId"], "") + each["delta"]
            case "TOOL_CALL_RESULT":
                results[each["toolCallId"]] = each["content"]
            case "MESSAGES_SNAPSHOT":
                texts, calls, results = {}, {}, {}
    return texts, calls, results


@given(TURN, st.booleans(), st.sets(st.sampled_from(["c1", "c2"])))
def test_whatever_the_agent_says_the_stream_is_valid(turn, modern, taken):
    run = stream(modern=modern, taken=frozenset(taken))
    data = run.begin({"a": 1}) + b"".join(map(run.feed, turn))
    if not run.finished:
        data += run.cut_off(Problem(502, "connection_lost", "It has gone."))
    read(data)


@given(TURN, st.data())
def test_wherever_a_stream_is_cut_the_rest_is_valid_and_nothing_is_missing(turn, drawn):
    whole = stream()
    data = whole.begin() + b"".join(map(whole.feed, turn)) + whole.feed(event("final_answer", "", seq=99))
    cut = drawn.draw(st.integers(0, len(data)))
    # As a client reads it: of a frame that is not whole, nothing.
    got = check(data[: data.rfind(b"\n\n", 0, cut) + 2] if b"\n\n" in data[:cut] else b"", cut=True)
    after = max((each["id"] for each in got if "id" in each), default=0)
    again = stream()
    known = [each for each in turn if each["seq"] <= after]
    for each in known:
        again.feed(each)
    rest = again.begin() + b"".join(map(again.feed, turn[len(known) :]))
    rest += again.feed(event("final_answer", "", seq=99))
    resumed = read(rest)
    # What came behind the last id comes again, so that much of the first stream does not count.
    places = [place for place, each in enumerate(got) if "id" in each]
    kept = got[: places[-1] + 1] if places else []
    assert shown(kept + resumed) == shown(read(data))


@given(TURN)
def test_services_without_sessions_have_no_ids(turn):
    run = stream()
    data = run.begin() + b"".join(run.feed({k: v for k, v in e.items() if k != "seq"}) for e in turn)
    if not run.finished:
        data += run.feed(event("final_answer", "x"))
    assert not any("id" in each for each in read(data))


def test_a_run_begins_at_its_message_or_behind_the_question_that_it_answers():
    def ends(step):
        return event("final_answer", step_id=step)

    events = [
        event("session_created", step_id=None),
        event("partial_answer", step_id="r1"),
        ends("r1"),
        event("tool_call", step_id="c"),
        event("partial_answer", step_id="r2"),
        event("user_confirm", step_id="q"),
        notice("answered", answer_id="r3") | {"step_id": "q"},
        event("partial_answer", step_id="r2"),
    ]
    assert run_begins(events, "r1", "r2") == (0, 0)
    assert run_begins(events, "r2", "r2") == (3, 3)
    assert run_begins(events, "r3", "r2") == (3, 6)
    assert run_begins(events, "r4", "r2") is None
    assert run_begins([*events, ends("r2")], "r4", "r4") == (9, 9)
