"""Services that start on demand, behind workers, with real processes: nobody is refused, nothing is lost."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.request import Request, urlopen

import pytest
import trio
from websockets.sync.client import connect

from agentmgr import AgentManager, ServiceConfig
from agentmgr.client.session import open_session
from agentmgr.models import ServiceStatus, StartMode
from agentmgr.process import detached
from tests.manager.test_sessions_go_home import COUNTING, asked
from tests.processes import alive
from tests.workers.conftest import connected, eventually, said
from tests.workers.test_managers_end import ask, daemon, die, pids, talk

ON_DEMAND = {"start": StartMode.ON_DEMAND}


@asynccontextmanager
async def gateway(manager: AgentManager, workers: int) -> AsyncIterator[int]:
    async with trio.open_nursery() as nursery:
        port = await nursery.start(partial(manager.serve_proxy, "localhost", 0, workers=workers))
        yield port
        nursery.cancel_scope.cancel()


def is_asleep(manager: AgentManager, name: str = "svc") -> bool:
    return manager.get_service(name).status is ServiceStatus.ASLEEP


async def counts(manager: AgentManager, kind: str) -> int:
    return sum(event.kind == kind for event in await manager.get_events())


@pytest.fixture
def workers(monkeypatch: pytest.MonkeyPatch, forks: Any) -> int:
    monkeypatch.setattr(detached, "subprocess", SimpleNamespace(Popen=forks))
    return 2


async def test_a_storm_starts_one_instance_and_a_session_goes_on_after_a_sleep(
    tmp_path: Path, workers: int
) -> None:
    file = tmp_path / "agent.py"
    file.write_text(COUNTING)
    config = ServiceConfig(idle_stop=0.5, **ON_DEMAND)
    async with AgentManager(tmp_path / "agent_manager.db") as manager:
        service = await manager.register_service("svc", str(file), config=config, auto_start=True)
        assert (service.status, service.instances) == (ServiceStatus.ASLEEP, ())
        async with gateway(manager, workers) as port:
            url = f"ws://localhost:{port}"
            answers: list[str] = []

            async def come(path: str) -> None:
                async with connected(url + path) as websocket:
                    answers.append(await said(websocket))

            async with trio.open_nursery() as nursery:
                for number in range(200):
                    nursery.start_soon(come, ("/", "/services/svc")[number % 2])
            assert len(answers) == 200
            assert len({answer.split()[1] for answer in answers}) == 1
            assert await counts(manager, "service.woken") == 1
            assert await counts(manager, "instance.starting") == 1
            (first,) = manager.get_service("svc").instances
            await eventually(lambda: is_asleep(manager))
            assert first.pid is not None
            assert not alive(first.pid)
            assert not (manager.paths.logs / ".lifelines" / first.instance_id).exists()

            async with open_session(url) as session:  # named by no address: its id leads to its service
                assert (await asked(session))[0] == 1
                session.cut()
                # Its client comes back by itself, and in between it may sleep or not.
                assert (await asked(session))[0] == 2
                session_id = session.session_id
            await eventually(lambda: is_asleep(manager))
            async with open_session(url, session_id=session_id) as session:
                turn, pid = await asked(session)
                assert (turn, pid != first.pid) == (3, True)
                (again,) = manager.get_service("svc").instances
                assert (again.instance_id, again.port) == (first.instance_id, first.port)
            await eventually(lambda: is_asleep(manager))
            await manager.sessions.say(session_id, "hello")
            assert not is_asleep(manager)


async def test_clients_that_come_as_it_falls_asleep_are_all_served(tmp_path: Path, workers: int) -> None:
    file = tmp_path / "agent.py"
    file.write_text(COUNTING)
    config = ServiceConfig(idle_stop=0.1, sessions="memory", **ON_DEMAND)
    async with AgentManager(tmp_path / "agent_manager.db") as manager:
        await manager.register_service("svc", str(file), config=config, auto_start=True)
        async with gateway(manager, workers) as port:
            for late_s in (0.0, 0.005, 0.01, 0.02, 0.03, 0.05, 0.08, 0.12):
                async with connected(f"ws://localhost:{port}") as websocket:
                    await said(websocket)
                await trio.sleep(0.1 + late_s)
                async with trio.open_nursery() as nursery:
                    for _ in range(4):
                        nursery.start_soon(_visit, f"ws://localhost:{port}")
            assert not manager.get_figures().refusals


async def test_clients_that_wait_for_a_start_wait_over_a_restart_too(tmp_path: Path, workers: int) -> None:
    file, ready = tmp_path / "agent.py", tmp_path / "ready"
    wait = f"import os, time\nwhile not os.path.exists({str(ready)!r}): time.sleep(0.01)\n"
    file.write_text(COUNTING + wait)
    config = ServiceConfig(sessions="memory", **ON_DEMAND)
    async with AgentManager(tmp_path / "agent_manager.db") as manager:
        await manager.register_service("svc", str(file), config=config, auto_start=True)
        async with gateway(manager, workers) as port, trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(_visit, f"ws://localhost:{port}")
            await eventually(lambda: any(it.pid for it in manager.get_service("svc").instances))
            (first,) = manager.get_service("svc").instances
            nursery.start_soon(manager.restart_service, "svc")
            await eventually(
                lambda: any(it.pid not in (None, first.pid) for it in manager.get_service("svc").instances)
            )
            ready.touch()
        assert not manager.get_figures().refusals


async def _visit(url: str) -> None:
    async with connected(url) as websocket:
        assert (await said(websocket)).startswith("1 ")


async def test_requests_of_other_protocols_wake_it_too(tmp_path: Path, workers: int) -> None:
    file = tmp_path / "agent.py"
    file.write_text(COUNTING)
    serve = (sys.executable, "-m", "http.server", "{port}", "--bind", "{host}", "--directory", str(tmp_path))
    async with AgentManager(tmp_path / "agent_manager.db") as manager:
        config = ServiceConfig(idle_stop=0.3, ready="http", **ON_DEMAND)
        await manager.register_service("site", command=serve, config=config, auto_start=True)
        config = ServiceConfig(idle_stop=0.3, **ON_DEMAND)
        await manager.register_service("svc", str(file), config=config, auto_start=True)
        async with gateway(manager, workers) as port:
            base = f"http://localhost:{port}"
            chat = {"model": "svc", "messages": [{"role": "user", "content": "hello"}]}
            asks = (
                ("site", Request(f"{base}/services/site/agent.py")),
                (
                    "svc",
                    Request(
                        f"{base}/v1/chat/completions",
                        json.dumps(chat).encode(),
                        {"Content-Type": "application/json"},
                    ),
                ),
            )
            for name, request in asks:
                ports = set()
                for _ in range(2):
                    assert is_asleep(manager, name)
                    with trio.fail_after(60):
                        answer = await trio.to_thread.run_sync(
                            lambda r=request: urlopen(r, timeout=60).read()
                        )
                    assert (COUNTING.encode() == answer) if name == "site" else (b'"1 ' in answer)
                    ports |= {instance.port for instance in manager.get_service(name).instances}
                    await eventually(lambda name=name: is_asleep(manager, name))
                assert len(ports) == 1


def test_a_manager_that_dies_and_comes_back_refuses_nobody_and_forgets_no_turn(
    shell: Any, tmp_path: Path
) -> None:
    slow = tmp_path / "slow.py"
    slow.write_text(
        """
