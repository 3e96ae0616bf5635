"""A client whose first frame is no JSON object speaks plain text: a line each way."""

import json

import trio

from agentmgr.agent.limits import SessionLimits
from agentmgr.testing.agents import bare_client, hosted


async def line(client):
    with trio.fail_after(60):
        return await client.websocket.get_message()


async def test_each_message_has_one_answer_and_nothing_else_is_sent():
    async def agent(message, session):
        yield "you "
        yield f"said {message} ({len(session.history) // 2})"

    async with hosted(agent) as url, bare_client(url) as client:
        for number, text in enumerate(["hello", '{"not": "an event"}', "[1]", ""]):
            await client.websocket.send_message(text)
            assert await line(client) == f"you said {text} ({number})"


async def test_objects_and_errors_are_lines_too():
    async def agent(message):
        if message == "fail":
            raise ValueError
        return {"a": "ü"}

    async with hosted(agent, limits=SessionLimits(turn_timeout=0)) as url, bare_client(url) as client:
        await client.websocket.send_message("x")
        assert await line(client) == '{"a": "ü"}'
        await client.websocket.send_message("fail")
        assert (await line(client)).startswith("[error] the agent failed with ValueError")
        await client.websocket.send_message("x")
        assert await line(client) == '{"a": "ü"}'


async def test_a_question_is_a_line_and_so_is_its_answer():
    async def agent(message, session):
        return "done" if await session.confirm("rm", {"path": "/tmp/x"}) else "kept"

    async with hosted(agent) as url, bare_client(url) as client:
        for answer, outcome in [("yes", "done"), ("No.", "kept"), ("是", "done"), ("Of course!", "done")]:
            await client.websocket.send_message("go")
            assert await line(client) == "May I run rm(path='/tmp/x')? [yes/no]"
            await client.websocket.send_message(answer)
            assert await line(client) == outcome


async def test_what_is_neither_yes_nor_no_leaves_the_question_open():
    async def agent(message, session):
        return f"{message}: {bool(await session.confirm('rm'))}"

    async with hosted(agent) as url, bare_client(url) as client:
        await client.websocket.send_message("go")
        assert await line(client) == "May I run rm()? [yes/no]"
        for text in ("maybe", "", "what does it do?", '{"a": 1}'):
            await client.websocket.send_message(text)
            assert await line(client) == "please answer yes or no"
        await client.websocket.send_message("yes, please")
        assert await line(client) == "go: True"
        await client.websocket.send_message("maybe")
        assert await line(client) == "May I run rm()? [yes/no]", "a message again"


async def test_a_client_that_waits_is_greeted_and_may_still_speak_plain():
    async def agent(message):
        return message

    async with hosted(agent) as url, bare_client(url) as client:
        assert json.loads(await line(client))["event"] == "system.connected"
        await client.websocket.send_message("hello")
        assert await line(client) == "hello"


async def test_what_is_too_large_for_a_line_is_said_in_a_line():
    async def agent(message):
        return message

    async with hosted(agent, max_message_bytes=100) as url, bare_client(url) as client:
        await client.websocket.send_message("hello")
        assert await line(client) == "hello"
        await client.websocket.send_message("x" * 101)
        assert await line(client) == "[error] a message of 101 bytes is over the limit of 100"
        await client.websocket.send_message("bye")
        assert await line(client) == "bye"
