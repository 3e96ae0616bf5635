"""What can happen to the journal of durable sessions, with a real manager, gateway, host and clients.

Conversations go on in memory meanwhile, `status` and `/metrics` say that they do, all is durable again by
itself, and each event is there once: read anew, and after the host was killed. The manager and its host are
shared by all of these.
"""

import os
import re
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, ExitStack, closing, contextmanager
from pathlib import Path

import httpx2
import pytest
import trio

from agentmgr.client import ManagerClient
from agentmgr.journal import schema
from agentmgr.models import ServiceConfig
from agentmgr.process.paths import RuntimePaths
from agentmgr.protocol import TURN_ENDS
from agentmgr.testing.agents import bare_client
from tests.processes import end_all_in

SERVICE = "agent"
AGENT = """
from agentmgr.journal import sqlite

# As by default, but so that a test need not wait for so long.
sqlite.open_journal.__wrapped__.__kwdefaults__.update(lock_patience_s=0.3, retry_s=0.05)

def create_agent():
    async def answer(message, session):
        session.state["answers"] = session.state.get("answers", 0) + 1
        if str(message).startswith("keep "):
            session.state["text"] = "x" * int(str(message)[5:])
        if str(message).startswith("stream "):
            for _ in range(32 * int(str(message)[7:])):  # MiB
                await session.emit("agent.partial_answer", "x" * 2**15)
        return [session.state["answers"], len(session.state.get("text", ""))]
    return answer
"""
CONFIG = ServiceConfig(health_check_interval=0.1, restart_delay=0, max_restart_count=10**6)


async def until(condition: Callable[[], Awaitable[object]]) -> None:
    with trio.fail_after(20):
        while not await condition():  # noqa: ASYNC110 - the other process does not announce it
            await trio.sleep(0.02)