import os, trio
from pathlib import Path

def create_agent():
    async def answer(message):
        Path(__file__).with_name(f"began-{message.attempt}").write_text(str(os.getpid()))
        while message.attempt == 1:
            await trio.sleep(0.1)
        Path(__file__).with_name("done").touch()
        return "done"
    return answer
"""
    )

    async def register() -> None:
        async with AgentManager(shell.paths.database) as manager:
            config = ServiceConfig(idle_stop=0.5, **ON_DEMAND)
            await manager.register_service(
                "echo", str(shell.directory / "my_agent.py"), config=config, auto_start=True
            )
            config = ServiceConfig(idle_stop=0.5, on_crash="retry", **ON_DEMAND)
            await manager.register_service("slow", str(slow), config=config, auto_start=True)

    def status(name: str) -> str:
        return str(ask(shell, "get_service", name).status)

    def until(condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + 60
        while not condition():
            assert time.monotonic() < deadline
            time.sleep(0.02)

    trio.run(register)
    with daemon(shell, "0") as first:
        url = first.until("gateway at ws").split()[-1]
        port = url.rpartition(":")[2]
        assert (status("echo"), status("slow")) == ("asleep", "asleep")
        kept = pids(shell)
        die(first)
        with ThreadPoolExecutor(1) as threads:
            waiting = threads.submit(connect, f"{url}/services/echo", open_timeout=60)
            with daemon(shell, port) as second:  # while it waits at a worker
                second.until("gateway at ws")
                assert pids(shell) == kept
                with waiting.result(60) as client:
                    talk(client, "hello")
                    (instance,) = ask(shell, "get_service", "echo").instances
                    die(second)
                    talk(client, "without a manager")
                    with daemon(shell, port) as third:
                        third.until("gateway at ws")
                        until(lambda: status("echo") == "running")
                        assert ask(shell, "get_service", "echo").instances[0].pid == instance.pid
                        talk(client, "adopted")
                        with connect(f"{url}/services/slow", open_timeout=60) as of_slow:
                            of_slow.send("work")
                            until((tmp_path / "began-1").exists)
                        die(third)
                        os.kill(int((tmp_path / "began-1").read_text()), signal.SIGKILL)
        with daemon(shell, port) as fourth:
            fourth.until("gateway at ws")
            until((tmp_path / "done").exists)  # no client has come
            until(lambda: (status("echo"), status("slow")) == ("asleep", "asleep"))
            ask(shell, "request_shutdown")
            assert fourth.process.wait(timeout=60) == 0
