import asyncio
import json
import threading

import pytest
import trio
from agents import Agent, ModelResponse, Usage, function_tool, set_tracing_disabled
from agents.models.interface import Model
from openai.types.responses import (
    Response,
    ResponseCompletedEvent,
    ResponseFunctionToolCall,
    ResponseOutputMessage,
    ResponseOutputText,
    ResponseTextDeltaEvent,
)
from openai.types.responses.response_reasoning_summary_text_delta_event import (
    ResponseReasoningSummaryTextDeltaEvent,
)
from openai.types.responses.response_usage import InputTokensDetails, OutputTokensDetails, ResponseUsage

from agentmgr.agent.adapt import needs
from agentmgr.models import Runtime
from agentmgr.protocol import TURN_ENDS
from agentmgr.testing.agents import bare_client, hosted

set_tracing_disabled(True)

ASYNCIO = {"runtime": Runtime.ASYNCIO}


class ScriptedModel(Model):
    """Says its replies in turn; a mapping is a call of a tool."""

    def __init__(self, *replies, hang=None):
        self.replies, self.heard, self.hang = list(replies), [], hang
        self.model = "scripted"

    async def get_response(self, *args, **kwargs):
        return ModelResponse(output=self._output(), usage=Usage(), response_id=None)

    def _output(self):
        reply = self.replies.pop(0)
        if isinstance(reply, dict):
            call_id = f"call_{len(self.heard)}"
            return [
                ResponseFunctionToolCall(
                    name=reply["name"], arguments=json.dumps(reply["args"]), call_id=call_id,
                    type="function_call", id=call_id,
                )
            ]  # fmt: skip
        text = ResponseOutputText(text=reply, type="output_text", annotations=[])
        return [
            ResponseOutputMessage(
                id="m", content=[text], role="assistant", status="completed", type="message"
            )
        ]

    async def stream_response(self, system_instructions, input, *args, **kwargs):
        self.heard.append(input)
        output = self._output()
        place = {"item_id": "m", "output_index": 0, "sequence_number": 0}
        yield ResponseReasoningSummaryTextDeltaEvent(
            delta="hm", summary_index=0, type="response.reasoning_summary_text.delta", **place
        )
        if isinstance(output[0], ResponseOutputMessage):
            for word in output[0].content[0].text.split():
                yield ResponseTextDeltaEvent(
                    delta=word + " ", content_index=0, logprobs=[], type="response.output_text.delta", **place
                )
        if self.hang is not None:
            try:
                await asyncio.sleep(1000)
            finally:
                self.hang.set()
        response = Response(
            id="r", created_at=0, model="scripted", object="response", output=output,
            parallel_tool_calls=False, tool_choice="auto", tools=[],
            usage=ResponseUsage(
                input_tokens=7, output_tokens=2, total_tokens=9,
                input_tokens_details=InputTokensDetails(cached_tokens=0, cache_write_tokens=0),
                output_tokens_details=OutputTokensDetails(reasoning_tokens=0),
            ),
        )  # fmt: skip
        yield ResponseCompletedEvent(response=response, sequence_number=0, type="response.completed")


def said(client, name):
    return [event["content"] for event in client.events if event["event"] == name]


@function_tool
def add(x: int, y: int) -> int:
    return x + y


async def test_text_reasoning_and_tools_are_shown():
    model = ScriptedModel({"name": "add", "args": {"x": 1, "y": 2}}, "it is three")
    async with hosted(Agent(name="a", model=model, tools=[add]), **ASYNCIO) as url:
        async with bare_client(url) as client:
            assert (await client.ask("1 + 2?"))["content"] == "it is three"
    assert said(client, "agent.partial_answer") == ["it ", "is ", "three "]
    assert said(client, "agent.thinking") == ["hm", "hm"]
    assert said(client, "agent.tool_call") == [{"tool": "add", "args": {"x": 1, "y": 2}}]
    [result] = said(client, "agent.tool_result")
    assert result["result"] == 3
    steps = [event["step_id"] for event in client.events if event["event"].startswith("agent.tool")]
    assert steps[0] == steps[1]


