"""Agents whose code needs a real asyncio loop: every form, and cancellation both ways."""

import asyncio
import contextvars
import gc
import sys
import threading
import time
from contextlib import suppress

import pytest
import trio

from agentmgr.agent.aio import MAX_AHEAD, AsyncioRuntime
from agentmgr.agent.limits import SessionLimits
from agentmgr.core.proof import HEALTH_PATH
from agentmgr.models import Runtime
from agentmgr.protocol import TURN_ENDS
from agentmgr.testing.agents import bare_client, hosted

ASYNCIO = {"runtime": Runtime.ASYNCIO}


async def coroutine(message):
    await asyncio.sleep(0)
    return f"<{message}>"


async def generator(message, session):
    yield "<"
    async with asyncio.timeout(5):
        yield await asyncio.to_thread(str, message)
    yield ">"


def plain(message):
    with pytest.raises(RuntimeError):
        asyncio.get_running_loop()
    return f"<{message}>"


class Full:
    async def on_session_start(self, session):
        session.state["loop"] = id(asyncio.get_running_loop())

    async def on_message(self, session, message):
        assert session.state["loop"] == id(asyncio.get_running_loop())
        return f"<{message}>"


class Runs:
    async def run(self, text):
        process = await asyncio.create_subprocess_exec("echo", "-n", f"<{text}>", stdout=-1)
        out, _ = await process.communicate()
        return out.decode()


@pytest.mark.parametrize("agent", [coroutine, generator, plain, Full(), Runs()])
async def test_each_colour_of_agent_answers(agent):
    async with hosted(agent, **ASYNCIO) as url, bare_client(url) as client:
        for _ in range(2):
            assert (await client.ask("hi"))["content"] == "<hi>"


async def test_a_session_is_awaited_in_asyncio():
    async def agent(message, session):
        await session.emit("agent.thinking", session.id)
        decisions = await asyncio.gather(session.confirm("a"), session.confirm("b"))
        return [bool(decision) for decision in decisions]

    async with hosted(agent, **ASYNCIO) as url, bare_client(url) as client:
        await client.say("user.message", content="go")
        for answer in (True, False):
            question = await client.until("agent.user_confirm")
            approved = question["content"]["tool"] == "a"
            await client.say("user.response", step_id=question["step_id"], content={"confirmed": approved})
            assert answer in (True, False)
        assert (await client.until(*TURN_ENDS))["content"] == [True, False]


async def test_a_cancel_crosses_over_and_the_code_may_clean_up():
    cleaned = threading.Event()

    async def agent(message, session):
        if message == "next":
            return "next"
        try:
            await session.emit("agent.thinking")
            await asyncio.sleep(1000)
        finally:
            await asyncio.sleep(0)
            cleaned.set()

    async with hosted(agent, **ASYNCIO) as url, bare_client(url) as client:
        await client.open()
        await client.say("user.message", content="cancelled before it began")
        await client.say("user.cancel")
        await client.until("agent.interrupted")
        assert (await client.ask("next"))["content"] == "next"
        await client.say("user.message", content="cancelled in the middle")
        await client.until("agent.thinking")
        await client.say("user.cancel")
        await client.until("agent.interrupted")
        assert (await client.ask("next"))["content"] == "next"
        assert cleaned.is_set()


async def test_a_cancelled_generator_is_closed_where_it_is():
    closed = threading.Event()

    async def agent(message):
        try:
            yield "first"
            await asyncio.sleep(1000)
        finally:
            closed.set()

    async with hosted(agent, **ASYNCIO) as url, bare_client(url) as client:
        await client.say("user.message", content="hi")
        await client.until("agent.partial_answer")
        await client.say("user.cancel")
        await client.until("agent.interrupted")
        with trio.fail_after(60):
            assert await trio.to_thread.run_sync(closed.wait)


async def test_a_cancel_reaches_code_that_waits_for_a_person():
    cancelled = threading.Event()

    async def agent(message, session):
        try:
            await session.confirm("rm")
        except asyncio.CancelledError:
            cancelled.set()
            raise

    async with hosted(agent, **ASYNCIO) as url, bare_client(url) as client:
        await client.say("user.message", content="hi")
        question = await client.until("agent.user_confirm")
        await client.say("user.cancel")
        await client.until("agent.interrupted")
        with trio.fail_after(60):
            assert await trio.to_thread.run_sync(cancelled.wait)
        await client.say("user.response", step_id=question["step_id"], content={"confirmed": True})
        assert (await client.until("system.error"))["content"]["code"] == "unknown_step"


async def test_a_timeout_in_asyncio_takes_back_a_question_in_trio():
    async def agent(message, session):
        try:
            async with asyncio.timeout(0.05):
                return bool(await session.confirm("rm"))
        except TimeoutError:
            return "too late"

    async with hosted(agent, **ASYNCIO) as url, bare_client(url) as client:
        await client.say("user.message", content="hi")
        question = await client.until("agent.user_confirm")
        assert (await client.until(*TURN_ENDS))["content"] == "too late"
        await client.say("user.response", step_id=question["step_id"], content={"confirmed": True})
        assert (await client.until("system.error"))["content"]["code"] == "unknown_step"


