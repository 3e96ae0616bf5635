"""AgentManager with everything behind it real: child processes, sockets, SQLite."""

import os
import shutil
import signal
import sqlite3
import sys
from collections.abc import Awaitable, Callable
from datetime import datetime
from functools import partial
from pathlib import Path

import pytest
import trio
import trio.testing
from attrs import evolve
from trio_websocket import ConnectionClosed
from websockets.exceptions import ConnectionClosedError
from websockets.sync.client import connect

from agentmgr.client.session import open_session
from agentmgr.errors import (
    AgentFileNotFound,
    DatabaseDamaged,
    ManagerAlreadyRunning,
    ManagerNotRunning,
    NameTaken,
    ServiceFailedToStart,
    ServiceNotFound,
    StorageError,
    WrongState,
)
from agentmgr.manager import AgentManager
from agentmgr.models import (
    ConditionOperator,
    RoutingCondition,
    RoutingRule,
    ServiceConfig,
    ServiceSpec,
    ServiceStatus,
)
from agentmgr.storage.sqlite import SqliteStore
from tests.conditions import heard
from tests.processes import alive
from tests.workers.conftest import connected, said

AgentFile = Callable[..., str]
QUICK = ServiceConfig(restart_delay=0, stop_timeout=5)


def runs(pid: int | None) -> bool:
    assert pid is not None
    return alive(pid)


async def ask(url: str, text: str) -> str:
    with trio.fail_after(60):
        async with connected(url) as client:
            await client.send_message(text)
            answer = await client.get_message()
            assert isinstance(answer, str)
            return answer


async def test_from_an_agent_file_to_a_conversation_through_the_gateway(
    db: Path, agent_file: AgentFile
) -> None:
    async with AgentManager(db) as manager, trio.open_nursery() as nursery:
        service = await manager.register_service("echo", agent_file(), config=QUICK, auto_start=True)
        assert service.status is ServiceStatus.RUNNING
        port = await nursery.start(manager.serve_proxy, "localhost", 0)
        assert await ask(f"ws://localhost:{port}/", "hello") == "echo: hello"
        assert await ask(f"ws://localhost:{port}/services/echo", "again") == "echo: again"
        nursery.cancel_scope.cancel()
    assert not runs(service.instances[0].pid)


async def test_the_guides_own_form_without_a_nursery(db: Path, agent_file: AgentFile) -> None:
    manager = AgentManager(db)
    try:
        await manager.start()
        config = ServiceConfig(agent_factory_path=agent_file(), max_sessions=10, auto_restart=True)
        service = await manager.register_service(
            name="my-service",
            agent_factory_path=agent_file(),
            description="My test service",
            tags={"demo"},
            config=config,
            auto_start=True,
        )
        health = await manager.check_service_health(service.service_id)
        assert health.status == "healthy"
        assert manager.get_system_stats()["services"]["running"] == 1
        assert manager.get_connection_stats()["total_connections"] == 0
        assert manager.get_health_summary()["healthy"] == 1
    finally:
        await manager.stop()
    assert not runs(service.instances[0].pid)


async def test_an_instance_that_is_killed_comes_back(db: Path, agent_file: AgentFile) -> None:
    async with AgentManager(db) as manager:
        service = await manager.register_service("echo", agent_file(), config=QUICK, auto_start=True)
        first = service.instances[0].pid
        assert first is not None
        with manager.subscribe() as events, trio.fail_after(60):
            os.kill(first, 9)
            kinds = []
            async for event in events:
                kinds.append(event.kind)
                if event.kind == "instance.running":
                    break
        assert kinds == ["instance.backoff", "instance.starting", "instance.running"]
        again = manager.get_service("echo")
        assert again.instances[0].pid != first
        assert (again.restart_count, again.instances[0].last_exit) == (1, "SIGKILL")
        assert manager.get_service_stats("echo")["restarts"] == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_hosted_agent_that_another_program_ends_in_good_order_comes_back(
    db: Path, agent_file: AgentFile, number: int
) -> None:
    async with AgentManager(db) as manager:
        service = await manager.register_service("echo", agent_file(), config=QUICK, auto_start=True)
        first = service.instances[0].pid
        assert first is not None
        with manager.subscribe() as events, trio.fail_after(60):
            os.kill(first, number)
            async for event in events:
                if event.kind == "instance.backoff":
                    assert "another program" in str(event.detail["error_message"])
                    wait = datetime.fromisoformat(str(event.detail["next_restart_at"])) - event.at
                    assert abs(wait.total_seconds()) < 5
                if event.kind in ("instance.running", "instance.stopped"):
                    break
        assert event.kind == "instance.running"
        assert manager.get_service("echo").instances[0].last_exit == "exit code 0"


