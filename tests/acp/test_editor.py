"""`agentmgr acp` as an editor has it: a real process, driven by the client of the `acp` package."""

from __future__ import annotations

import asyncio
import runpy
import signal
import sys
from functools import partial
from pathlib import Path

import acp
import pytest
import trio
from acp import RequestError

from agentmgr.agent import thinking, tool_call, tool_result
from agentmgr.agent.events import usage
from agentmgr.proxy import Identity
from tests.acp.conftest import edit

EXAMPLES = Path(__file__).parents[2] / "examples"


async def agent(message, session):
    match str(message):
        case "fail":
            raise ValueError("no")
        case "hang":
            yield "I hang"
            await trio.sleep_forever()
        case "slow":
            for number in range(40):
                yield f"{number} "
                await trio.sleep(0.05)
        case "rm":
            yield "gone" if await session.confirm("rm", {"n": 1}, message="Really?") else "kept"
        case "tools":
            yield thinking("hm")
            yield tool_call("look", {"at": 1})
            yield tool_result("look", {"found": 2})
            yield tool_call("break", {})
            yield usage(3, 2, "m")
            yield "done"
        case "what":
            for each in message.attachments:
                yield f"{each.kind} {each.name} {each.data or each.url} "
            yield message.metadata["cwd"]
        case _:
            yield f"you said {message}"


async def test_a_conversation(stage_of):
    async def scenario(editor):
        session = await editor.new()
        assert await editor.say(session, "hi") == "end_turn"
        assert editor.story() == ["says you said hi"]
        editor.updates.clear()
        answer = await editor.agent.prompt(session_id=session, prompt=[acp.text_block("tools")])
        assert (answer.usage.input_tokens, answer.usage.output_tokens) == (3, 2)
        assert editor.story() == [
            "thinks hm",
            "tool_call look in_progress",
            "tool_call_update completed",
            "tool_call break in_progress",
            "says done",
            "tool_call_update completed",
        ]
        assert [it.raw_input for it in editor.updates if it.session_update == "tool_call"] == [{"at": 1}, {}]
        assert editor.updates[2].raw_output == {"found": 2}
        with pytest.raises(RequestError, match="the agent failed with ValueError") as failed:
            await editor.say(session, "fail")
        assert failed.value.code == -32603
        assert failed.value.data["type"] == "ValueError"

    async with stage_of(agent) as stage:
        await edit(scenario, "agent", *stage.words)


async def test_a_question_is_the_users_to_answer(stage_of):
    async def scenario(editor):
        session = await editor.new()
        assert await editor.say(session, "rm") == "end_turn"
        assert (editor.questions[0].title, editor.questions[0].raw_input) == ("Really?", {"n": 1})
        editor.answer = "reject"
        assert await editor.say(session, "rm") == "end_turn"
        assert editor.story() == [
            "tool_call Really? pending",
            "tool_call_update completed",
            "says gone",
            "tool_call Really? pending",
            "tool_call_update failed",
            "says kept",
        ]
        editor.answer = None
        assert await editor.say(session, "rm") == "cancelled"
        assert await editor.say(session, "hi") == "end_turn"

    async with stage_of(agent) as stage:
        await edit(scenario, "agent", *stage.words)


async def test_a_prompt_is_cancelled(stage_of):
    async def scenario(editor):
        session = await editor.new()
        for text, shows in (("hang", "I hang"), ("rm", "")):
            editor.updates.clear()
            prompt = asyncio.create_task(editor.say(session, text))
            await editor.until(lambda shows=shows: bool(editor.updates) and editor.text() == shows)
            await editor.agent.cancel(session_id=session)
            assert await prompt == "cancelled"
        assert await editor.say(session, "hi") == "end_turn"
        await editor.agent.cancel(session_id=session)  # of nothing
        prompts = [asyncio.create_task(editor.say(session, text)) for text in ("hang", "hang", "hi")]
        await asyncio.sleep(0)
        await editor.agent.cancel(session_id=session)
        assert await asyncio.gather(*prompts) == ["cancelled"] * 3
        assert await editor.say(session, "hi") == "end_turn"

    async with stage_of(agent) as stage:
        await edit(scenario, "agent", *stage.words)


async def test_a_prompt_is_cancelled_while_the_gateway_is_away(stage_of):
    async with stage_of(agent) as stage:
        token = trio.lowlevel.current_trio_token()

        async def scenario(editor):
            def outside(function):
                return asyncio.to_thread(partial(trio.from_thread.run, function, trio_token=token))

            session = await editor.new()
            prompt = asyncio.create_task(editor.say(session, "hang"))
            await editor.until(lambda: editor.text() == "I hang")
            await outside(stage.stop)
            await editor.agent.cancel(session_id=session)
            assert await asyncio.wait_for(prompt, 60) == "cancelled"
            await outside(stage.start)
            assert await editor.say(session, "hi") == "end_turn"
            assert editor.text() == "I hangyou said hi"

        await edit(scenario, "agent", *stage.words)


