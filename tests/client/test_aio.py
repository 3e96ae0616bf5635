"""`agentmgr.client.aio` itself; that it does what the clients for trio do, their own tests show."""

import asyncio
import threading
from functools import partial

import pytest
import trio

from agentmgr import AgentManager, Supervisor, client
from agentmgr.client.aio import ManagerClient, open_session
from agentmgr.errors import AgentUnreachable, ManagerNotRunning
from agentmgr.testing.agents import hosted


async def in_asyncio(function, *args):
    """Runs it in an asyncio loop of its own, in a thread."""
    return await trio.to_thread.run_sync(lambda: asyncio.run(function(*args)))


def threads():
    return [thread for thread in threading.enumerate() if thread.name == "agentmgr.client"]


async def echo(message):
    return message


async def test_a_cancelled_receive_loses_no_event():
    async def agent(message):
        for number in range(200):
            await trio.sleep(0.001)
            yield f"{number} "

    async def program(url):
        async with open_session(url) as session:
            turn, heard = await session.send("go"), []
            while not heard or heard[-1].event != "agent.final_answer":
                try:
                    async with asyncio.timeout(0.002):
                        heard.append(await anext(turn))
                except TimeoutError:
                    pass
            return "".join(event.content for event in heard[:-1])

    async with hosted(agent) as url:
        assert await in_asyncio(program, url) == "".join(f"{number} " for number in range(200))


async def test_many_sessions_share_one_thread_that_ends_with_the_last():
    async def program(url):
        async def one(number):
            async with open_session(url) as session:
                assert await session.ask(str(number)) == str(number)
                assert len(threads()) == 1

        await asyncio.gather(*map(one, range(20)))

    async with hosted(echo) as url:
        await in_asyncio(program, url)
    with trio.fail_after(60):
        await trio.to_thread.run_sync(lambda: [thread.join() for thread in threads()])


async def test_a_task_that_is_cancelled_in_its_session_closes_it():
    async def program(url):
        async def waits(opened):
            async with open_session(url) as session:
                opened.set()
                await session.receive()

        opened = asyncio.Event()
        task = asyncio.create_task(waits(opened))
        await opened.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    async with hosted(echo) as url:
        await in_asyncio(program, url)
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert not any(session.connected for session in url.sessions._sessions.values())


async def test_one_that_is_cancelled_while_it_connects_gives_up():
    async def program(port):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                async with open_session(f"ws://127.0.0.1:{port}"):
                    pass

    async def is_silent(stream):
        await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        [listener] = await nursery.start(partial(trio.serve_tcp, is_silent, 0, host="127.0.0.1"))
        await in_asyncio(program, listener.socket.getsockname()[1])
        nursery.cancel_scope.cancel()


async def test_a_session_that_was_left_says_that_it_is_closed():
    async def program(url):
        async with open_session(url) as session:
            await session.ask("hi")
        with pytest.raises(AgentUnreachable, match="the session is closed"):
            await session.receive()

    async with hosted(echo) as url:
        await in_asyncio(program, url)


async def test_callbacks_run_on_the_loop_of_the_program():
    async def program(url):
        called = []

        async def locate():
            called.append(asyncio.get_running_loop())
            return str(url)

        def gone():
            called.append(asyncio.get_running_loop())

        async with open_session(url, on_disconnect=gone, locate=locate) as session:
            session.cut()
            assert await session.ask("hi") == "hi"
        assert called == [asyncio.get_running_loop()] * 2

    async with hosted(echo) as url:
        await in_asyncio(program, url)


def test_what_needs_trio_says_under_asyncio_what_to_do(tmp_path):
    async def program():
        for there in (AgentManager(tmp_path / "x.db"), Supervisor()):
            with pytest.raises(RuntimeError, match=f"{type(there).__name__} needs trio.*fastapi_manager"):
                async with there:
                    pass
        with pytest.raises(RuntimeError, match=r"AgentManager needs trio.*trio\.run in a thread"):
            await AgentManager(tmp_path / "x.db").start()
        with pytest.raises(RuntimeError, match=r"import the same names from agentmgr\.client\.aio"):
            async with client.open_session("ws://127.0.0.1:1"):
                pass
        with pytest.raises(RuntimeError, match=r"import the same names from agentmgr\.client\.aio"):
            await client.ManagerClient(tmp_path / "none.sock").get_info()
        with pytest.raises(ManagerNotRunning):
            await ManagerClient(tmp_path / "none.sock").get_info()

    asyncio.run(program())
