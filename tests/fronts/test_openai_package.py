"""What OpenAI's own package for Python makes of the front: the oracle for its protocol."""

from __future__ import annotations

import runpy
import sys
from functools import partial
from pathlib import Path
from typing import Any

import openai
import pytest
import trio
from openai import OpenAI

from agentmgr.agent import thinking
from agentmgr.agent.events import usage


async def agent(message, session):
    if message == "fail":
        raise ValueError("no")
    if message == "hang":
        await trio.sleep_forever()
    yield thinking("hm")
    yield "Hel"
    yield usage(3, 2, "m")
    yield "lo"
    if message == "fail late":
        raise ValueError("no")
    if message == "delete":
        yield " gone" if await session.confirm("rm", {}, message="Really?") else " kept"


class Count:
    """An agent that counts its turns."""

    turns = 0

    async def __call__(self, message, session):
        self.turns += 1
        async for said in agent(message, session):
            yield said


async def threaded(function: Any, *args: Any, **more: Any) -> Any:
    return await trio.to_thread.run_sync(partial(function, *args, **more))


def client(stage: Any, **more: Any) -> OpenAI:
    return OpenAI(base_url=stage.url, api_key="key", **{"max_retries": 0, "timeout": 20.0, **more})


def hello(text: str = "hi") -> dict[str, Any]:
    return {"model": "echo", "messages": [{"role": "user", "content": text}]}


async def test_models_are_listed_and_retrieved(stage_of):
    async with stage_of() as stage:
        with client(stage) as ours:
            listed = await threaded(lambda: [model.id for model in ours.models.list()])
            assert listed == ["auto", "echo"]
            assert (await threaded(ours.models.retrieve, "echo")).owned_by == "agentmgr"
            with pytest.raises(openai.NotFoundError):
                await threaded(ours.models.retrieve, "nothing")


async def test_an_answer_is_read_whole_and_as_a_stream(stage_of):
    async with stage_of(agent) as stage:
        with client(stage) as ours:
            whole = await threaded(ours.chat.completions.create, **hello())
            assert whole.choices[0].message.content == "Hello"
            assert whole.choices[0].message.reasoning_content == "hm"
            assert whole.choices[0].finish_reason == "stop"
            assert (whole.usage.prompt_tokens, whole.usage.total_tokens) == (3, 5)

            def stream() -> list[Any]:
                options = {"include_usage": True}
                return list(ours.chat.completions.create(**hello(), stream=True, stream_options=options))

            chunks = await threaded(stream)
            content = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
            assert (content, chunks[-1].usage.total_tokens, chunks[-1].choices) == ("Hello", 5, [])
            assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "stop"

            def helper() -> Any:
                with ours.chat.completions.stream(**hello()) as events:
                    return events.get_final_completion()

            assert (await threaded(helper)).choices[0].message.content == "Hello"
        await stage.at_base()


async def test_a_question_is_answered(stage_of):
    async with stage_of(agent) as stage:
        with client(stage) as ours:
            messages = [{"role": "user", "content": "delete"}]
            said = await threaded(ours.chat.completions.create, model="echo", messages=messages)
            assert said.choices[0].message.content == "Hello\n\nReally? [yes/no]"
            messages += [said.choices[0].message, {"role": "user", "content": "yes"}]
            said = await threaded(ours.chat.completions.create, model="echo", messages=messages)
            assert said.choices[0].message.content == " gone"
        await stage.at_base()


async def test_what_fails_is_its_error_and_is_not_asked_again(stage_of):
    counting = Count()
    async with stage_of(counting) as stage:
        with client(stage, max_retries=3) as ours:
            with pytest.raises(openai.APIStatusError) as caught:
                await threaded(ours.chat.completions.create, **hello("fail"))
            assert (caught.value.status_code, caught.value.code) == (424, "agent_error")

            def stream() -> list[Any]:
                return list(ours.chat.completions.create(**hello("fail late"), stream=True))

            with pytest.raises(openai.APIError) as late:
                await threaded(stream)
            assert late.value.code == "agent_error"
            assert counting.turns == 2
            with pytest.raises(openai.NotFoundError):
                await threaded(ours.chat.completions.create, **{**hello(), "model": "nothing"})
            with pytest.raises(openai.BadRequestError) as bad:
                await threaded(ours.chat.completions.create, **hello(), n=2)
            assert bad.value.param == "n"
        await stage.at_base()


async def test_it_comes_back_to_a_service_that_starts_again(stage_of):
    async with stage_of(agent) as stage:
        table = stage.gateway.lobby.router.table
        stage.gateway.update(type(table)(service_names=table.service_names))
        with client(stage, max_retries=5) as ours:
            async with trio.open_nursery() as nursery:

                async def ask() -> None:
                    said = await threaded(ours.chat.completions.create, **hello())
                    assert said.choices[0].message.content == "Hello"

                nursery.start_soon(ask)
                await trio.sleep(0.3)
                stage.gateway.update(table)


async def test_a_client_that_gives_up_leaves_nothing_behind(stage_of):
    async with stage_of(agent) as stage:
        with client(stage, timeout=0.3) as ours:
            with pytest.raises(openai.APITimeoutError):
                await threaded(ours.chat.completions.create, **hello("hang"))
        await stage.at_base()


async def test_the_example(stage_of):
    examples = Path(__file__).parents[2] / "examples"
    served = runpy.run_path(str(examples / "streaming_agent.py"))["agent"]
    async with stage_of(served, names=["streaming_agent"]) as stage:
        words = [sys.executable, str(examples / "openai_client.py"), stage.url]
        done = await trio.run_process(words, capture_stdout=True)
        assert done.stdout.decode().splitlines() == [
            "models: auto, streaming_agent",
            "> hello",
            "I know these files: notes.txt, todo.txt. Say: delete NAME. ",
            "> delete notes.txt",
            "Really delete notes.txt? [yes/no]",
            "> yes",
            "Done: notes.txt is gone. ",
        ]
