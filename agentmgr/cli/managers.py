"""Which manager a command asks: one that runs, one that it starts, or none but the database.

One rule decides: the process that holds the database's lock is the manager, and it answers on the control
socket. A command never writes to a database that a manager holds. `find_manager` looks; the rest goes by what
it found.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import trio
from attrs import evolve, frozen

from ..errors import AgentManagerError, ManagerAlreadyRunning, ManagerError, ManagerNotRunning
from ..models import Service
from ..process import detached
from ..process.control_socket import connect
from ..process.ownership import is_starting, manager_pid, start_permit
from ..process.paths import RuntimePaths
from .group import Cli
from .out import note

if TYPE_CHECKING:
    from ..client.api import ManagerClient
    from .manager_interface import ManagerInterface, ReadsManager

RETRY_S = 0.03
_MOMENT_S = 3.0  #: a manager whose socket was deleted answers in less
_PATIENCE_S = 20.0  #: for another command that writes, or a manager on its way up or down
_READY = b"ready\n"


_HOW = "`agentmgr daemon` runs one, and `agentmgr start NAME` starts one in the background"


@frozen
class Found:
    """A manager that answers, a process that holds the database and does not, or neither."""

    paths: RuntimePaths
    client: ManagerClient | None = None  #: of the manager that answers
    silent: bool = False

    def required(self, how: str = _HOW) -> ManagerClient:
        """Raises `ManagerNotRunning`, with `how` to run one, and `ManagerError` where it does not answer."""
        if self.client is not None:
            return self.client
        if self.silent:
            pid = manager_pid(self.paths)
            raise ManagerError(
                f"the process {pid} manages {self.paths.database}, and does not answer on "
                f"{self.paths.control_socket}: it is a program that embeds a manager without "
                f"`serve_control`, or hangs; `kill {pid}` ends it"
            )
        raise ManagerNotRunning(f"no manager is running on {self.paths.database}; {how}")


async def find_manager(paths: RuntimePaths, *, patience_s: float = _MOMENT_S) -> Found:
    """Waits so long for a manager that is going down, and longer, unless that is 0, for one that another
    process brings up, also before it holds the database: on a busy machine that takes its time.
    """
    began = trio.current_time()
    while not await _answers(paths):
        held, starting = manager_pid(paths) is not None, is_starting(paths)
        if not held and not starting:
            return Found(paths)
        if trio.current_time() >= began + (_PATIENCE_S if starting and patience_s else patience_s):
            return Found(paths, silent=held)
        await trio.sleep(RETRY_S)
    from ..client.api import ManagerClient

    return Found(paths, ManagerClient(paths.control_socket))


async def _answers(paths: RuntimePaths) -> bool:
    try:
        stream = await connect(paths.control_socket)
    except OSError:  # no such file, or no process listens
        return False
    await trio.aclose_forcefully(stream)
    return True


async def running(cli: Cli, how: str = _HOW) -> ManagerClient:
    """The manager that runs. Raises `ManagerNotRunning`, with `how` to run one, and `ManagerError`."""
    return (await find_manager(cli.paths)).required(how)


@asynccontextmanager
async def for_reading(cli: Cli) -> AsyncIterator[ReadsManager]:
    """The manager, or what the database says where none runs."""
    found = await find_manager(cli.paths)
    if found.client is not None:
        yield found.client
        return
    from .offline import offline

    async with offline(cli.paths) as manager:
        for stranger in manager.strangers:
            note(f"this database is a copy: it records {stranger} and is left alone")
        if count := manager.unsupervised:
            if found.silent:
                found.required()
            what = "1 instance runs" if count == 1 else f"{count} instances run"
            note(f"no manager is running; {what} unsupervised, and `agentmgr daemon` adopts them")
        elif count := manager.unserved:
            what = "1 service" if count == 1 else f"{count} services"
            note(f"{what} should run and no manager does: `agentmgr daemon`")
        yield manager


async def with_secrets(manager: ReadsManager) -> list[Service]:
    """The services in full: with what no interface shows of them."""
    environments = await manager.get_environments()
    hooks: dict[str, str] = {}
    with suppress(AgentManagerError):  # a manager of an earlier version shows them
        hooks = await manager.get_hooks()

    def in_full(service: Service) -> Service:
        env, hook = environments.get(service.name, {}), hooks.get(service.name, service.config.on_failure)
        return evolve(service, config=evolve(service.config, env=env, on_failure=hook))

    return [in_full(service) for service in await manager.list_services()]


@asynccontextmanager
async def for_writing(cli: Cli, *, adopting: bool = False) -> AsyncIterator[ManagerInterface]:
    """The manager, or the database where none runs.

    `adopting`: the command may change what runs. If instances still run without a manager, it starts one,
    which adopts them.
    """
    async with AsyncExitStack() as stack:
        manager: ManagerInterface | None = (await find_manager(cli.paths)).client
        if manager is None and adopting and await _leftovers(cli):
            manager = await stack.enter_async_context(_started(cli))
        give_up_at = trio.current_time() + _PATIENCE_S
        while manager is None:
            from ..manager import AgentManager
            from .offline import LocalManager

            here = AgentManager(cli.paths.database, settings=cli.settings(), supervise=False)
            try:
                manager = LocalManager(await stack.enter_async_context(here))
            except ManagerAlreadyRunning:
                if trio.current_time() > give_up_at:
                    raise
                await trio.sleep(RETRY_S)
                manager = (await find_manager(cli.paths)).client
        yield manager


@asynccontextmanager
async def for_running(cli: Cli, services: Iterable[str] = ()) -> AsyncIterator[ManagerClient]:
    """The manager; one is started in the background where none runs.

    Before it starts one it checks that all `services` are registered. Raises `ServiceNotFound`.
    """
    found = await find_manager(cli.paths)
    if found.client is not None:
        yield found.client
        return
    from .offline import offline

    async with offline(cli.paths) as manager:
        for service in services:
            await manager.get_service(service)
    async with _started(cli) as client:
        yield client


async def manages_unless_another_does(
    paths: RuntimePaths, manage: Callable[[], Awaitable[None]]
) -> ManagerClient | None:
    """Runs `manage` and returns None, or returns the other manager when there is one, also when that one was
    quicker. Raises `ManagerError` when the other one does not answer.
    """
    found = await find_manager(paths)
    if found.client is not None:
        return found.client
    try:
        await manage()
    except* ManagerAlreadyRunning:
        pass
    else:
        return None
    return (await find_manager(paths)).required()


async def _leftovers(cli: Cli) -> bool:
    from .offline import offline

    async with offline(cli.paths) as manager:
        return manager.unsupervised > 0


@asynccontextmanager
async def _started(cli: Cli) -> AsyncIterator[ManagerClient]:
    """Starts `agentmgr daemon` in a session of its own, unless one answers when the lock is ours.

    Prints its pid on stderr. Inside the block no `agentmgr daemon` of a terminal takes the place of the one
    that was started. Raises `ManagerError` with the daemon's own message if it does not start.
    """
    with await start_permit(cli.paths) as permit:
        client = (await find_manager(cli.paths)).client
        if client is None:
            client = await _start(cli)
        else:  # another command was quicker
            permit.close()
        yield client


async def _start(cli: Cli) -> ManagerClient:
    from ..client.api import ManagerClient

    paths = cli.paths
    log_start = paths.daemon_log.stat().st_size if paths.daemon_log.exists() else 0
    reading, writing = os.pipe()
    async with trio.lowlevel.FdStream(reading) as answer:
        try:
            process = _spawn(cli, writing)
        finally:
            os.close(writing)
        said = b"".join([chunk async for chunk in answer])  # until its last writer closes it
    if said == _READY:
        detached.disown(process)
        note(f"started a manager in the background, pid {process.pid}; its log is {paths.daemon_log}")
        return ManagerClient(paths.control_socket)
    code = await trio.to_thread.run_sync(process.wait)
    if (client := (await find_manager(paths)).client) is not None:  # a program that embeds one was quicker
        return client
    problem = said.decode(errors="replace").strip() or _last_line(paths.daemon_log, log_start)
    if code < 0:
        problem = f"it was killed by {signal.Signals(-code).name} before it was ready"
    raise ManagerError(f"the manager did not start: {problem}; its log is {paths.daemon_log}")


def _spawn(cli: Cli, ready_fd: int) -> subprocess.Popen[bytes]:
    paths = cli.paths
    with paths.daemon_log.open("ab") as log:
        paths.daemon_log.chmod(0o600)
        return detached.start(
            "agentmgr",
            *("daemon", "--db-path", str(paths.database), "--ready-fd", str(ready_fd)),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=log,  # what it says before it logs, or when it cannot any more
            inherited=[ready_fd],
        )


def _last_line(path: Path, start: int) -> str:
    """The last line behind the offset `start`; before that are the lines of earlier managers."""
    try:
        lines = path.read_bytes()[start:].decode(errors="replace").splitlines()
    except OSError:
        return "it wrote nothing"
    return lines[-1].strip() if lines else "it wrote nothing"
