"""Drains of real processes behind a gateway: what an agent is thinking about is finished first."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from attrs import evolve
from trio_websocket import ConnectionClosed, WebSocketConnection

from agentmgr.client.session import open_session
from agentmgr.manager import AgentManager
from agentmgr.models import ServiceConfig, Sessions
from tests.workers.conftest import COUNTING, connected, said

# It thinks until it is let go on, without a word; what it did in a turn is to be seen in the directory.
THINKING = """
import os
from pathlib import Path
import trio

HERE = Path(__file__).parent

def create_agent():
    async def answer(message):
        HERE.joinpath(f"thinks-{message}").touch()
        while not HERE.joinpath("go-on").exists():
            await trio.sleep(0.01)
        HERE.joinpath(f"done-{message}").touch()
        return f"answer to {message}"
    return answer
"""
Act = Callable[[AgentManager], Awaitable[object]]
ACTS: dict[str, tuple[Act, int]] = {
    "restart": (lambda m: m.restart_service("svc"), 1012),
    "restart without rolling": (lambda m: m.restart_service("svc", rolling=False), 1012),
    "stop": (lambda m: m.stop_service("svc"), 1001),
    "scale": (lambda m: m.scale_service("svc", 1), 1012),
    "unregister": (lambda m: m.unregister_service("svc"), 1001),
}


@asynccontextmanager
async def site(
    db: Path, config: ServiceConfig, workers: int = 0, **service: Any
) -> AsyncIterator[tuple[AgentManager, str]]:
    async with AgentManager(db) as manager, trio.open_nursery() as nursery:
        await manager.register_service("svc", config=config, auto_start=True, **service)

        async def serve(task_status: trio.TaskStatus[int]) -> None:
            await manager.serve_proxy("localhost", 0, workers=workers or None, task_status=task_status)

        port = await nursery.start(serve)
        yield manager, f"ws://localhost:{port}/services/svc"
        nursery.cancel_scope.cancel()


async def exists(path: Path) -> None:
    with trio.fail_after(30):
        while not path.exists():  # noqa: ASYNC110
            await trio.sleep(0.01)


async def draining(manager: AgentManager) -> None:
    with trio.fail_after(30):
        while not any(s.instances and any(i.status == "draining" for i in s.instances)  # noqa: ASYNC110
                      for s in manager.list_services()):  # fmt: skip
            await trio.sleep(0.01)


@pytest.mark.parametrize(("act", "workers"), [*((act, 0) for act in ACTS), ("restart", 1)])
async def test_an_answer_that_is_thought_about_arrives_before_the_close(
    db: Path, agent_file: Callable[..., str], tmp_path: Path, act: str, workers: int
) -> None:
    do, code = ACTS[act]
    config = ServiceConfig(
        agent_factory_path=agent_file(THINKING), instances=2, drain_timeout=60, seamless=False
    )
    if act == "unregister":  # of a service with sessions that are kept it takes force, which does not drain
        config = evolve(config, sessions=Sessions.MEMORY)
    async with site(db, config, workers) as (manager, url), trio.open_nursery() as nursery:
        gateway = manager._live().gateway
        gateway._limits = evolve(gateway._limits, drain_idle_s=0.1)  # which is not asked here
        # On both instances, whichever of them has to go.
        clients = [connected(url) for _ in range(2)]
        async with clients[0] as one, clients[1] as two:
            for number, client in enumerate((one, two)):
                await client.send_message(str(number))
                await exists(tmp_path / f"thinks-{number}")
            nursery.start_soon(do, manager)
            await draining(manager)
            await trio.sleep(0.5)  # in silence
            (tmp_path / "go-on").touch()
            closed = []

            async def read_on(client: WebSocketConnection) -> None:
                with pytest.raises(ConnectionClosed) as end:
                    await client.get_message()
                assert end.value.reason.code == code
                closed.append(client)
                if act == "scale":  # the other instance stays
                    reading.cancel_scope.cancel()

            with trio.fail_after(60):
                for number, client in enumerate((one, two)):
                    assert await client.get_message() == f"answer to {number}"
                async with trio.open_nursery() as reading:
                    reading.start_soon(read_on, one)
                    reading.start_soon(read_on, two)
            assert len(closed) == (1 if act == "scale" else 2)


async def test_the_managers_own_end_lets_an_agent_finish_what_it_thinks_about(
    db: Path, agent_file: Callable[..., str], tmp_path: Path
) -> None:
    config = ServiceConfig(agent_factory_path=agent_file(THINKING), drain_timeout=60)
    async with site(db, config) as (manager, url), open_session(url) as session:
        turn = await session.send("q")
        await exists(tmp_path / "thinks-q")
        manager.request_shutdown()
        await trio.sleep(1.5)
        (tmp_path / "go-on").touch()
        with trio.fail_after(30):
            assert await turn.answer() == "answer to q"


async def test_the_end_of_a_drains_time_and_force_do_not_wait_for_an_answer(
    db: Path, agent_file: Callable[..., str], tmp_path: Path
) -> None:
    for number, (limit_s, act) in enumerate(
        ((1.0, AgentManager.stop_service), (60.0, partial(AgentManager.stop_service, force=True)))
    ):
        config = ServiceConfig(agent_factory_path=agent_file(THINKING), drain_timeout=limit_s)
        async with site(db.with_name(f"{number}.db"), config) as (manager, url), connected(url) as client:
            await client.send_message(str(number))
            await exists(tmp_path / f"thinks-{number}")
            with trio.fail_after(20):
                await act(manager, "svc")  # type: ignore[operator]
                with pytest.raises(ConnectionClosed) as end:
                    await client.get_message()
            assert end.value.reason.code == 1001
            assert not (tmp_path / f"done-{number}").exists()


async def test_a_turn_whose_client_is_away_is_finished_too(
    db: Path, agent_file: Callable[..., str], tmp_path: Path
) -> None:
    config = ServiceConfig(agent_factory_path=agent_file(THINKING), drain_timeout=60)
    async with site(db, config) as (manager, url), trio.open_nursery() as nursery:
        async with connected(url) as client:
            await client.send_message("q")
            await exists(tmp_path / "thinks-q")
        nursery.start_soon(manager.restart_service, "svc")
        await draining(manager)
        (tmp_path / "go-on").touch()
        await exists(tmp_path / "done-q")


async def test_a_client_that_is_cut_off_meanwhile_comes_back_for_its_answer(
    db: Path, agent_file: Callable[..., str], tmp_path: Path
) -> None:
    config = ServiceConfig(agent_factory_path=agent_file(THINKING), drain_timeout=60)
    async with site(db, config) as (manager, url), trio.open_nursery() as nursery:
        async with open_session(url) as session:
            turn = await session.send("q")
            await exists(tmp_path / "thinks-q")
            nursery.start_soon(manager.restart_service, "svc")
            await draining(manager)
            session.cut()
            await trio.sleep(0.5)
            (tmp_path / "go-on").touch()
            with trio.fail_after(30):
                assert await turn.answer() == "answer to q"


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("act", [act for act in ACTS if act != "unregister"])
async def test_idle_sessions_do_not_hold_a_drain(
    db: Path, agent_file: Callable[..., str], act: str, workers: int
) -> None:
    """Durable ones go on at another instance, and their clients notice nothing."""
    config = ServiceConfig(agent_factory_path=agent_file(), drain_timeout=600, instances=2)
    do, code = ACTS[act]
    async with (
        site(db, config, workers=workers) as (manager, url),
        connected(url) as one,
        connected(url) as other,
    ):
        clients = one, other
        for client in clients:
            await said(client)
        with trio.fail_after(60):
            await do(manager)
            for client in clients:
                if code == 1012:
                    await said(client)
                    continue
                with pytest.raises(ConnectionClosed) as end:
                    await client.get_message()
                assert end.value.reason.code == code


RAW = """
class Raw:
    async def serve(self, websocket):
        while True:
            await websocket.send_message(await websocket.get_message())

def create_agent():
    return Raw()
"""


@pytest.mark.parametrize("kind", ["command", "serve(websocket)"])
async def test_where_turns_cannot_be_seen_silence_ends_a_session_and_the_service_says_how_much(
    db: Path, agent_file: Callable[..., str], tmp_path: Path, kind: str
) -> None:
    config = ServiceConfig(agent_factory_path=agent_file(RAW), drain_timeout=600, drain_idle=2)
    if kind == "command":
        (tmp_path / "counting.py").write_text(COUNTING)
        command = (sys.executable, str(tmp_path / "counting.py"), "{port}")
        config = evolve(config, agent_factory_path=None, command=command)
    async with site(db, config) as (manager, url), connected(url) as client:
        await said(client)
        begin = trio.current_time()
        with trio.fail_after(30):
            await manager.stop_service("svc")
        assert trio.current_time() - begin > 1.5
