import asyncio
import json
import threading
from typing import Any

import aiosqlite
import pytest
import trio
from langchain_core.language_models import BaseChatModel
from langchain_core.language_models.fake_chat_models import FakeListChatModel
from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.output_parsers import StrOutputParser
from langchain_core.outputs import ChatGenerationChunk
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnableLambda
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode, tools_condition
from langgraph.types import interrupt

from agentmgr.agent.adapt import needs
from agentmgr.models import Runtime
from agentmgr.protocol import TURN_ENDS
from agentmgr.testing.agents import bare_client, hosted

ASYNCIO = {"runtime": Runtime.ASYNCIO}


def said(client, name):
    return [event["content"] for event in client.events if event["event"] == name]


@tool
def add(x: int, y: int) -> int:
    """Adds."""
    return x + y


class ScriptedModel(BaseChatModel):
    """Says its replies in turn, word by word; a mapping is a call of a tool."""

    replies: list[Any]

    @property
    def _llm_type(self):
        return "scripted"

    def _generate(self, *args, **kwargs):
        raise NotImplementedError

    async def _astream(self, messages, stop=None, run_manager=None, **kwargs):
        reply = self.replies.pop(0)
        if isinstance(reply, dict):
            call = {"name": reply["name"], "args": json.dumps(reply["args"]), "id": "call_1", "index": 0}
            pieces = [AIMessageChunk("", tool_call_chunks=[call])]
        else:
            pieces = [AIMessageChunk(word + " ") for word in reply.split()]
        for piece in pieces:
            yield ChatGenerationChunk(message=piece)


def graph_of(model, its_tool=add, **options):
    async def call(state: MessagesState):
        return {"messages": [await model.ainvoke(state["messages"])]}

    graph = StateGraph(MessagesState)
    graph.add_node("model", call)
    graph.add_node("tools", ToolNode([its_tool]))
    graph.add_edge(START, "model")
    graph.add_conditional_edges("model", tools_condition)
    graph.add_edge("tools", "model")
    return graph.compile(**options)


async def test_a_graph_streams_its_models_text_and_shows_its_tools():
    model = ScriptedModel(replies=[{"name": "add", "args": {"x": 1, "y": 2}}, "it is three"])
    async with hosted(graph_of(model), **ASYNCIO) as url, bare_client(url) as client:
        assert (await client.ask("1 + 2?"))["content"] == "it is three "
    assert "".join(said(client, "agent.partial_answer")) == "it is three "
    assert said(client, "agent.tool_call") == [{"tool": "add", "args": {"x": 1, "y": 2}}]
    assert said(client, "agent.tool_result") == [{"tool": "add", "result": "3", "success": True}]


@pytest.mark.parametrize("options", [{}, {"checkpointer": InMemorySaver()}])
async def test_the_conversation_is_remembered_by_session_with_and_without_a_checkpointer(options):
    async def count(state: MessagesState):
        return {"messages": [AIMessage(f"{len(state['messages'])} messages")]}

    graph = StateGraph(MessagesState)
    graph.add_node(count)
    graph.add_edge(START, "count")
    async with hosted(graph.compile(**options), **ASYNCIO) as url:
        async with bare_client(url) as one, bare_client(url) as two:
            assert (await one.ask("a"))["content"] == "1 messages"
            assert (await one.ask("b"))["content"] == "3 messages"
            assert (await two.ask("c"))["content"] == "1 messages"


@pytest.mark.parametrize("saver", [None, InMemorySaver])
async def test_it_gets_all_that_a_chat_program_says(ask_as_a_chat_program, saver):
    heard = []

    async def answer(state: MessagesState):
        heard.append([(message.type, message.content) for message in state["messages"]])
        return {"messages": [AIMessage("fine")]}

    graph = StateGraph(MessagesState)
    graph.add_node(answer)
    graph.add_edge(START, "answer")
    options = {} if saver is None else {"checkpointer": saver()}
    async with hosted(graph.compile(**options), **ASYNCIO) as url:
        await ask_as_a_chat_program(url)
    assert heard[0][:3] == [("system", "be brief"), ("human", "my name is Ann"), ("ai", "hello Ann")]
    assert heard[0][3][1] == [
        {"type": "text", "text": "look"},
        {"type": "image", "mime_type": "image/png", "base64": "aW1hZ2U="},
        {"type": "file", "mime_type": "text/plain", "base64": "bm90ZXM=", "filename": "notes.txt"},
    ]
    assert heard[1] == [("system", "be kind"), *heard[0][1:], ("ai", "fine"), ("human", "and now?")]


