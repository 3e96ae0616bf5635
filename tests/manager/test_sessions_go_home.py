"""Clients that come back to the instance that holds their session, with real processes behind a gateway."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from attrs import evolve

from agentmgr.client.session import AgentSession, open_session
from agentmgr.errors import AgentUnreachable, SessionLost
from agentmgr.manager import AgentManager
from agentmgr.models import ConditionOperator, RoutingCondition, RoutingRule, ServiceConfig, ServiceStatus
from agentmgr.models.host_config import Sessions
from tests.workers.conftest import eventually

COUNTING = """
import os
from pathlib import Path

class Agent:
    async def on_message(self, session, message):
        session.state["turns"] = session.state.get("turns", 0) + 1
        return f"{session.state['turns']} {os.getpid()}"
    async def check_health(self):
        return not Path(__file__).with_name(f"sick-{os.getpid()}").exists()

def create_agent():
    return Agent()
"""
UNSAYABLE = """
async def agent(message, session):
    session.state["db"] = object()
    return "done"

def create_agent():
    return agent
"""
PATIENT = ServiceConfig(
    instances=2, health_check_interval=0.1, unhealthy_threshold=1, recovery_threshold=600, restart_delay=0
)
ALL = RoutingCondition("path", ConditionOperator.STARTS_WITH, "/")


@asynccontextmanager
async def site(
    db: Path, file: str, workers: int = 0, sessions: Sessions = Sessions.DURABLE
) -> AsyncIterator[tuple[AgentManager, str]]:
    """Two services of two instances each behind a gateway."""
    async with AgentManager(db) as manager, trio.open_nursery() as nursery:
        for name in ("one", "two"):
            await manager.register_service(
                name, file, config=evolve(PATIENT, sessions=sessions), auto_start=True
            )

        async def serve(task_status: Any) -> None:
            await manager.serve_proxy("localhost", 0, workers=workers or None, task_status=task_status)

        port = await nursery.start(serve)
        yield manager, f"ws://localhost:{port}"
        nursery.cancel_scope.cancel()


async def asked(session: AgentSession) -> tuple[int, int]:
    """The number of the turn, and the pid of the process that answered."""
    with trio.fail_after(30):
        turn, pid = str(await session.ask("?")).split()
    return int(turn), int(pid)


@pytest.mark.parametrize("workers", [0, 1])
async def test_whatever_changes_a_session_goes_on_where_it_is(
    db: Path, agent_file: Callable[..., str], tmp_path: Path, workers: int
) -> None:
    async with site(db, agent_file(COUNTING), workers) as (manager, url):
        await manager.update_service("one", {"tags": ["a"]})
        async with open_session(f"{url}/services/one?tag=a") as session:
            turn, pid = await asked(session)

            async def still_there() -> None:
                nonlocal turn
                session.cut()
                turn += 1
                assert await asked(session) == (turn, pid)

            await manager.create_routing_rule(RoutingRule("new", conditions=(ALL,), target_services=("two",)))
            await still_there()
            await manager.update_service("one", {"tags": ["b"]})
            await still_there()
            await manager.update_service("one", {"name": "renamed"})
            await still_there()
            (tmp_path / f"sick-{pid}").touch()

            def unhealthy() -> bool:
                instances = manager.get_service("renamed").instances
                return any(i.pid == pid and i.status is ServiceStatus.UNHEALTHY for i in instances)

            await eventually(unhealthy)
            await still_there()


async def test_a_session_outlives_its_instance(db: Path, agent_file: Callable[..., str]) -> None:
    async with site(db, agent_file(COUNTING)) as (_, url), open_session(f"{url}/services/one") as session:
        for turn in range(1, 4):
            count, pid = await asked(session)
            assert count == turn
            os.kill(pid, signal.SIGKILL)


async def test_a_session_in_memory_is_lost_with_its_instance_and_its_client_hears_that(
    db: Path, agent_file: Callable[..., str]
) -> None:
    memory = site(db, agent_file(COUNTING), sessions=Sessions.MEMORY)
    async with memory as (_, url), open_session(f"{url}/services/one") as session:
        _, pid = await asked(session)
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(SessionLost, match="lost with its instance") as lost, trio.fail_after(30):
            await session.receive()
        assert lost.value.reason == "instance_lost"


async def test_an_address_of_another_service_is_refused_with_the_right_one(
    db: Path, agent_file: Callable[..., str]
) -> None:
    async with site(db, agent_file(COUNTING)) as (_, url):
        async with open_session(f"{url}/services/one") as session:
            await asked(session)
        with pytest.raises(AgentUnreachable, match="/services/one"):
            async with open_session(f"{url}/services/two", session_id=session.session_id):
                pass


async def test_what_a_session_cannot_keep_is_said_where_its_service_is_shown(
    db: Path, agent_file: Callable[..., str]
) -> None:
    file = agent_file(UNSAYABLE)
    async with site(db, file) as (manager, url), open_session(f"{url}/services/one") as session:
        await session.ask("?")

        def said() -> bool:
            instances = manager.get_service("one").instances
            return any((i.said or "").startswith("not durable: session.state['db']") for i in instances)

        await eventually(said)
        assert manager.get_service("one").error_message is None
