"""What a conversation tells, in the same words for each protocol: lines in their order.

text, thinking             (kind, text): neighbours of one kind are one line
call, result               ("call", tool, args), ("result", tool, result, success)
question                   ("question", tool, message)
end                        ("end", how): done, stopped, asked or failed
usage                      ("usage", input, output), at the end of a part

A part is what is told between two messages of the user: a turn has one more than it asks questions.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from agentmgr.fronts.openai_chat import as_text, tool_line

Line = tuple[Any, ...]
Event = Mapping[str, Any]
TEXTS = ("text", "thinking")
ENDS = {"final_answer": "done", "interrupted": "stopped", "error": "failed", "timeout": "failed"}


def merged(lines: Iterable[Line]) -> list[Line]:
    told: list[Line] = []
    for line in lines:
        if line[0] in TEXTS and not line[1]:
            continue
        if line[0] in TEXTS and told and told[-1][0] == line[0]:
            told[-1] = (line[0], told[-1][1] + line[1])
        else:
            told.append(line)
    return told


def begins(part: list[Line], whole: list[Line]) -> bool:
    """Whether it is told so far, and nothing else."""
    if not part:
        return True
    *before, last = part
    if len(part) > len(whole) or before != whole[: len(before)]:
        return False
    there = whole[len(before)]
    if last[0] in TEXTS:
        return there[0] == last[0] and str(there[1]).startswith(last[1])
    return last == there or (last[0] == "call" and last[2] is ... and last[:2] == there[:2])


def parts_of(events: Iterable[Event]) -> list[list[Line]]:
    """As our own protocol tells it."""
    parts: list[list[Line]] = [[]]
    streamed, used = "", [0, 0]

    def end(how: str) -> None:
        parts[-1] += [("end", how), ("usage", *used)]
        used[:] = 0, 0

    for event in events:
        name, content, part = event["event"].partition(".")[2], event.get("content"), parts[-1]
        match name:
            case "partial_answer":
                streamed += as_text(content)
                part.append(("text", as_text(content)))
            case "thinking":
                part.append(("thinking", content))
            case "tool_call":
                part.append(("call", content["tool"], content["args"]))
            case "tool_result":
                part.append(("result", content["tool"], as_text(content["result"]), content["success"]))
            case "usage":
                used[0] += content["input_tokens"]
                used[1] += content["output_tokens"]
            case "user_confirm":
                part.append(("question", content["tool"], content["message"]))
                end("asked")
                parts.append([])
            case "final_answer":
                part.append(("text", as_text(content).removeprefix(streamed)))
                end("done")
            case _ if name in ENDS:
                end(ENDS[name])
    return [merged(part) for part in parts]


def without_calls(part: list[Line]) -> list[Line]:
    """As a client hears it to whom tools are lines of reasoning."""
    return merged(_as_reasoning(line) for line in part)


def _as_reasoning(line: Line) -> Line:
    match line:
        case ("call", tool, args):
            return "thinking", tool_line("agent.tool_call", {"tool": tool, "args": args})
        case ("result", tool, result, success):
            content = {"tool": tool, "result": result, "success": success}
            return "thinking", tool_line("agent.tool_result", content)
    return line


def as_chat(part: list[Line]) -> list[Line]:
    """As Chat Completions has words for it: a question is text, and there is one good end."""
    told: list[Line] = []
    for line in without_calls(part):
        match line:
            case ("question", _, message):
                gap = "\n\n" if any(kind == "text" for kind, *_ in told) else ""
                told.append(("text", f"{gap}{message} [yes/no]"))
            case ("end", "failed"):
                return merged([*told, line])
            case ("end", _):
                told.append(("end", "done"))
            case _:
                told.append(line)
    return merged(told)


def as_acp(parts: list[list[Line]], answers: list[bool]) -> list[Line]:
    """As an editor is shown a whole turn, but for its end: a question is a line, and so is its answer."""
    told: list[Line] = []
    for part, answer in zip(parts, [*answers, None], strict=True):
        for line in part:
            if line[0] == "question":
                told += [("question", line[2]), ("answered", answer)]
            elif line[0] not in ("end", "usage"):
                told.append(line)
    return merged(told)


def heard_in_acp(updates: Iterable[Event]) -> list[Line]:
    told: list[Line] = []
    tools: dict[str, str] = {}
    for update in updates:
        call = update.get("toolCallId", "")
        match update["sessionUpdate"]:
            case "agent_message_chunk":
                told.append(("text", update["content"]["text"]))
            case "agent_thought_chunk":
                told.append(("thinking", update["content"]["text"]))
            case "tool_call" if call.startswith("ask_"):
                told.append(("question", update["title"]))
            case "tool_call":
                tools[call] = update["title"]
                told.append(("call", update["title"], update["rawInput"]))
            case "tool_call_update" if call.startswith("ask_"):
                told.append(("answered", update["status"] == "completed"))
            case "tool_call_update":
                success = update["status"] == "completed"
                told.append(("result", tools[call], as_text(update["rawOutput"]), success))
    return merged(told)


def frames(data: bytes) -> list[dict[str, str]]:
    """The server-sent events that are whole."""
    whole = b"".join(data.rpartition(b"\n\n")[:2]).decode()
    fields = [
        [line.partition(": ")[::2] for line in frame.split("\n") if line and not line.startswith(":")]
        for frame in whole.split("\n\n")
    ]
    return [dict(each) for each in fields if each]


def heard_in_chat(came: list[dict[str, str]]) -> list[Line]:
    told: list[Line] = []
    for frame in came:
        if frame["data"] == "[DONE]":
            continue
        chunk = json.loads(frame["data"])
        if "error" in chunk:
            return merged([*told, ("end", "failed")])
        for choice in chunk["choices"]:
            told.append(("thinking", choice["delta"].get("reasoning_content", "")))
            told.append(("text", choice["delta"].get("content", "")))
            if choice["finish_reason"] == "stop":
                told.append(("end", "done"))
        if (used := chunk.get("usage")) is not None:
            told.append(("usage", used["prompt_tokens"], used["completion_tokens"]))
    return merged(told)


RESPONSE_ENDS = {"completed": "done", "cancelled": "stopped", "incomplete": "stopped", "failed": "failed"}


def heard_in_responses(came: Iterable[dict[str, Any]]) -> list[Line]:
    told: list[Line] = []
    asked = False
    for event in came:
        kind, item = event["type"], event.get("item", {})
        if kind == "response.output_text.delta":
            told.append(("text", event["delta"]))
        elif kind == "response.reasoning_summary_text.delta":
            told.append(("thinking", event["delta"]))
        elif kind == "response.output_item.done" and item["type"] == "mcp_approval_request":
            asked = True
            told.append(("question", item["name"], item["message"]))
        elif (response := event.get("response")) is not None and response["usage"] is not None:
            how = RESPONSE_ENDS[response["status"]]
            used = response["usage"]
            told.append(("end", "asked" if asked else how))
            told.append(("usage", used["input_tokens"], used["output_tokens"]))
    return merged(told)


def heard_in_agui(came: list[dict[str, str]]) -> list[Line]:
    """As a client keeps it: by the ids of messages and calls, in the order in which they began."""
    told: dict[str, list[Any]] = {}
    end: list[Line] = []
    for frame in came:
        event = json.loads(frame["data"])
        match event["type"]:
            case "TEXT_MESSAGE_START":
                told.setdefault(event["messageId"], ["text", ""])
            case "REASONING_MESSAGE_START":
                told.setdefault(event["messageId"], ["thinking", ""])
            case "TEXT_MESSAGE_CONTENT" | "REASONING_MESSAGE_CONTENT":
                told[event["messageId"]][1] += event["delta"]
            case "TOOL_CALL_START":
                told.setdefault(event["toolCallId"], ["call", event["toolCallName"], ""])
            case "TOOL_CALL_ARGS":
                told[event["toolCallId"]][2] += event["delta"]
            case "TOOL_CALL_RESULT":
                tool = told[event["toolCallId"]][1]
                success = event.get("metadata", {}).get("success", True)
                told[event["messageId"]] = ["result", tool, event["content"], success]
            case "RUN_FINISHED" | "RUN_ERROR":
                end = _end_of_run(event)
    lines = [tuple(line) if line[0] != "call" else (*line[:2], _loaded(line[2])) for line in told.values()]
    return merged([*lines, *end])


def _loaded(text: str) -> Any:
    """Arguments, of which all have come or none have."""
    return json.loads(text) if text else ...


def _end_of_run(event: Event) -> list[Line]:
    used = [event.get("usage", [])] if isinstance(event.get("usage"), Mapping) else event.get("usage", [])
    tokens = (sum(each.get(name, 0) for each in used) for name in ("inputTokens", "outputTokens"))
    asked: list[Line] = []
    if event["type"] == "RUN_ERROR":
        how = "failed"
    else:
        outcome = event["outcome"]
        how = {"success": "done", "cancelled": "stopped", "interrupt": "asked"}[outcome["type"]]
        asked = [
            ("question", each["metadata"]["tool"], each["message"]) for each in outcome.get("interrupts", ())
        ]
    return [*asked, ("end", how), ("usage", *tokens)]


Heard = Callable[[list[dict[str, str]]], list[Line]]