async def test_a_session_is_closed_and_taken_up_again(stage_of):
    async def scenario(editor):
        session = await editor.new()
        await editor.say(session, "hi")
        prompt = asyncio.create_task(editor.say(session, "hang"))
        await editor.until(lambda: editor.text().endswith("I hang"))
        await editor.agent.close_session(session_id=session)
        assert await prompt == "cancelled"
        with pytest.raises(RequestError, match="is not open here"):
            await editor.say(session, "hi")
        editor.updates.clear()
        await editor.agent.resume_session(cwd="/", session_id=session)
        assert editor.updates == []
        assert await editor.say(session, "hi") == "end_turn"
        for _ in range(2):
            await editor.agent.load_session(cwd="/", session_id=session, mcp_servers=[])
        assert await editor.say(session, "hi") == "end_turn"

    async with stage_of(agent) as stage:
        await edit(scenario, "agent", *stage.words)


async def test_several_prompts_and_sessions_at_once(stage_of):
    async def scenario(editor):
        first, second = await editor.new(), await editor.new()
        hung = asyncio.create_task(editor.say(second, "hang"))
        told = await asyncio.gather(*(editor.say(first, f"{number} ") for number in range(10)))
        assert told == ["end_turn"] * 10
        assert editor.text().replace("I hang", "") == "".join(f"you said {number} " for number in range(10))
        await editor.agent.cancel(session_id=second)
        assert await hung == "cancelled"

    async with stage_of(agent) as stage:
        await edit(scenario, "agent", *stage.words)


async def test_a_prompt_goes_on_when_the_gateway_restarts(stage_of):
    async with stage_of(agent) as stage:

        async def scenario(editor):
            session = await editor.new()
            prompt = asyncio.create_task(editor.say(session, "slow"))
            await editor.until(lambda: "5 " in editor.text())
            await asyncio.to_thread(partial(trio.from_thread.run, stage.restart, trio_token=token))
            assert await prompt == "end_turn"
            assert editor.text() == "".join(f"{number} " for number in range(40))
            assert await editor.say(session, "hi") == "end_turn"

        token = trio.lowlevel.current_trio_token()
        await edit(scenario, "agent", *stage.words)


async def test_another_process_loads_the_session_after_the_gateway_has_restarted(stage_of):
    async def first(editor):
        session = await editor.new()
        for text in ("hi", "tools", "rm"):
            await editor.say(session, text)
        editor.answer = "reject"
        await editor.say(session, "rm")
        with pytest.raises(RequestError):
            await editor.say(session, "fail")
        return session, editor.story()

    async def second(editor):
        await editor.agent.load_session(cwd="/", session_id=session, mcp_servers=[])
        assert editor.questions == []
        told = editor.story()
        assert [line for line in told if line.startswith("user ")] == [
            "user hi",
            "user tools",
            "user rm",
            "user rm",
            "user fail",
        ]
        assert [line for line in told if not line.startswith("user ")] == story
        assert await editor.say(session, "more") == "end_turn"
        assert editor.story()[-1] == "says you said more"

    async with stage_of(agent) as stage:
        session, story = await edit(first, "agent", *stage.words)
        await stage.restart()
        await edit(second, "agent", *stage.words)


async def test_of_a_session_in_memory_what_was_said_is_loaded(stage_of):
    async def first(editor):
        session = await editor.new()
        for text in ("hi", "tools"):
            await editor.say(session, text)
        return session

    async def second(editor):
        await editor.agent.load_session(cwd="/", session_id=session, mcp_servers=[])
        assert editor.story() == ["user hi", "says you said hi", "user tools", "says done"]

    async with stage_of(agent, durable=False) as stage:
        session = await edit(first, "agent", *stage.words)
        await edit(second, "agent", *stage.words)


async def test_a_turn_that_runs_is_loaded_with_its_question(stage_of):
    async def first(editor):
        session = await editor.new()
        prompt = asyncio.create_task(editor.say(session, "rm"))
        never = asyncio.get_running_loop().create_future()
        editor.answer = lambda: never
        await editor.until(lambda: bool(editor.questions))
        prompt.cancel()
        return session

    async def second(editor):
        await editor.agent.load_session(cwd="/", session_id=session, mcp_servers=[])
        await editor.until(lambda: editor.text() == "gone")
        assert editor.story() == [
            "user rm",
            "tool_call Really? pending",
            "tool_call_update completed",
            "says gone",
        ]

    async with stage_of(agent) as stage:
        session = await edit(first, "agent", *stage.words)
        await edit(second, "agent", *stage.words)