async def test_how_many_instances_there_are_follows_a_change_at_once(db: Path, agent_file: AgentFile) -> None:
    async with AgentManager(db) as manager:
        (first,) = (await manager.register_service("echo", agent_file(), auto_start=True)).instances
        await manager.update_service("echo", {"instances": 2, "description": "two"})
        with trio.fail_after(60):
            while [i.status for i in manager.get_service("echo").instances] != ["running"] * 2:
                await trio.testing.wait_all_tasks_blocked(0.01)
            assert manager.get_service("echo").instances[0].pid == first.pid
            await manager.update_service("echo", {"instances": 1})
            while [i.pid for i in manager.get_service("echo").instances] != [first.pid]:
                await trio.testing.wait_all_tasks_blocked(0.01)


async def test_a_health_that_wavers_is_told_as_such_and_not_as_another_start(
    db: Path, agent_file: AgentFile
) -> None:
    source = """
class Agent:
    checks = 0

    async def on_message(self, session, message):
        return message

    def check_health(self):
        self.checks += 1
        return "degraded" if self.checks == 2 else "healthy"

def create_agent():
    return Agent()
"""
    config = ServiceConfig(health_check_interval=0.05)
    async with AgentManager(db) as manager:
        with manager.subscribe() as events, trio.fail_after(60):
            await manager.register_service("wavers", agent_file(source), config=config, auto_start=True)
            told = []
            async for event in events:
                told.append((event.kind, event.detail.get("health")))
                if told.count(("instance.health", "healthy")):
                    break
        assert told[-3:] == [
            ("instance.running", "healthy"),
            ("instance.health", "degraded"),
            ("instance.health", "healthy"),
        ]


async def test_what_should_run_runs_again_under_the_next_manager(db: Path, agent_file: AgentFile) -> None:
    async with AgentManager(db) as manager:
        await manager.register_service("up", agent_file(), auto_start=True)
        await manager.register_service("down", agent_file())
    async with AgentManager(db) as manager:
        await manager.start_service("up")
        assert {s.name: s.status for s in manager.list_services()} == {"up": "running", "down": "stopped"}


async def test_instances_left_running_are_adopted(db: Path, agent_file: AgentFile) -> None:
    async with AgentManager(db) as manager:
        left = await manager.register_service("echo", agent_file(), auto_start=True)
        manager.request_shutdown(leave_running=True)
    pid = left.instances[0].pid
    assert runs(pid)
    async with AgentManager(db) as manager:
        adopted = await manager.start_service("echo")
        assert adopted.instances[0].pid == pid
    assert not runs(pid)


async def test_one_manager_per_database(db: Path) -> None:
    async with AgentManager(db):
        with pytest.raises(ManagerAlreadyRunning, match=str(os.getpid())):
            async with AgentManager(db):
                raise AssertionError("two managers on one database")


async def test_a_file_that_is_no_database_is_refused_and_left_as_it_was(db: Path) -> None:
    db.write_bytes(b"precious" * 1000)
    with pytest.raises(DatabaseDamaged):
        async with AgentManager(db):
            raise AssertionError("opened what is not a database")
    assert db.read_bytes() == b"precious" * 1000


async def test_starting_on_a_database_that_is_managed_says_so_and_leaves_nothing_to_stop(db: Path) -> None:
    async with AgentManager(db) as first:
        second = AgentManager(db)
        try:
            with pytest.raises(ManagerAlreadyRunning):
                await second.start()
        finally:
            await second.stop()
        assert first.list_services() == []


async def test_a_manager_runs_once(db: Path) -> None:
    manager = AgentManager(db)
    async with manager:
        pass
    with pytest.raises(WrongState, match="make another one"):
        async with manager:
            raise AssertionError("entered twice")


