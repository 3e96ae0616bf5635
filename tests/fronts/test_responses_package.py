"""What OpenAI's own package for Python makes of the Responses API here: the oracle for its protocol."""

from __future__ import annotations

import asyncio
import runpy
import sys
from pathlib import Path
from typing import Any

import openai
import pytest
import trio

from agentmgr.agent import thinking, tool_call, tool_result
from agentmgr.agent.events import usage
from tests.fronts.test_openai_package import client, threaded


async def agent(message, session):
    if message == "fail":
        raise ValueError("no")
    if message == "hang":
        await trio.sleep_forever()
    if message == "slow":
        for number in range(5):
            yield f"{number} "
            await trio.sleep(0.1)
        return
    if message == "history":
        yield " ".join(entry["content"] for entry in session.history)
        return
    yield thinking("hm")
    yield "Hel"
    yield tool_call("look", {"at": 1}, step_id="t1")
    yield tool_result("look", 3, step_id="t1")
    yield usage(3, 2, "m")
    yield "lo"
    if message == "delete":
        yield " gone" if await session.confirm("rm", {"name": "x"}, message="Really?") else " kept"


def hello(text: Any = "hi", **more: Any) -> dict[str, Any]:
    return {"model": "echo", "input": text, **more}


async def test_a_response_is_read_whole_and_as_a_stream(stage_of):
    async with stage_of(agent) as stage:
        with client(stage) as ours:
            whole = await threaded(ours.responses.create, **hello())
            assert (whole.output_text, whole.status) == ("Hello", "completed")
            assert [item.type for item in whole.output] == ["reasoning", "message", "reasoning", "message"]
            assert (whole.usage.input_tokens, whole.usage.total_tokens) == (3, 5)

            def stream() -> list[Any]:
                return list(ours.responses.create(**hello(), stream=True))

            events = await threaded(stream)
            assert [event.sequence_number for event in events] == list(range(len(events)))
            assert events[-1].response.output_text == "Hello"

            def helper() -> Any:
                with ours.responses.stream(**hello()) as events:
                    for _ in events:
                        pass
                    return events.get_final_response()

            assert (await threaded(helper)).output_text == "Hello"
        await stage.at_base()


async def test_a_response_goes_on_with_the_one_before_and_branches_from_an_older_one(stage_of):
    async with stage_of(agent) as stage:
        with client(stage) as ours:
            first = await threaded(ours.responses.create, **hello("one"))
            second = await threaded(ours.responses.create, **hello("two"), previous_response_id=first.id)
            third = await threaded(ours.responses.create, **hello("history"), previous_response_id=second.id)
            assert third.output_text == "one Hello two Hello"
            branch = await threaded(ours.responses.create, **hello("history"), previous_response_id=first.id)
            assert branch.output_text == "one Hello"
            with pytest.raises(openai.BadRequestError) as caught:
                await threaded(ours.responses.create, **hello(), previous_response_id="resp_none")
            assert caught.value.code == "previous_response_not_found"
        await stage.at_base()


async def test_a_question_is_answered(stage_of):
    async with stage_of(agent) as stage:
        with client(stage) as ours:
            asking = await threaded(ours.responses.create, **hello("delete"))
            request = asking.output[-1]
            assert (request.type, request.name, request.arguments) == (
                "mcp_approval_request",
                "rm",
                '{"name": "x"}',
            )
            answer = {
                "type": "mcp_approval_response",
                "approval_request_id": request.id,
                "approve": True,
            }
            said = await threaded(ours.responses.create, **hello([answer]), previous_response_id=asking.id)
            assert said.output_text == " gone"
            # Sent again, it gets the same answer.
            said = await threaded(ours.responses.create, **hello([answer]))
            assert said.output_text == " gone"
            assert (await threaded(ours.responses.retrieve, said.id)).output_text == " gone"
            again = await threaded(ours.responses.retrieve, asking.id)
            assert again.output == asking.output
        await stage.at_base()


async def test_a_background_response_is_taken_up_again(stage_of):
    async with stage_of(agent) as stage:
        with client(stage) as ours:

            def cut() -> Any:
                with ours.responses.create(**hello("slow"), background=True, stream=True) as events:
                    first = next(events)
                    return first, next(event for event in events if "delta" in event.type)

            def rest(response_id: str, after: int) -> list[Any]:
                return list(ours.responses.retrieve(response_id, stream=True, starting_after=after))

            def begin() -> Any:
                return ours.responses.create(**hello("slow"), background=True)

            started = await threaded(begin)
            assert started.status == "queued"
            events = await threaded(rest, started.id, -1 + 1)
            assert events[-1].response.output_text == "0 1 2 3 4 "
            assert [event.sequence_number for event in events] == list(range(1, len(events) + 1))
            seen = await threaded(rest, started.id, 5)
            assert seen == events[5:]
            assert (await threaded(ours.responses.retrieve, started.id)).status == "completed"
            first, last = await threaded(cut)
            events = await threaded(rest, first.response.id, last.sequence_number)
            assert events[0].sequence_number == last.sequence_number + 1
            assert events[-1].response.output_text == "0 1 2 3 4 "
        await stage.at_base()


