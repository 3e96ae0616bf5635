"""What a person should know of is told by command and by POST; what fails there holds up nothing."""

import json
import resource
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from agentmgr.client.session import open_session
from agentmgr.errors import InvalidRequest, ServiceFailedToStart
from agentmgr.manager import AgentManager, hooks
from agentmgr.models import Event, RestartMode, ServiceConfig
from tests.proxy.conftest import eventually

FAILS = ("/bin/sh", "-c", "echo no such table; exit 3")


async def fail(manager: AgentManager, hook: str, name: str = "job") -> None:
    config = ServiceConfig(restart=RestartMode.NEVER, on_failure=hook)
    with pytest.raises(ServiceFailedToStart):
        await manager.register_service(name, command=FAILS, config=config, auto_start=True)


async def event(manager: AgentManager, kind: str) -> Event:
    with trio.fail_after(60), manager.subscribe() as events:
        for past in await manager.get_events():
            if past.kind == kind:
                return past
        async for found in events:
            if found.kind == kind:
                return found
    raise AssertionError


async def read(file: Path) -> dict[str, Any]:
    await eventually(file.exists)
    return dict(json.loads(file.read_text()))


class Server:
    """Answers each POST with the next of `statuses`, and then with 204."""

    def __init__(self, *statuses: int) -> None:
        self.statuses, self.port = [*statuses], 0
        self.heads: list[str] = []
        self.send, self.bodies = trio.open_memory_channel[dict[str, Any]](100)

    async def serve(self, stream: trio.SocketStream) -> None:
        received = b""
        while b"\r\n\r\n" not in received or not received.endswith(b"}"):
            received += await stream.receive_some()
        head, _, body = received.partition(b"\r\n\r\n")
        self.heads.append(head.decode())
        status = self.statuses.pop(0) if self.statuses else 204
        await stream.send_all(f"HTTP/1.1 {status} So\r\nContent-Length: 0\r\n\r\n".encode())
        await self.send.send(json.loads(body))

    @asynccontextmanager
    async def open(self) -> AsyncIterator[str]:
        async with trio.open_nursery() as nursery:
            listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
            nursery.start_soon(trio.serve_listeners, self.serve, listeners)
            yield f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}/alerts?key=1"
            nursery.cancel_scope.cancel()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hooks, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(hooks, "QUESTIONS_EVERY_S", 0.05)


async def test_a_command_gets_it_on_standard_input(db: Path, tmp_path: Path) -> None:
    got = tmp_path / "got"
    async with AgentManager(db) as manager:
        await fail(manager, f"/bin/sh -c 'cat > {got}.new; mv {got}.new {got}'")
        said = await read(got)
        job = manager.get_service("job")
        assert said["event"] == "given_up"
        assert (said["service"], said["service_id"]) == ("job", job.service_id)
        assert (said["status"], said["last_exit"]) == ("error", "exit code 3")
        assert "no such table" in said["reason"]


async def test_a_url_gets_it_by_post_and_is_tried_again(db: Path) -> None:
    server = Server(503, 500)
    async with server.open() as url, AgentManager(db) as manager:
        await fail(manager, url)
        with trio.fail_after(60):
            bodies = [await server.bodies.receive() for _ in range(3)]
        assert [body["event"] for body in bodies] == ["given_up"] * 3
        assert server.heads[0].startswith("POST /alerts?key=1 HTTP/1.1\r\n")
        assert "hook.failed" not in {event.kind for event in await manager.get_events()}


async def test_one_that_was_to_take_the_place_of_one_that_serves_on_is_not_given_up(
    db: Path, tmp_path: Path
) -> None:
    got, broken = tmp_path / "got", tmp_path / "broken"
    hook = f"/bin/sh -c 'cat >> {got}; echo >> {got}'"
    config = ServiceConfig(on_failure=hook, restart=RestartMode.NEVER)
    async with AgentManager(db) as manager:
        serves = ("/bin/sh", "-c", f"test ! -e {broken} && exec sleep 1000")
        await manager.register_service("web", command=serves, config=config, auto_start=True)
        broken.touch()
        with pytest.raises(ServiceFailedToStart):
            await manager.restart_service("web")
        await fail(manager, hook)
        await eventually(got.exists)
    assert [json.loads(line)["service"] for line in got.read_text().splitlines()] == ["job"]


