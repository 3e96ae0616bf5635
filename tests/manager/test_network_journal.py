"""Sessions in a Redis, as a manager has them: with real processes, a real Redis, and a password."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trio
from attrs import asdict

from agentmgr.client.session import AgentSession, open_session
from agentmgr.codec import to_json
from agentmgr.errors import InvalidRequest, WrongState
from agentmgr.manager import AgentManager
from agentmgr.models import ServiceConfig
from agentmgr.settings import Settings
from tests.redis_server import NEEDS_REDIS, RedisServer, running_redis
from tests.workers.conftest import eventually

pytestmark = NEEDS_REDIS

PASSWORD = "hunter2"
AGENT = """
import os, subprocess, sys

def create_agent():
    async def answer(message, session):
        if message == "environment":
            child = "import os; print(dict(os.environ))"
            return str(dict(os.environ)) + subprocess.check_output([sys.executable, "-c", child], text=True)
        session.state["turns"] = session.state.get("turns", 0) + 1
        return f"{session.state['turns']} {os.getpid()}"
    return answer
"""


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with running_redis("--requirepass", PASSWORD, "--appendonly", "yes") as server:
        yield server


def url_of(server: RedisServer, password: str = PASSWORD) -> str:
    return f"unix://:{password}@{server.socket}"


async def asked(session: AgentSession) -> tuple[int, int]:
    with trio.fail_after(30):
        turn, pid = str(await session.ask("?")).split()
    return int(turn), int(pid)


async def test_a_session_outlives_its_instance_at_once_and_no_one_sees_the_password(
    db: Path, agent_file: Callable[..., str], server: RedisServer, tmp_path: Path
) -> None:
    settings = Settings(sessions_url=url_of(server))
    async with AgentManager(db, settings=settings) as manager, trio.open_nursery() as nursery:
        port = await nursery.start(manager.serve_proxy, "localhost", 0)
        config = ServiceConfig(instances=2, restart_delay=30)
        service = await manager.register_service("one", agent_file(AGENT), config=config, auto_start=True)
        async with open_session(f"ws://localhost:{port}/services/one") as session:
            _, pid = await asked(session)
            said = str(await session.ask("environment"))
            assert "AGENTMGR_INSTANCE_ID" in said
            words = Path(f"/proc/{pid}/cmdline").read_bytes().decode()
            assert manager.get_service("one").journal == f"unix://:***@{server.socket}"
            (found,) = [it for it in await manager.diagnose() if it.what.startswith("sessions in")]
            assert (found.result, found.what) == ("ok", f"sessions in unix://:***@{server.socket}")
            shown = to_json(asdict(manager.get_service("one"))) + repr(manager.settings)
            for text in (said, words, shown):
                assert PASSWORD not in text

            began = trio.current_time()
            os.kill(pid, signal.SIGKILL)
            turn, other = await asked(session)
            assert (turn, other != pid) == (2, True)
            # Its lease would have been good for 10 s: the manager says that it has ended.
            assert trio.current_time() - began < 8

            (info,) = (await manager.sessions.list("one")).items
            assert (info.session_id, info.turns) == (session.session_id, 3)
            await manager.sessions.say(info.session_id, "from outside")
            await _answered(manager, info.session_id, 4, "3 ")
        nursery.cancel_scope.cancel()
    assert not (db.parent / f"{db.name}.d" / "sessions" / f"{service.service_id}.db").exists()
    for file in (db.parent / f"{db.name}.d").rglob("*.log"):
        assert PASSWORD.encode() not in file.read_bytes()

    # They are read and erased while no instance runs, too.
    async with AgentManager(db, settings=settings, supervise=False) as manager:
        await _answered(manager, info.session_id, 4, "3 ")
        assert (await manager.sessions.list("one")).unreadable == ()
        await manager.sessions.erase(info.session_id)
        assert (await manager.sessions.list()).items == ()


async def test_a_journal_that_this_manager_cannot_use_is_refused_at_once(
    db: Path, agent_file: Callable[..., str]
) -> None:
    async with AgentManager(db, supervise=False) as manager:
        for url, why in (
            ("redis://:${NOT_SET}@h", "NOT_SET is not set"),
            ("redis://h/0?wrong=1", "no option 'wrong'"),
        ):
            with pytest.raises(InvalidRequest, match=why):
                await manager.register_service("one", agent_file(), config=ServiceConfig(sessions=url))
        assert manager.list_services() == []
    with pytest.raises(InvalidRequest, match="no option 'wrong'"):
        async with AgentManager(db, settings=Settings(sessions_url="redis://h?wrong=1"), supervise=False):
            pass


async def _answered(manager: AgentManager, session_id: str, turns: int, begin: str) -> None:
    with trio.fail_after(30):
        while True:
            history = (await manager.sessions.get(session_id)).history
            if len(history) == turns and history[-1].answer is not None:
                assert str(history[-1].answer).startswith(begin)
                return
            await trio.sleep(0.02)


async def test_while_redis_is_away_it_is_said_and_sessions_that_are_elsewhere_are_named(
    db: Path, agent_file: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agentmgr.manager.network_journals.LOOK_S", 0.05)
    with running_redis("--requirepass", PASSWORD, "--appendonly", "yes") as server:
        monkeypatch.setenv("THE_PASSWORD", PASSWORD)
        own = ServiceConfig(sessions=url_of(server, "${THE_PASSWORD}"))
        async with AgentManager(db) as manager, trio.open_nursery() as nursery:
            port = await nursery.start(manager.serve_proxy, "localhost", 0)
            await manager.register_service("one", agent_file(AGENT), config=own, auto_start=True)
            async with open_session(f"ws://localhost:{port}/services/one") as session:
                assert (await asked(session))[0] == 1
                assert manager.get_info()["degraded"] is None
                server.kill()
                await eventually(lambda: "cannot be reached" in str(manager.get_info()["degraded"]))
                assert PASSWORD not in str(manager.get_info()["degraded"])
                (found,) = [it for it in await manager.diagnose() if it.what.startswith("sessions in")]
                assert (found.result, "cannot be reached" in found.found) == ("error", True)
                (unreadable,) = (await manager.sessions.list("one")).unreadable
                assert unreadable == f"unix://:***@{server.socket}"
                server.start()
                await eventually(lambda: manager.get_info()["degraded"] is None)
                assert (await asked(session))[0] == 2
                session_id = session.session_id
            assert session_id is not None

            # Changed to another journal, it stays where it was, and can be read.
            await manager.update_service("one", {"sessions": "durable"})
            await manager.restart_service("one", wait=True)
            assert (await manager.sessions.get(session_id)).turns == 2
            with pytest.raises(WrongState, match=r"kept on unix://.*changed back"):
                await manager.sessions.say(session_id, "there?")
            nursery.cancel_scope.cancel()


async def test_a_mistyped_url_is_forgotten_with_the_setting(db: Path, tmp_path: Path) -> None:
    async def findings(settings: Settings) -> list[str]:
        async with AgentManager(db, settings=settings) as manager:
            if settings.sessions_url is not None:
                await eventually(lambda: "nowhere" in str(manager.get_info()["degraded"]))
            return [it.what for it in await manager.diagnose() if it.what.startswith("sessions in")]

    mistyped = f"unix://{tmp_path}/nowhere.sock"
    assert await findings(Settings(sessions_url=mistyped)) == [f"sessions in {mistyped}"]
    assert await findings(Settings()) == []