async def test_the_conversation_is_remembered_by_session():
    model = ScriptedModel("one", "two", "three")
    async with hosted(Agent(name="a", model=model), **ASYNCIO) as url:
        async with bare_client(url) as first, bare_client(url) as second:
            await first.ask("a")
            await first.ask("b")
            await second.ask("c")
    assert [len(heard) for heard in model.heard] == [1, 3, 1]


async def test_the_conversation_goes_on_in_the_next_host(in_two_hosts):
    model = ScriptedModel({"name": "add", "args": {"x": 1, "y": 2}}, "three", "four")
    made = []

    def create_agent():
        made.append(Agent(name="a", model=model, tools=[add]))
        return made[-1]

    answers, used = await in_two_hosts(create_agent, ["1 + 2?"], ["and now?"])
    assert (answers, len(made)) == (["three", "four"], 2)
    kinds = [item.get("type") or item["role"] for item in model.heard[-1]]
    assert kinds == ["user", "function_call", "function_call_output", "message", "user"]
    assert used == [
        {"input_tokens": 14, "output_tokens": 4, "model": "scripted"},
        {"input_tokens": 7, "output_tokens": 2, "model": "scripted"},
    ]


@pytest.mark.parametrize(("approved", "ran"), [(True, ["a"]), (False, [])])
async def test_a_tool_that_needs_approval_asks_the_person(approved, ran):
    removed = []

    @function_tool(needs_approval=True)
    def remove(path: str) -> str:
        removed.append(path)
        return "done"

    model = ScriptedModel({"name": "remove", "args": {"path": "a"}}, "all right")
    async with hosted(Agent(name="a", model=model, tools=[remove]), **ASYNCIO) as url:
        async with bare_client(url) as client:
            await client.say("user.message", content="clean up")
            question = await client.until("agent.user_confirm")
            assert question["content"]["tool"] == "remove"
            assert question["content"]["args"] == {"path": "a"}
            await client.say("user.response", step_id=question["step_id"], content={"confirmed": approved})
            assert (await client.until(*TURN_ENDS))["content"] == "all right"
    assert removed == ran


async def test_a_cancel_stops_the_model():
    stopped = threading.Event()
    model = ScriptedModel("one two", hang=stopped)
    async with hosted(Agent(name="a", model=model), **ASYNCIO) as url, bare_client(url) as client:
        await client.say("user.message", content="go")
        await client.until("agent.partial_answer")
        await client.say("user.cancel")
        assert (await client.until(*TURN_ENDS))["event"] == "agent.interrupted"
        assert await trio.to_thread.run_sync(stopped.wait, 5)


async def test_it_gets_all_that_a_chat_program_says(ask_as_a_chat_program):
    model = ScriptedModel("fine", "good")
    async with hosted(Agent(name="a", model=model, instructions="You help."), **ASYNCIO) as url:
        await ask_as_a_chat_program(url)
    first, second = model.heard
    assert first[:3] == [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "my name is Ann"},
        {"role": "assistant", "content": "hello Ann"},
    ]
    assert first[3]["content"] == [
        {"type": "input_text", "text": "look"},
        {"type": "input_image", "image_url": "data:image/png;base64,aW1hZ2U=", "detail": "auto"},
        {"type": "input_file", "file_data": "data:text/plain;base64,bm90ZXM=", "filename": "notes.txt"},
    ]
    assert [item for item in second if item.get("role") == "system"] == [
        {"role": "system", "content": "be kind"}
    ]
    assert second[1:4] == first[1:4]
    assert second[-1] == {"role": "user", "content": "and now?"}


def test_it_is_known_by_its_type():
    assert needs(Agent(name="a")) is Runtime.ASYNCIO