async def test_a_command_that_only_a_shell_understands_is_refused(db: Path) -> None:
    async with AgentManager(db) as manager:
        for config in (ServiceConfig(on_failure="cat >> log"), ServiceConfig(health="command:a && b")):
            with pytest.raises(InvalidRequest, match=r"no shell reads it, and .* is for one: `sh -c"):
                await manager.register_service("web", command=("sleep", "1000"), config=config)


@pytest.mark.parametrize(
    ("hook", "why"),
    [
        ("/bin/sh -c 'echo the pager is off >&2; exit 4'", "exit code 4: the pager is off (4 attempts)"),
        ("/no/such/program", "cannot execute '/no/such/program': No such file or directory (4 attempts)"),
        ("http://127.0.0.1:1/", "cannot connect"),
        ("sleep 1000", "it took longer than 0.2 s (4 attempts)"),
    ],
)
async def test_what_cannot_be_delivered_is_an_event(
    db: Path, hook: str, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "sleep" in hook:
        monkeypatch.setattr(hooks, "TIMEOUT_S", 0.2)
    async with AgentManager(db) as manager:
        await fail(manager, hook)
        failed = await event(manager, "hook.failed")
        assert failed.detail["event"] == "given_up"
        assert why in str(failed.detail["reason"])


async def test_a_flood_is_bounded_and_holds_up_nothing(db: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hooks, "QUEUE", 2)
    monkeypatch.setattr(hooks, "LAST_S", 0.1)
    async with AgentManager(db) as manager:
        for number in range(8):  # 4 are on their way, 2 wait
            await fail(manager, "sleep 1000", f"job-{number}")
        failed = await event(manager, "hook.failed")
        assert failed.detail["reason"] == "2 others wait already"


ASKS = """
async def answer(message, session):
    await session.confirm("delete", {"path": "x"}, message="really?")

def create_agent():
    return answer
"""


async def test_a_question_that_waits_is_told_once(db: Path, agent_file: Any) -> None:
    server = Server()
    async with server.open() as url, AgentManager(db) as manager:
        config = ServiceConfig(on_failure=url, drain_timeout=0)
        service = await manager.register_service("asks", agent_file(ASKS), config=config, auto_start=True)
        assert service.endpoint is not None
        with trio.fail_after(60):
            async with open_session(service.endpoint) as session:
                await session.send("go")
                said = await server.bodies.receive()
                assert (said["event"], said["service"]) == ("question", "asks")
                assert (said["content"]["tool"], said["session_id"]) == ("delete", session.session_id)
                await trio.sleep(0.3)  # several looks later
        assert server.bodies.statistics().current_buffer_used == 0


async def test_it_hears_that_an_instance_is_unhealthy(db: Path, tmp_path: Path) -> None:
    got, sick = tmp_path / "got", tmp_path / "sick"
    config = ServiceConfig(
        on_failure=f"/bin/sh -c 'cat > {got}.new; mv {got}.new {got}'", ready="started", stop_timeout=5,
        health=f"command:/bin/sh -c '! cat {sick}'", health_check_interval=0.05, unhealthy_threshold=2,
        recovery_threshold=1000,
    )  # fmt: skip
    async with AgentManager(db) as manager:
        await manager.register_service("job", command=["sleep", "1000"], config=config, auto_start=True)
        sick.write_text("the index is stale")
        said = await read(got)
        assert (said["event"], said["service"], said["status"]) == ("unhealthy", "job", "unhealthy")
        assert "the index is stale" in said["reason"]


async def test_what_a_command_says_without_end_takes_no_memory(
    db: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hooks, "ATTEMPTS", 1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    async with AgentManager(db) as manager:
        await fail(manager, "/bin/sh -c 'head -c 200000000 /dev/zero | tr \\\\0 x; echo the end; exit 4'")
        failed = await event(manager, "hook.failed")
        assert str(failed.detail["reason"]).endswith("xxthe end (1 attempts)")
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 100_000, f"{grown} KiB"


async def test_what_waits_when_the_manager_ends_is_delivered(db: Path, tmp_path: Path) -> None:
    got = tmp_path / "got"
    async with AgentManager(db) as manager:
        await fail(manager, f"/bin/sh -c 'sleep 0.5; cat > {got}'")
    assert json.loads(got.read_text())["event"] == "given_up"


async def test_what_cannot_be_delivered_before_the_manager_ends_is_an_event(
    db: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hooks, "LAST_S", 0.1)
    async with AgentManager(db) as manager:
        await fail(manager, "sleep 1000")
    async with AgentManager(db) as manager:
        failed = await event(manager, "hook.failed")
        assert failed.detail["reason"] == "the manager ended before it was delivered"
        await manager.unregister_service("job", force=True)


async def test_a_question_is_told_by_one_manager_also_if_it_was_asked_while_none_ran(
    db: Path, agent_file: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Server()
    async with server.open() as url:
        with monkeypatch.context() as patch, trio.fail_after(60):
            patch.setattr(hooks, "QUESTIONS_EVERY_S", 1000)  # as if no manager were there when it is asked
            async with AgentManager(db) as manager:
                config = ServiceConfig(on_failure=url, drain_timeout=0)
                asks = await manager.register_service(
                    "asks", agent_file(ASKS), config=config, auto_start=True
                )
                assert asks.endpoint is not None
                async with open_session(asks.endpoint) as session:
                    async for found in await session.send("go"):
                        if found.event == "agent.user_confirm":
                            break
                    manager.request_shutdown(leave_running=True)
        for first in (True, False):
            async with AgentManager(db) as manager:
                if first:
                    with trio.fail_after(60):
                        assert (await server.bodies.receive())["event"] == "question"
                    await event(manager, "hook.asked")
                else:
                    await trio.sleep(0.5)  # several looks
                    await manager.stop_service("asks", force=True)
                    break
                manager.request_shutdown(leave_running=True)
    assert server.bodies.statistics().current_buffer_used == 0


async def test_what_it_leaves_running_in_the_background_is_not_waited_for(db: Path, tmp_path: Path) -> None:
    got = tmp_path / "got"
    async with AgentManager(db) as manager:
        with trio.fail_after(hooks.TIMEOUT_S):
            await fail(
                manager, f"/bin/sh -c 'exec 3<&0; (cat <&3 > {got}.$$; mv {got}.$$ {got}; sleep 20) & exit 5'"
            )
            assert "exit code 5 (4 attempts)" in str((await event(manager, "hook.failed")).detail["reason"])
        assert (await read(got))["event"] == "given_up"


async def test_a_password_in_a_url_is_shown_to_its_server_and_a_scheme_may_be_in_capitals(db: Path) -> None:
    server = Server()
    async with server.open() as url, AgentManager(db) as manager:
        await fail(manager, url.replace("http://", "HTTP://me:a%40b@"))
        with trio.fail_after(60):
            await server.bodies.receive()
        assert "Authorization: Basic bWU6YUBi" in server.heads[0]


async def test_a_fault_of_ours_in_a_hook_does_not_end_the_manager(
    db: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(hooks, "run_command", broken)
    async with AgentManager(db) as manager:
        await fail(manager, "true")
        failed = await event(manager, "hook.failed")
        assert "internal error: ZeroDivisionError()" in str(failed.detail["reason"])


@pytest.mark.parametrize(
    "hook",
    ["", "   ", "'never closed", "http:///path", "two\nlines", "ftp://host/", "http://host:99999/",
     "http://host/a b", "http://h\u00f6st/", "https://host:0/"],
)  # fmt: skip
def test_what_a_hook_must_be(hook: str) -> None:
    with pytest.raises(InvalidRequest, match="on_failure"):
        ServiceConfig(on_failure=hook)