class Site:
    """A manager's process in a directory, with its gateway and API, and a service."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.no_mount = ""  #: why its journals have no small file system of their own
        self._paths = RuntimePaths.of(directory / "agent_manager.db")
        self._file = directory / "agent.py"
        self._file.write_text(AGENT)
        words = [sys.executable, "-m", "agentmgr", "daemon", "--proxy-port", "0", "--api-port", "0"]
        self.process = subprocess.Popen(
            words, cwd=directory, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        said = ""
        while "API at" not in said:
            line = self.process.stdout.readline()
            assert line, said
            said += line.decode()
        self.gateway = re.search("gateway at (.*)", said)[1]
        self._api = re.search("API at (.*)/docs", said)[1]
        self.sessions = self._paths.sessions

    async def register(self) -> None:
        async with ManagerClient(self._paths.control_socket) as manager:
            service = await manager.register_service(SERVICE, str(self._file), config=CONFIG, auto_start=True)
        self.journal = self.sessions / f"{service.service_id}.db"

    async def service(self):
        async with ManagerClient(self._paths.control_socket) as manager:
            return await manager.get_service(SERVICE)

    async def stop(self) -> None:
        async with ManagerClient(self._paths.control_socket) as manager:
            await manager.stop_service(SERVICE)

    async def start(self) -> None:
        async with ManagerClient(self._paths.control_socket) as manager:
            await manager.start_service(SERVICE)

    async def metric(self) -> float:
        async with httpx2.AsyncClient() as http:
            text = (await http.get(f"{self._api}/metrics")).text
        return float(re.search(rf'agentmgr_service_journal_degraded{{service="{SERVICE}"}} (.*)', text)[1])

    async def until_degraded(self, is_degraded: bool) -> str | None:
        """As `status` and `/metrics` say; returns the words of the former."""

        async def shown() -> bool:
            return (await self.instance()).journal_degraded == is_degraded == await self.metric()

        await until(shown)
        service = await self.service()
        assert service.health == ("degraded" if is_degraded else "healthy")
        return service.error_message

    async def instance(self):
        return (await self.service()).instances[0]

    async def kill_the_host(self) -> None:
        pid = (await self.instance()).pid
        os.kill(pid, signal.SIGKILL)

        async def another() -> bool:
            return (await self.instance()).pid not in (pid, None)

        await until(another)

    def log(self) -> str:
        return "".join(path.read_text() for path in self._paths.logs.rglob("0.log"))

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()
        end_all_in(self.directory)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    site = Site(tmp_path_factory.mktemp("site"))
    with ExitStack() as stack:
        stack.callback(site.end)
        site.sessions.mkdir(mode=0o700)
        mount = ["mount", "-t", "tmpfs", "-o", "size=128m,mode=0700", "none", str(site.sessions)]
        site.no_mount = subprocess.run(mount, capture_output=True, text=True).stderr.strip()
        if not site.no_mount:
            stack.callback(subprocess.run, ["umount", "-l", str(site.sessions)], check=True)
        trio.run(site.register)
        yield site


def remount(site: Site, mode: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{mode}", str(site.sessions)], check=True)


@contextmanager
def locked(site: Site) -> Iterator[None]:
    with closing(sqlite3.connect(site.journal, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield


@contextmanager
def full(site: Site) -> Iterator[None]:
    if site.no_mount:
        pytest.skip(f"no small file system can be mounted here: {site.no_mount}")
    filler = site.sessions / "filler"
    with filler.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, os.statvfs(filler).f_bfree * os.statvfs(filler).f_bsize)
    yield
    filler.unlink()


@contextmanager
def deleted(site: Site) -> Iterator[None]:
    for file in site.sessions.iterdir():
        file.unlink()
    site.journal.mkdir()  # so that it stays so for a while
    yield
    site.journal.rmdir()


@contextmanager
def damaged(site: Site) -> Iterator[None]:
    with closing(schema.connect(site.journal)) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    with site.journal.open("r+b") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        file.write(os.urandom(size))
    yield


def bare(events):
    return [{name: value for name, value in event.items() if name != "connection_id"}
            for event in events if "seq" in event]  # fmt: skip


async def read_anew(site, client):
    """The same events, each once, as another client gets them from the beginning."""
    wanted = bare(client.events)
    async with bare_client(site.gateway) as again:
        await again.say("user.reconnect", session_id=client.session_id, last_seq=0)
        while len(bare(again.events)) < len(wanted):
            await again.receive()
        assert bare(again.events) == wanted
    assert [event["seq"] for event in wanted] == list(range(1, len(wanted) + 1))


@pytest.mark.parametrize(
    ("trouble", "words"),
    [(locked, "locked"), (full, "full"), (deleted, "directory|file"), (damaged, None)],
)
async def test_conversations_go_on_in_memory_and_are_durable_again_by_themselves(site, trouble, words):
    large = "x" * 300_000  # the journal has to grow
    async with bare_client(site.gateway) as client, bare_client(site.gateway) as other:
        assert (await client.ask("before"))["content"] == [1, 0]
        with trouble(site):
            assert (await client.ask(large))["content"] == [2, 0]
            assert (await other.ask("a new one"))["content"] == [1, 0]
            if words is not None:
                shown = await site.until_degraded(True)
                assert re.search(f"its sessions are in memory only: .*({words})", shown)
            else:
                await until(lambda: trio.to_thread.run_sync(lambda: [*site.sessions.glob("*.corrupt-*")]))
        await site.until_degraded(False)
        assert (await client.ask("after"))["content"] == [3, 0]
        await site.kill_the_host()
        for each, answers in ((client, 4), (other, 2)):
            assert (await each.ask("after the kill"))["content"] == [answers, 0]
            await read_anew(site, each)


async def test_clients_of_a_host_that_is_killed_while_in_memory_come_back_to_what_was_kept(site):
    """They have more than the journal: no number is used again, and the connection goes on from nowhere."""
    async with bare_client(site.gateway) as client:
        await client.ask("kept")
        with locked(site):
            await client.ask("in memory")
            await site.until_degraded(True)
            os.kill((await site.instance()).pid, signal.SIGKILL)
        with pytest.raises(trio.EndOfChannel):
            await client.until(*TURN_ENDS)
        assert client.websocket.closed.code == 1012
    async with bare_client(site.gateway) as again:
        await again.say("user.reconnect", session_id=client.session_id, last_seq=3)
        assert (await again.until("system.notice"))["content"]["replay_from"] == 4
        end = await again.ask("and on")
        assert (end["seq"], end["content"]) == (4, [2, 0])


async def test_on_a_read_only_disk_new_sessions_are_in_memory_and_those_before_come_back(site):
    if site.no_mount:
        pytest.skip(f"no file system can be mounted here: {site.no_mount}")
    async with bare_client(site.gateway) as client:
        await client.ask("before")
    await site.stop()
    remount(site, "ro")
    try:
        await site.start()
        async with bare_client(site.gateway) as new:
            assert (await new.ask("meanwhile"))["content"] == [1, 0]
            assert "read-only" in (await site.until_degraded(True)).lower()
            await new.say("user.watch", session_id=client.session_id)
            assert (await new.until("system.error"))["content"]["code"] == "session_unreachable"
            remount(site, "rw")
            await site.until_degraded(False)
            assert (await new.ask("after"))["content"] == [2, 0]
            await site.kill_the_host()
            await read_anew(site, new)
            await read_anew(site, client)
    finally:
        remount(site, "rw")


@pytest.mark.parametrize("kind", ["corrupt", "newer"])
async def test_what_cannot_be_read_is_set_aside_under_a_name_that_is_shown_and_the_service_runs(site, kind):
    async with bare_client(site.gateway) as client:
        await client.ask("before")
    await site.stop()
    if kind == "newer":
        with closing(schema.connect(site.journal)) as db:
            db.execute(f"PRAGMA user_version = {schema.VERSION + 1}")
    else:
        site.journal.write_bytes(b"no journal at all " * 1000)
    before, others = site.journal.read_bytes(), {*site.sessions.iterdir()}
    await site.start()
    async with bare_client(site.gateway) as new:
        assert (await new.ask("hello"))["content"] == [1, 0]
    [kept] = {*site.sessions.glob(f"{site.journal.name}.{kind}-*Z")} - others
    assert kept.read_bytes() == before

    async def said():
        return kept.name in ((await site.instance()).said or "")

    await until(said)
    assert str(kept) in site.log()
    assert (await site.service()).health == "healthy"


async def test_ten_megabytes_of_state_are_an_error_and_the_state_before_is_kept(site):
    async with bare_client(site.gateway) as client:
        assert (await client.ask("keep 1000"))["content"] == [1, 1000]
        end = await client.ask("keep 10000000")
        assert (end["event"], end["content"]["code"]) == ("agent.error", "state_too_large")
        assert (await client.ask("?"))["content"] == [2, 1000]
        await site.kill_the_host()
        assert (await client.ask("?"))["content"] == [3, 1000]


def memory_of(pid: int) -> int:
    """Resident, in bytes."""
    return int(re.search(r"VmRSS:\s*(\d+)", Path(f"/proc/{pid}/status").read_text())[1]) * 1024


async def dial_with_little_room(host, port):
    """A client that reads nothing is noticed by its server soon."""
    sock = trio.socket.socket()
    sock.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_RCVBUF, 4096)
    await sock.connect((host, port))
    return trio.SocketStream(sock)


async def test_a_client_that_never_acknowledges_and_50_watchers_that_are_stuck_cost_little_memory(site):
    """More of them than one; and the client that reads is not held up."""
    instance = await site.instance()
    url = f"ws://127.0.0.1:{instance.port}"
    async with bare_client(site.gateway) as client, AsyncExitStack() as stack:
        await client.open()
        for _ in range(50):
            watcher = await stack.enter_async_context(bare_client(url, dial=dial_with_little_room))
            await watcher.say("user.watch", session_id=client.session_id)
            await watcher.until("system.notice")
        await client.ask("stream 4")
        before = memory_of(instance.pid)
        await client.ask("stream 64")
        grown = memory_of(instance.pid) - before
        assert grown < 44 * 2**20  # 30, however much is said