async def test_what_a_runnable_cannot_take_is_said_in_the_log_once(ask_as_a_chat_program, caplog):
    async with hosted(RunnableLambda(lambda text: f"you said {text}"), **ASYNCIO) as url:
        await ask_as_a_chat_program(url)
        await ask_as_a_chat_program(url)
    told = [record.getMessage() for record in caplog.records]
    for what in ("instructions", "attachments", "a conversation's history"):
        [line] = [each for each in told if each.startswith(f"a client sent {what}, ")]
        assert "no `messages`" in line


@pytest.mark.parametrize("saver", [None, InMemorySaver])
async def test_the_conversation_goes_on_in_the_next_host(in_two_hosts, saver):
    heard = []

    def create_agent():
        async def answer(state: MessagesState):
            heard.append([message.type for message in state["messages"]])
            if heard[-1] == ["human"]:
                call = {"name": "add", "args": {"x": 1, "y": 2}, "id": "call_1"}
                return {"messages": [AIMessage("", tool_calls=[call])]}
            return {"messages": [AIMessage(f"{len(state['messages'])} messages")]}

        graph = StateGraph(MessagesState)
        graph.add_node("model", answer)
        graph.add_node("tools", ToolNode([add]))
        graph.add_edge(START, "model")
        graph.add_conditional_edges("model", tools_condition)
        graph.add_edge("tools", "model")
        return graph.compile(checkpointer=saver and saver())

    answers, _ = await in_two_hosts(create_agent, ["1 + 2?"], ["and now?", "and now?"])
    assert answers == ["3 messages", "5 messages", "7 messages"]
    assert heard[2] == ["human", "ai", "tool", "ai", "human"]


async def test_the_conversation_goes_on_with_a_checkpointer_that_keeps_it(in_two_hosts, tmp_path):
    async def count(state: MessagesState):
        return {"messages": [AIMessage(f"{len(state['messages'])} messages")]}

    async def create_agent():
        graph = StateGraph(MessagesState)
        graph.add_node(count)
        graph.add_edge(START, "count")
        connections.append(await aiosqlite.connect(tmp_path / "saver.db"))
        return graph.compile(checkpointer=AsyncSqliteSaver(connections[-1]))

    connections: list[aiosqlite.Connection] = []
    answers, _ = await in_two_hosts(create_agent, ["a"], ["b"])
    assert answers == ["1 messages", "3 messages"]
    for connection in connections:  # its loop is gone, in which it could be closed
        await trio.to_thread.run_sync(connection.stop)
        await trio.to_thread.run_sync(connection._thread.join)


async def test_what_a_model_used_is_said(in_two_hosts):
    class Counting(ScriptedModel):
        async def _astream(self, *args, **kwargs):
            async for chunk in super()._astream(*args, **kwargs):
                yield chunk
            counted = {"input_tokens": 7, "output_tokens": 2, "total_tokens": 9}
            last = AIMessageChunk("", usage_metadata=counted, response_metadata={"model_name": "scripted"})
            yield ChatGenerationChunk(message=last)

    model = Counting(replies=["one", "two"])
    _, used = await in_two_hosts(lambda: graph_of(model), ["a"], ["b"])
    assert used == [{"input_tokens": 7, "output_tokens": 2, "model": "scripted"}] * 2