async def test_a_response_is_cancelled_and_deleted(stage_of):
    async with stage_of(agent) as stage:
        with client(stage) as ours:
            hanging = await threaded(ours.responses.create, **hello("hang"), background=True)
            cancelled = await threaded(ours.responses.cancel, hanging.id)
            assert cancelled.status == "cancelled"
            assert (await threaded(ours.responses.retrieve, hanging.id)).status == "cancelled"
            await threaded(ours.responses.delete, hanging.id)
            with pytest.raises(openai.NotFoundError):
                await threaded(ours.responses.retrieve, hanging.id)
            failed = await threaded(ours.responses.create, **hello("fail"))
            assert (failed.status, failed.error.type) == ("failed", "agent_error")
        await stage.at_base()


@pytest.mark.filterwarnings("ignore:connect.. must be used as a context manager:DeprecationWarning")
async def test_the_same_over_a_websocket(stage_of):
    async with stage_of(agent) as stage:
        with client(stage) as ours:

            def talk() -> list[Any]:
                said: list[Any] = []
                with ours.responses.connect() as connection:
                    previous: dict[str, Any] = {}
                    for text, more in (
                        ("one", {}),
                        ("history", {}),
                        ("private", {"store": False}),
                        ("history", {"store": False}),
                    ):
                        connection.send({"type": "response.create", **hello(text), **previous, **more})
                        events = []
                        for event in connection:
                            events.append(event)
                            if event.type in ("response.completed", "error"):
                                break
                        said.append(events)
                        previous = {"previous_response_id": events[-1].response.id}
                        if text == "history":
                            previous = {}
                    connection.send({"type": "response.create", "model": "echo", "stream_id": "a"})
                    said.append([connection.recv()])
                return said

            one, history, _, again, wrong = await threaded(talk)
            assert [event.sequence_number for event in one] == list(range(len(one)))
            assert one[-1].response.output_text == "Hello"
            assert history[-1].response.output_text == "one Hello"
            assert again[-1].response.output_text == "private Hello"
            assert (wrong[0].status, wrong[0].error.param, wrong[0].stream_id) == (400, "input", "a")
        await stage.at_base()


async def test_the_example(stage_of):
    examples = Path(__file__).parents[2] / "examples"
    served = runpy.run_path(str(examples / "streaming_agent.py"))["agent"]
    async with stage_of(served, names=["streaming_agent"]) as stage:
        words = [sys.executable, str(examples / "openai_responses_client.py"), stage.url]
        done = await trio.run_process(words, capture_stdout=True)
        assert done.stdout.decode().splitlines() == [
            'may it call delete_file with {"name": "notes.txt"}? yes',
            "Done: notes.txt is gone. ",
            "cut after: I ",
            "all of it: I know these files: todo.txt. Say: delete NAME. ",
        ]
        await stage.at_base()


async def test_the_same_with_the_asynchronous_client(stage_of):
    async with stage_of(agent) as stage:

        async def talk() -> tuple[Any, list[Any], list[Any]]:
            async with openai.AsyncOpenAI(
                base_url=stage.url, api_key="key", max_retries=0, timeout=20
            ) as ours:
                whole = await ours.responses.create(**hello())
                streamed = [event async for event in await ours.responses.create(**hello(), stream=True)]
                async with ours.responses.connect() as connection:
                    await connection.send({"type": "response.create", **hello()})
                    events = []
                    async for event in connection:
                        events.append(event)
                        if event.type == "response.completed":
                            break
                return whole, streamed, events

        whole, streamed, events = await threaded(asyncio.run, talk())
        assert whole.output_text == "Hello"
        assert [event.type for event in streamed] == [event.type for event in events]
        await stage.at_base()


async def test_it_asks_again_where_a_service_is_away_or_busy(stage_of):
    async with stage_of(agent) as stage:
        table = stage.gateway.lobby.router.table
        stage.gateway.update(type(table)(service_names=table.service_names))
        with client(stage, max_retries=5) as ours:
            async with trio.open_nursery() as nursery:

                async def ask() -> None:
                    said = await threaded(ours.responses.create, **hello("slow"), conversation="c")
                    assert said.output_text == "0 1 2 3 4 "

                nursery.start_soon(ask)
                nursery.start_soon(ask)
                await trio.sleep(0.3)
                stage.gateway.update(table)
        await stage.at_base()