async def test_a_service_is_stopped_also_when_that_cannot_be_written_down(
    db: Path, agent_file: AgentFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def full(_: object, spec: ServiceSpec) -> None:
        raise StorageError("the disk is full")

    async with AgentManager(db) as manager:
        service = await manager.register_service("echo", agent_file(), auto_start=True)
        monkeypatch.setattr(SqliteStore, "update_service", full)
        with pytest.raises(StorageError, match="was stopped, and the next manager will start it again"):
            await manager.stop_service("echo")
        assert not runs(service.instances[0].pid)


async def test_the_callers_own_error_arrives_as_it_is(db: Path, agent_file: AgentFile) -> None:
    with pytest.raises(KeyError, match="mine"):
        async with AgentManager(db) as manager:
            service = await manager.register_service("echo", agent_file(), auto_start=True)
            raise KeyError("mine")
    assert not runs(service.instances[0].pid)


async def test_cancelling_the_application_stops_everything(db: Path, agent_file: AgentFile) -> None:
    async with trio.open_nursery() as nursery:
        manager = AgentManager(db)
        await nursery.start(manager.run)
        service = await manager.register_service("echo", agent_file(), auto_start=True)
        nursery.cancel_scope.cancel()
    assert not runs(service.instances[0].pid)
    with pytest.raises(ManagerNotRunning):
        manager.list_services()


async def test_a_cancelled_application_inside_async_with_stops_everything(
    db: Path, agent_file: AgentFile
) -> None:
    with trio.CancelScope() as scope:
        async with AgentManager(db) as manager:
            service = await manager.register_service("echo", agent_file(), auto_start=True)
            scope.cancel()
            await trio.sleep_forever()
    assert scope.cancelled_caught
    assert not runs(service.instances[0].pid)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("def create_agent(:\n", "SyntaxError"),
        ("import missing_module_of_mine\n", "missing_module_of_mine"),
        ("def create_agent():\n    raise RuntimeError('no key')\n", "no key"),
        ("x = 1\n", "create_agent"),
    ],
)
async def test_a_file_that_gives_no_agent_is_an_error_with_its_last_words(
    db: Path, agent_file: AgentFile, source: str, said: str
) -> None:
    async with AgentManager(db) as manager:
        with pytest.raises(ServiceFailedToStart, match=said), trio.fail_after(60):
            await manager.register_service("bad", agent_file(source), auto_start=True)
        bad = manager.get_service("bad")
        assert bad.status is ServiceStatus.ERROR
        assert said in (bad.error_message or "")
        assert bad.restart_count == 0


async def test_bad_requests_are_named_and_change_nothing(db: Path, agent_file: AgentFile) -> None:
    async with AgentManager(db) as manager:
        await manager.register_service("echo", agent_file())
        with pytest.raises(NameTaken):
            await manager.register_service("echo", agent_file())
        with pytest.raises(AgentFileNotFound):
            await manager.register_service("other", "nowhere.py")
        with pytest.raises(ServiceNotFound):
            await manager.start_service("nobody")
        with pytest.raises(WrongState, match="agentmgr start echo"):
            await manager.check_service_health("echo")
        assert [s.name for s in manager.list_services()] == ["echo"]


async def test_unregistering_stops_and_forgets(db: Path, agent_file: AgentFile) -> None:
    async with AgentManager(db) as manager:
        service = await manager.register_service("echo", agent_file(), auto_start=True)
        await manager.unregister_service("echo")
        assert not runs(service.instances[0].pid)
        assert manager.list_services() == []
    with sqlite3.connect(db) as connection:
        assert connection.execute("select count(*) from services").fetchone() == (0,)
    connection.close()


@pytest.mark.parametrize(
    ("end", "code"),
    [
        (AgentManager.stop_service, 1001),
        (partial(AgentManager.unregister_service, force=True), 1001),
        (partial(AgentManager.restart_service, force=True), 1012),
    ],
    ids=["stop", "unregister by force", "restart by force"],
)
async def test_a_client_hears_whether_its_service_comes_back(
    db: Path, agent_file: AgentFile, end: Callable[..., Awaitable[object]], code: int
) -> None:
    async with AgentManager(db) as manager, trio.open_nursery() as nursery:
        await manager.register_service(
            "echo", agent_file(), config=evolve(QUICK, seamless=False), auto_start=True
        )
        port = await nursery.start(manager.serve_proxy, "localhost", 0)
        async with connected(f"ws://localhost:{port}/services/echo") as client:
            await said(client)
            async with trio.open_nursery() as ending:
                ending.start_soon(end, manager, "echo")
                with pytest.raises(ConnectionClosed) as closed, trio.fail_after(60):
                    await client.get_message()
            assert closed.value.reason.code == code
        nursery.cancel_scope.cancel()


async def test_unregistering_twice_at_once_ends_in_one_removal(db: Path, agent_file: AgentFile) -> None:
    outcomes: list[str] = []

    async def unregister(manager: AgentManager) -> None:
        try:
            await manager.unregister_service("echo")
            outcomes.append("done")
        except (WrongState, ServiceNotFound) as error:
            outcomes.append(error.code)

    async with AgentManager(db) as manager:
        await manager.register_service("echo", agent_file(), auto_start=True)
        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(unregister, manager)
        assert outcomes.count("done") == 1
        assert manager.list_services() == []


async def test_services_are_listed_by_status_tag_and_name(db: Path, agent_file: AgentFile) -> None:
    async with AgentManager(db) as manager:
        await manager.register_service("weather", agent_file(), tags={"weather", "prod"}, auto_start=True)
        await manager.register_service("news", agent_file(), tags={"prod"})

        def names(**filters: object) -> list[str]:
            return [s.name for s in manager.list_services(**filters)]  # type: ignore[arg-type]

        assert names() == ["news", "weather"]
        assert names(status="running") == ["weather"]
        assert names(tags=["weather", "sport"]) == ["weather"]
        assert names(name="ew") == ["news"]