@pytest.mark.parametrize(("approved", "answer"), [(True, "booked"), (False, "not booked")])
async def test_an_interrupt_asks_the_person(approved, answer):
    async def book(state: MessagesState):
        return {"messages": [AIMessage("booked" if interrupt("Really book?") else "not booked")]}

    graph = StateGraph(MessagesState)
    graph.add_node(book)
    graph.add_edge(START, "book")
    async with hosted(graph.compile(checkpointer=InMemorySaver()), **ASYNCIO) as url:
        async with bare_client(url) as client:
            await client.say("user.message", content="book it")
            question = await client.until("agent.user_confirm")
            assert question["content"]["message"] == "Really book?"
            await client.say("user.response", step_id=question["step_id"], content={"confirmed": approved})
            assert (await client.until(*TURN_ENDS))["content"] == answer


@pytest.mark.parametrize(("approved", "result"), [(True, "booked"), (False, "not booked")])
async def test_a_tool_that_asks_is_one_call_with_one_result(approved, result):
    @tool
    def add(x: int) -> str:
        """Asks first."""
        return "booked" if interrupt("Really?") else "not booked"

    replies = [{"name": "add", "args": {"x": 1}}, "done"]
    graph = graph_of(ScriptedModel(replies=replies), add, checkpointer=InMemorySaver())
    async with hosted(graph, **ASYNCIO) as url, bare_client(url) as client:
        await client.say("user.message", content="book it")
        question = await client.until("agent.user_confirm")
        await client.say("user.response", step_id=question["step_id"], content={"confirmed": approved})
        assert (await client.until(*TURN_ENDS))["content"] == "done "
    assert said(client, "agent.tool_call") == [{"tool": "add", "args": {"x": 1}}]
    assert said(client, "agent.tool_result") == [{"tool": "add", "result": result, "success": True}]
    calls = [e for e in client.events if e["event"] in ("agent.tool_call", "agent.tool_result")]
    assert calls[0]["step_id"] == calls[1]["step_id"]


async def test_the_middlewares_questions_are_answered_in_its_words():
    seen = []

    async def act(state: MessagesState):
        actions = [{"name": "rm", "args": {"path": path}} for path in "ab"]
        seen.append(interrupt({"action_requests": actions}))
        return {"messages": [AIMessage("ok")]}

    graph = StateGraph(MessagesState)
    graph.add_node(act)
    graph.add_edge(START, "act")
    async with hosted(graph.compile(checkpointer=InMemorySaver()), **ASYNCIO) as url:
        async with bare_client(url) as client:
            await client.say("user.message", content="go")
            for path in "ab":
                question = await client.until("agent.user_confirm")
                assert question["content"]["args"] == {"path": path}
                answer = {"confirmed": path == "a"}
                await client.say("user.response", step_id=question["step_id"], content=answer)
            await client.until(*TURN_ENDS)
    assert seen == [{"decisions": [{"type": "approve"}, {"type": "reject"}]}]


@pytest.mark.parametrize(
    ("runnable", "answer"),
    [
        (FakeListChatModel(responses=["a model alone"]), "a model alone"),
        (
            ChatPromptTemplate.from_messages([("user", "say {question}")])
            | FakeListChatModel(responses=["a chain"])
            | StrOutputParser(),
            "a chain",
        ),
        (RunnableLambda(lambda text: {"upper": text.upper()}), {"upper": "HI"}),
    ],
)
async def test_runnables_of_every_kind_answer(runnable, answer):
    async with hosted(runnable, **ASYNCIO) as url, bare_client(url) as client:
        assert (await client.ask("hi"))["content"] == answer


async def test_a_cancel_stops_the_graph():
    started, stopped = threading.Event(), threading.Event()

    async def endless(state: MessagesState):
        started.set()
        try:
            await asyncio.sleep(1000)
        finally:
            stopped.set()

    graph = StateGraph(MessagesState)
    graph.add_node(endless)
    graph.add_edge(START, "endless")
    async with hosted(graph.compile(), **ASYNCIO) as url, bare_client(url) as client:
        await client.say("user.message", content="go")
        assert await trio.to_thread.run_sync(started.wait, 5)
        await client.say("user.cancel")
        assert (await client.until(*TURN_ENDS))["event"] == "agent.interrupted"
        assert await trio.to_thread.run_sync(stopped.wait, 5)


def test_it_is_known_by_its_type():
    assert needs(graph_of(FakeListChatModel(responses=["x"]))) is Runtime.ASYNCIO