async def test_code_that_ignores_its_cancellation_is_left_behind(monkeypatch, caplog):
    monkeypatch.setattr("agentmgr.agent.aio.CANCEL_TIMEOUT_S", 0.05)
    free, looping = asyncio.Event(), threading.Event()

    async def agent(message):
        if message == "next":
            return "next"
        looping.set()
        while not free.is_set():
            with suppress(asyncio.CancelledError):
                await free.wait()
        return None

    async with hosted(agent, **ASYNCIO) as url, bare_client(url) as client:
        await client.say("user.message", content="hi")
        assert await trio.to_thread.run_sync(looping.wait, 5)
        await client.say("user.cancel")
        await client.until("agent.interrupted")
        assert (await client.ask("next"))["content"] == "next"
        assert "goes on; it is left behind" in caplog.text
        [session] = url.sessions._sessions.values()
        session._agent.runtime._on_loop(free.set)


@pytest.mark.parametrize("what", ["raise", "exit", "cancel", "cancel_generator", "bad_yield"])
async def test_nothing_an_author_raises_ends_more_than_the_turn(what):
    async def agent(message):
        if message == "good":
            yield "fine"
        elif what == "raise":
            raise ValueError
        elif what == "exit":
            sys.exit(3)
        elif what == "cancel":
            raise asyncio.CancelledError
        elif what == "cancel_generator":
            asyncio.current_task().cancel()
            await asyncio.sleep(1)
        elif what == "bad_yield":
            yield object()

    async with hosted(agent, **ASYNCIO) as url, bare_client(url) as client:
        assert (await client.ask("bad"))["event"] == "agent.error"
        assert (await client.ask("good"))["content"] == "fine"


async def test_a_generator_waits_for_its_session_as_it_would_without_a_crossing():
    made = 0

    async def agent(message):
        nonlocal made
        for _ in range(3000):
            made += 1
            yield "x" * 1000

    limits = SessionLimits(buffer_events=50)
    async with hosted(agent, limits=limits, **ASYNCIO) as url, bare_client(url) as client:
        await client.say("user.message", content="go")
        await trio.testing.wait_all_tasks_blocked(0.3)
        [session] = url.sessions._sessions.values()
        assert made <= session.buffer.last_seq + MAX_AHEAD + 2
        assert made < 3000
        end = await client.until(*TURN_ENDS)
    streamed = [event["content"] for event in client.events if event["event"] == "agent.partial_answer"]
    assert len("".join(streamed)) == 3_000_000
    assert end["content"] == "".join(streamed)


async def test_many_sessions_share_the_loop_and_their_streams_stay_apart():
    async def agent(message):
        for number in range(30):
            yield f"{message}{number} "
            await asyncio.sleep(0)

    async def one(url, name):
        async with bare_client(url) as client:
            assert (await client.ask(name))["content"] == "".join(f"{name}{n} " for n in range(30))

    async with hosted(agent, **ASYNCIO) as url, trio.open_nursery() as nursery:
        for number in range(30):
            nursery.start_soon(one, url, f"s{number}-")


async def test_a_blocked_loop_fails_the_probe_and_blocks_no_client(monkeypatch):
    monkeypatch.setattr("agentmgr.agent.adapt.HEALTH_TIMEOUT_S", 0.1)
    blocked, release = threading.Event(), threading.Event()

    async def agent(message):
        blocked.set()
        release.wait(200)
        return "free"

    async with hosted(agent, **ASYNCIO) as url, bare_client(url) as client:
        await client.open()
        async with bare_client(url + HEALTH_PATH) as prober:
            assert '"status": "healthy"' in await prober.websocket.get_message()
        await client.say("user.message", content="block")
        await trio.to_thread.run_sync(blocked.wait, 60)
        async with bare_client(url + HEALTH_PATH) as prober:
            report = await prober.websocket.get_message()
            assert '"status": "unhealthy"' in report
            assert "event loop is blocked" in report
        release.set()
        assert (await client.until(*TURN_ENDS))["content"] == "free"


async def test_a_raw_agent_has_the_connection_in_the_words_of_websockets():
    class Raw:
        async def serve(self, websocket):
            await websocket.send(f"hello at {websocket.path}")
            async for message in websocket:
                await websocket.send(message.upper())
                if message == "bye":
                    await websocket.close(4001, "as you wish")

    async with hosted(Raw(), **ASYNCIO) as url, bare_client(url + "/x") as client:
        assert await client.websocket.get_message() == "hello at /x"
        await client.websocket.send_message("bye")
        assert await client.websocket.get_message() == "BYE"
        with pytest.raises(trio.EndOfChannel):
            await client.receive()
        assert client.websocket.closed.code == 4001