async def test_what_a_prompt_has_besides_text(stage_of):
    async def scenario(editor):
        session = await editor.new()
        blocks = [
            acp.image_block("aGk=", "image/png"),
            acp.resource_link_block("a.txt", "file:///a.txt"),
            acp.resource_block(acp.embedded_blob_resource("file:///b.bin", "aG8=", mime_type="x/y")),
        ]
        await editor.say(session, "what")
        assert editor.text() == "/"
        editor.updates.clear()
        prompt = [*blocks, acp.text_block("what")]
        await editor.agent.prompt(session_id=session, prompt=prompt)
        assert editor.text().startswith("you said [a.txt](file:///a.txt)\n[b.bin](file:///b.bin)\nwhat")
        with pytest.raises(RequestError) as refused:
            await editor.agent.prompt(session_id=session, prompt=[acp.audio_block("aGk=", "audio/wav")])
        assert refused.value.code == -32602

    async with stage_of(agent) as stage:
        await edit(scenario, "agent", *stage.words)


async def test_a_session_that_is_not_there(stage_of):
    async def scenario(editor):
        for session in ("ses_unknown", ""):
            with pytest.raises(RequestError) as refused:
                await editor.agent.load_session(cwd="/", session_id=session, mcp_servers=[])
            assert refused.value.code == -32002
            with pytest.raises(RequestError, match="is not open here") as refused:
                await editor.say(session, "hi")
            assert refused.value.code == -32002

    async with stage_of(agent) as stage:
        await edit(scenario, "agent", *stage.words)


class Tokens:
    required = True

    async def bearer(self, token):
        return {"ann": Identity("ann"), "bob": Identity("bob")}.get(token)

    async def ticket(self, ticket):
        raise AssertionError("a ticket is for a WebSocket")


async def test_a_session_of_another_user(stage_of):
    async def anns(editor):
        session = await editor.new()
        await editor.say(session, "hi")
        return session

    async def bobs(editor):
        with pytest.raises(RequestError) as refused:
            await editor.agent.load_session(cwd="/", session_id=session, mcp_servers=[])
        assert refused.value.code == -32002

    async def nobodys(editor):
        with pytest.raises(RequestError, match="AGENTMGR_TOKEN") as refused:
            await editor.new()
        assert (refused.value.code, refused.value.data) == (-32000, {"code": "unauthorized"})

    async with stage_of(agent, authenticator=Tokens()) as stage:
        session = await edit(anns, "agent", *stage.words, "--token", "ann")
        await edit(bobs, "agent", *stage.words, "--token", "bob")
        await edit(nobodys, "agent", *stage.words)


@pytest.mark.parametrize(
    ("service", "facts", "table", "code"),
    [
        ("nothing", {}, {}, "service_not_found"),
        ("agent3", {}, {"service_names": frozenset({"agent", "agent3"})}, "no_service_available"),
        ("agent", {"max_sessions": 1}, {}, "at_capacity"),
    ],
    ids=["unknown", "stopped", "full"],
)
async def test_a_service_that_cannot_be_reached(stage_of, service, facts, table, code):
    async def scenario(editor):
        if code == "at_capacity":
            await editor.new()
        with pytest.raises(RequestError) as refused:
            await editor.new()
        assert (refused.value.code, refused.value.data) == (-32603, {"code": code})

    async with stage_of(agent, facts=facts, table=table) as stage:
        await edit(scenario, service, *stage.words)


async def test_a_gateway_that_comes_later(stage_of):
    async with stage_of(agent) as stage:
        token = trio.lowlevel.current_trio_token()

        async def scenario(editor):
            with pytest.raises(RequestError, match="cannot connect") as refused:
                await editor.new()
            assert refused.value.data == {"code": "agent_unreachable"}
            await asyncio.to_thread(partial(trio.from_thread.run, stage.start, trio_token=token))
            assert await editor.say(await editor.new(), "hi") == "end_turn"

        await stage.stop()
        await edit(scenario, "agent", *stage.words)


@pytest.mark.parametrize("how", ["eof", signal.SIGTERM, signal.SIGINT])
async def test_it_ends_in_good_order(stage_of, how):
    async def scenario(editor):
        session = await editor.new()
        prompt = asyncio.create_task(editor.say(session, "hang"))
        await editor.until(lambda: bool(editor.updates))
        if how == "eof":
            editor.process.stdin.close()
        else:
            editor.process.send_signal(how)
        with pytest.raises(RequestError, match="was closed"):
            await prompt
        return await editor.process.wait()

    async with stage_of(agent) as stage:
        assert await edit(scenario, "agent", *stage.words) == 0
        with trio.fail_after(60):
            while stage.gateway.connections():  # noqa: ASYNC110  # not announced
                await trio.sleep(0.005)


async def test_the_example(stage_of):
    served = runpy.run_path(str(EXAMPLES / "streaming_agent.py"))["agent"]
    async with stage_of(served) as stage:
        words = [sys.executable, str(EXAMPLES / "acp_client.py"), "agent", *stage.words]
        done = await trio.run_process(words, capture_stdout=True)
        assert done.stdout.decode().splitlines() == [
            "> hello",
            "I know these files: notes.txt, todo.txt. Say: delete NAME. (end_turn)",
            "> delete notes.txt",
            "[Really delete notes.txt?]",
            "[delete_file]",
            "Done: notes.txt is gone. (end_turn)",
        ]
