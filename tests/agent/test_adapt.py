"""Everything a factory may return answers a message."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
import trio

from agentmgr.agent.adapt import adapt
from agentmgr.agent.message import Message
from agentmgr.errors import AgentLoadError
from agentmgr.testing.agents import bare_client, hosted


async def coroutine(message):
    return f"<{message}>"


async def generator(message):
    yield "<"
    yield message
    yield ">"


def plain(message):
    assert threading.current_thread() is not threading.main_thread()
    return f"<{message}>"


def plain_generator(message):
    yield "<"
    yield f"{message}>"


def gives_coroutine(message):
    return coroutine(message)


def gives_generator(message):
    return generator(message)


async def with_session(message, session):
    return f"<{message}>" if session.state == {} else "?"


async def with_default(message, punctuation="<"):
    return f"{punctuation}{message}>"


class Full:
    def __init__(self):
        self.calls = []

    async def on_session_start(self, session):
        self.calls.append("start")

    async def on_message(self, session, message):
        self.calls.append(str(message))
        return f"<{message}>"

    def on_session_end(self, session):
        self.calls.append("end")


class Streaming:
    async def on_message(self, session, message):
        yield f"<{message}>"


class Callable:
    async def __call__(self, message):
        return f"<{message}>"


class Runs:
    async def run(self, text):
        assert type(text) is str
        return f"<{text}>"


class RunsPlainly:
    def run(self, text):
        return f"<{text}>"


class RunsToAnObject:
    class Result:
        output = "<hi>"

    async def run(self, text):
        return self.Result()


@pytest.mark.parametrize(
    "agent",
    [
        coroutine, generator, plain, plain_generator, gives_coroutine, gives_generator, with_session,
        with_default, partial(with_session), partial(generator), Full(), Streaming(), Callable(), Runs(),
        RunsPlainly(), RunsToAnObject(),
    ],
)  # fmt: skip
async def test_each_colour_of_agent_answers(agent):
    async with hosted(agent) as url, bare_client(url) as client:
        for _ in range(2):
            assert (await client.ask("hi"))["content"] == "<hi>"


async def test_the_full_form_is_told_of_the_beginning_and_the_end():
    agent = Full()
    async with hosted(agent) as url:
        async with bare_client(url) as client:
            await client.ask("hi")
        url.sessions.end_all("restart")
        await trio.testing.wait_all_tasks_blocked(0.05)
    assert agent.calls == ["start", "hi", "end"]


async def test_blocking_code_has_emit_and_confirm_without_await():
    def agent(message, session):
        session.emit("agent.thinking", session.id)
        return bool(session.confirm("rm", {"n": 1}))

    async with hosted(agent) as url, bare_client(url) as client:
        await client.say("user.message", content="go")
        question = await client.until("agent.user_confirm")
        assert client.events[-2]["content"] == client.session_id
        await client.say("user.response", step_id=question["step_id"], content={"confirmed": True})
        assert (await client.until("agent.final_answer"))["content"] is True


async def test_blocking_code_blocks_nobody_and_is_left_behind_by_a_cancel():
    release = threading.Event()

    def agent(message):
        if message == "block":
            release.wait(10)
        return "free"

    try:
        async with hosted(agent) as url, bare_client(url) as client, bare_client(url) as other:
            await client.say("user.message", content="block")
            assert (await other.ask("hi"))["content"] == "free"
            await client.say("user.cancel")
            assert (await client.until("agent.interrupted", "agent.final_answer"))[
                "event"
            ] == "agent.interrupted"
            assert (await client.ask("hi"))["content"] == "free"
    finally:
        release.set()


async def test_an_agent_that_remembers_is_made_anew_for_each_session():
    made = []

    class Remembers:
        def __init__(self):
            made.append(self)
            self.heard = []

        async def run(self, text):
            self.heard.append(text)
            return ",".join(self.heard)

    async def create_agent():
        return Remembers()

    agent = adapt(await create_agent(), create_agent)
    async with hosted(agent) as url, bare_client(url) as one, bare_client(url) as two:
        await one.ask("a")
        assert (await two.ask("b"))["content"] == "b"
        assert (await one.ask("c"))["content"] == "a,c"
    assert len(made) == 2


async def test_a_raw_agent_has_the_connection_to_itself():
    class Raw:
        async def serve(self, websocket):
            await websocket.send_message("raw hello")
            await websocket.send_message((await websocket.get_message()).upper())

    async with hosted(Raw()) as url, bare_client(url) as client:
        assert await client.websocket.get_message() == "raw hello"
        await client.websocket.send_message("abc")
        assert await client.websocket.get_message() == "ABC"
        with pytest.raises(trio.EndOfChannel):
            await client.receive()
        assert client.websocket.closed.code == 1000


async def test_a_raw_agent_that_fails_closes_its_connection_and_no_other():
    class Raw:
        async def serve(self, websocket):
            if await websocket.get_message() == "bad":
                raise ValueError
            await websocket.send_message("good")

    async with hosted(Raw()) as url, bare_client(url) as bad, bare_client(url) as good:
        await bad.websocket.send_message("bad")
        with pytest.raises(trio.EndOfChannel):
            await bad.receive()
        assert bad.websocket.closed.code == 1011
        await good.websocket.send_message("fine")
        assert await good.websocket.get_message() == "good"


@pytest.mark.parametrize("nothing", [None, 5, "text", object()])
def test_what_cannot_answer_is_refused(nothing):
    with pytest.raises(AgentLoadError, match="cannot answer a message"):
        adapt(nothing)


async def test_threads_of_the_authors_own_may_use_the_session():
    def agent(message, session):
        def step(number):
            session.emit("agent.thinking", number)
            return session.confirm("step", number).approved

        with ThreadPoolExecutor(1) as pool:
            return list(pool.map(step, [1, 2]))

    async with hosted(agent) as url, bare_client(url) as client:
        await client.say("user.message", content="go")
        for approved in (True, False):
            question = await client.until("agent.user_confirm")
            await client.say("user.response", step_id=question["step_id"], content=approved)
        assert (await client.until("agent.final_answer", "agent.error"))["content"] == [True, False]


async def test_a_slow_thread_does_not_outlive_its_test():
    started = time.monotonic()
    async with hosted(lambda message: time.sleep(0.05)) as url, bare_client(url) as client:
        assert (await client.ask("hi"))["content"] == ""
    assert time.monotonic() - started < 60


@pytest.mark.parametrize(
    ("url", "name", "media_type", "data"),
    [
        ("data:image/png;base64,aGk=", None, "image/png", b"hi"),
        ("data:,hi%20there", "a.pdf", "text/plain", b"hi there"),
        ("data:;charset=utf-8;base64,aGk", None, "text/plain", b"hi"),
        ("https://example.org/a.jpg?size=1", None, "image/jpeg", None),
        ("https://example.org/get/1", "a.pdf", "application/pdf", None),
        ("https://example.org/get/1", None, "application/octet-stream", None),
    ],
)
def test_an_attachment_says_what_it_is(url, name, media_type, data):
    said = Message("look", {"attachments": [{"kind": "file", "url": url, "name": name}, {"kind": 1}, None]})
    [attachment] = said.attachments
    assert (attachment.media_type, attachment.data, attachment.name) == (media_type, data, name)


async def test_what_an_object_with_run_cannot_take_is_said_in_the_log_once(caplog):
    class Runs:
        async def run(self, text):
            return f"ran {text}"

    async with hosted(Runs(), make=Runs) as url, bare_client(url) as client:
        for _ in range(2):
            assert (await client.ask("a", metadata={"instructions": "be brief"}))["content"] == "ran a"
    assert caplog.text.count("a client sent instructions, which the agent does not get") == 1