async def test_a_session_that_ends_takes_its_asyncio_code_with_it():
    ended = threading.Event()

    async def agent(message, session):
        try:
            await session.emit("agent.thinking")
            await asyncio.sleep(1000)
        finally:
            ended.set()

    async with hosted(agent, **ASYNCIO) as url, bare_client(url) as client:
        await client.say("user.message", content="hi")
        await client.until("agent.thinking")
        url.sessions.end_all("restart")
        await client.until("agent.session_end")
        assert await trio.to_thread.run_sync(ended.wait, 60)


async def test_what_it_awaits_in_trio_may_end_after_its_loop():
    runtime, begun, loop_closed = AsyncioRuntime(), trio.Event(), trio.Event()

    async def closes_slowly():
        with trio.CancelScope(shield=True):
            begun.set()
            await loop_closed.wait()

    async with trio.open_nursery() as nursery, trio.open_nursery() as host:
        await host.start(runtime.run)
        host.start_soon(runtime.call, runtime.await_in_trio, closes_slowly)
        await begun.wait()

        async def ends_the_host():
            host.cancel_scope.cancel()
            with trio.fail_after(30):
                while not runtime._loop.is_closed():  # noqa: ASYNC110
                    await trio.sleep(0.005)  # not announced
            loop_closed.set()

        nursery.start_soon(ends_the_host)


async def _one():
    return 1


async def _in_a_timeout():
    async with asyncio.timeout(1):
        await _one()


ASYNCIO_CODE = {
    "gather": lambda: asyncio.gather(_one(), _one()),
    "future": lambda: asyncio.new_event_loop().create_future(),
    "wait_for": lambda: asyncio.wait_for(_one(), 1),
    "timeout": _in_a_timeout,
    "queue": lambda: asyncio.Queue().get(),
    "event": lambda: asyncio.Event().wait(),
    "to_thread": lambda: asyncio.to_thread(print),
    "open_connection": lambda: asyncio.open_connection("127.0.0.1", 1),
    "subprocess": lambda: asyncio.create_subprocess_exec("true"),
}


@pytest.mark.filterwarnings("ignore")  # of the loops and coroutines that this leaves behind
@pytest.mark.parametrize("what", ASYNCIO_CODE)
async def test_whatever_of_asyncio_fails_in_trio_the_switch_is_named(what):
    async def agent(message):
        return str(await ASYNCIO_CODE[what]())

    async def is_told():
        async with hosted(agent, runtime=Runtime.TRIO) as url, bare_client(url) as client:
            assert 'RUNTIME = "asyncio"' in (await client.ask("hi"))["content"]["message"]

    await is_told()
    # Here, and not in another test, where what it warns of is an error; no frame holds the host any more, and
    # this thread no longer the loop that `gather` and others have made for it.
    asyncio.set_event_loop(None)
    gc.collect()


@pytest.mark.parametrize(("runtime", "needed"), [(Runtime.TRIO, "asyncio"), (Runtime.ASYNCIO, "trio")])
@pytest.mark.parametrize("how", ["sleep", "loop", "group"])
async def test_code_that_needs_the_other_runtime_is_told_which_switch_to_set(runtime, needed, how):
    async def agent(message):
        if how == "group":
            async with asyncio.TaskGroup() if needed == "asyncio" else trio.open_nursery():
                await asyncio.sleep(0)
        elif needed == "asyncio":
            await (asyncio.sleep(0.01) if how == "sleep" else asyncio.get_running_loop().create_future())
        elif how == "sleep":
            await trio.sleep(0.01)
        else:
            trio.lowlevel.current_task()

    async with hosted(agent, runtime=runtime) as url, bare_client(url) as client:
        error = (await client.ask("hi"))["content"]
        assert f'RUNTIME = "{needed}"' in error["message"]
        assert f"--runtime {needed}" in error["message"]


async def test_the_loop_ends_with_its_host_and_takes_its_tasks_along():
    ended = threading.Event()
    variable = contextvars.ContextVar("variable")

    async def background():
        try:
            await asyncio.sleep(1000)
        finally:
            ended.set()

    async def agent(message):
        variable.set("kept")
        agent.task = asyncio.create_task(background())
        await asyncio.sleep(0)
        return variable.get()

    threads = threading.active_count()
    async with hosted(agent, **ASYNCIO) as url, bare_client(url) as client:
        assert (await client.ask("hi"))["content"] == "kept"
    assert ended.is_set()
    assert threading.active_count() <= threads + 2


async def test_a_loop_that_cannot_be_stopped_does_not_hold_the_host(monkeypatch):
    monkeypatch.setattr("agentmgr.agent.aio.STOP_TIMEOUT_S", 0.05)
    monkeypatch.setattr("agentmgr.agent.aio.CANCEL_TIMEOUT_S", 0.05)
    blocked, release = threading.Event(), threading.Event()

    async def agent(message):
        blocked.set()
        release.wait(200)

    started = time.monotonic()
    try:
        async with hosted(agent, **ASYNCIO) as url, bare_client(url) as client:
            await client.say("user.message", content="block")
            await trio.to_thread.run_sync(blocked.wait, 60)
        assert time.monotonic() - started < 60
    finally:
        release.set()