async def test_a_rule_sends_its_clients_to_its_targets_while_it_lasts(
    db: Path, agent_file: AgentFile
) -> None:
    async with AgentManager(db) as manager, trio.open_nursery() as nursery:
        for name in ("plain", "vip"):
            source = f"def create_agent():\n    async def a(m):\n        return {name!r}\n    return a\n"
            await manager.register_service(name, agent_file(source, f"{name}.py"), auto_start=True)
        port = await nursery.start(manager.serve_proxy, "localhost", 0)
        url = f"ws://localhost:{port}/?tier=gold"
        condition = RoutingCondition(field="query.tier", operator=ConditionOperator.EQUALS, value="gold")
        with manager.subscribe() as events, trio.fail_after(60):
            manager.add_routing_rule(
                RoutingRule(name="gold", conditions=(condition,), target_services=("vip",))
            )
            assert (await events.receive()).kind == "rule.created"
        assert {await ask(url, "who?") for _ in range(4)} == {"vip"}
        await manager.delete_routing_rule("gold")
        assert {await ask(url, "who?") for _ in range(4)} == {"plain", "vip"}
        nursery.cancel_scope.cancel()


async def test_a_client_that_is_cut_off_comes_back_to_the_instance_that_holds_its_session(
    db: Path, agent_file: AgentFile
) -> None:
    source = """
import os
import signal
import trio
def create_agent():
    async def count(message):
        for number in range(60):
            yield f"{number} "
            await trio.sleep(0.002)
        yield str(os.getpid())
    return count
"""
    async with AgentManager(db) as manager, trio.open_nursery() as nursery:
        await manager.register_service(
            "count", agent_file(source), config=ServiceConfig(instances=3), auto_start=True
        )
        port = await nursery.start(manager.serve_proxy, "localhost", 0)
        async with open_session(f"ws://localhost:{port}/") as session:
            for _ in range(3):
                said = []
                async for event in await session.send("go"):
                    if event.event == "agent.partial_answer":
                        said.append(event.content)
                        if len(said) % 20 == 7:
                            session.cut()
                assert said[:-1] == [f"{number} " for number in range(60)]
                assert event.content == "".join(said)
        nursery.cancel_scope.cancel()


async def test_sessions_are_counted_while_they_live_and_when_they_end(
    db: Path, agent_file: AgentFile
) -> None:
    async with AgentManager(db) as manager, trio.open_nursery() as nursery:
        await manager.register_service("echo", agent_file(), auto_start=True)
        port = await nursery.start(manager.serve_proxy, "localhost", 0)

        def look_and_disconnect() -> None:
            (connection,) = manager.list_connections()
            assert (connection.service_name, connection.messages_from_client) == ("echo", 1)
            assert manager.get_service("echo").active_sessions == 1
            manager.disconnect(connection.connection_id)

        def converse() -> None:
            # Not trio-websocket's client: it leaves its socket open when the server closes first.
            with connect(f"ws://localhost:{port}/") as client:
                client.send("hello")
                assert heard(client) == "echo: hello"
                trio.from_thread.run_sync(look_and_disconnect)
                with pytest.raises(ConnectionClosedError) as closed:
                    client.recv()
            assert closed.value.rcvd is not None
            assert closed.value.rcvd.code == 1008

        await trio.to_thread.run_sync(converse)
        with trio.fail_after(60):
            while manager.list_connections():
                await trio.lowlevel.checkpoint()
        figures = manager.get_service_stats("echo")
        assert figures["connections"] == {"total": 1, "active": 0, "peak": 1}
        assert 0 < figures["response_time"]["handshake"]["p50_s"] < 5
        assert 0 < figures["response_time"]["first_byte"]["p99_s"] < 5
        nursery.cancel_scope.cancel()
    async with AgentManager(db) as manager:
        then = manager.get_service_stats("echo")
        for kept in ("connections", "sessions", "response_time", "bytes"):
            assert then[kept] == figures[kept]


async def test_on_the_database_only_it_registers_and_lists_and_starts_nothing(
    db: Path, agent_file: AgentFile
) -> None:
    async with AgentManager(db, supervise=False) as manager:
        await manager.register_service("echo", agent_file())
        with pytest.raises(ManagerNotRunning, match="agentmgr daemon"):
            await manager.start_service("echo")
    async with AgentManager(db, supervise=False) as manager:
        assert [s.name for s in manager.list_services()] == ["echo"]


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere an flock meets SQLite's own locks")
async def test_a_second_manager_is_refused_although_the_lock_file_was_deleted(db: Path) -> None:
    async with AgentManager(db) as first:
        shutil.rmtree(first.paths.directory)
        with pytest.raises(ManagerAlreadyRunning, match=str(os.getpid())):
            async with AgentManager(db):
                pass
        assert first.list_services() == []
