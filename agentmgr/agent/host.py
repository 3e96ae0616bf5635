"""The host: loads an agent file, serves it, and ends in good order."""

from __future__ import annotations

import logging
import os
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import trio
from attrs import field, frozen

from .. import telemetry
from ..boundary import Failure, attempt, contain, name_of
from ..core.hosts import authority, is_loopback
from ..errors import AgentManagerError, InvalidRequest, PortNotAvailable
from ..models.host_config import Runtime
from ..process.listening import log_shortages_rarely
from ..visible import visible
from .adapt import HostedAgent, RawAgent, adapt, needs, produce
from .door import Door
from .limits import SessionLimits
from .load import LoadedFile, failed, guarded, load
from .runtime import open_runtime, remedy
from .server import AgentServer
from .session_registry import SessionRegistry

if TYPE_CHECKING:
    from ..journal.journal import SessionJournal

SHUTDOWN_TIMEOUT_S = 5.0
"""For close frames and `on_session_end`. A supervisor waits 10 s by default before it kills."""

LEAVE_TIMEOUT_S = 2.0
"""After that, for what durable sessions have still to write."""

logger = logging.getLogger("agentmgr.agent")


@frozen
class HostOptions(SessionLimits):
    """What to serve, and where: `fd`, an inherited socket that listens already, or `host` and `port`."""

    fd: int | None = None
    host: str = "localhost"
    port: int = 0  #: 0: any free one
    token: str = field(default="", repr=False)
    allowed_origins: tuple[str, ...] | None = None  #: pages that may connect; None: those of this machine
    open_beyond_loopback: bool = False  #: where `host` is more than loopback, any machine may connect
    instance_id: str = ""  #: under which a manager knows this process
    node_id: str = ""  #: of this machine in a cluster; "": the manager's, or there is none
    lifeline_fd: int | None = None  #: a pipe; at its end of file the manager is gone, and this process ends
    ready_fd: int | None = None  #: a pipe, which gets a byte when the agent is served
    journal: str | None = field(default=None, repr=False)
    """The file that keeps the sessions, or `URL#SERVICE` of a Redis; None: they are in memory only."""
    log_level: str = "INFO"


class _VisibleLines(logging.Formatter):
    """An error of an agent's often has a client's words in it, and `agentmgr serve` logs to a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        return visible(super().format(record), lines=True)


def _set_up_logging(level: str) -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(_VisibleLines("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=level, handlers=[handler])
    log_shortages_rarely()


async def run(
    options: HostOptions,
    *,
    stop_signals: tuple[signal.Signals, ...] = (signal.SIGTERM, signal.SIGINT),
    task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serves until one of `stop_signals` comes; started with the URL it is reached at.

    Raises `AgentManagerError`: `AgentFileNotFound`, `AgentLoadError`, `PortNotAvailable`.
    """
    _set_up_logging(options.log_level)
    assert options.agent_factory_path is not None
    file = load(options.agent_factory_path)
    failure: AgentManagerError | None = None
    with trio.open_signal_receiver(*stop_signals) as signals:
        async with trio.open_nursery() as nursery:
            try:
                _check_journal(options.journal)
                agent = await make_agent(file, options.runtime, nursery)
                listener = await open_listener(options)
            except AgentManagerError as error:  # raised below: here it would become a group
                failure = error
            else:
                await _serve(agent, listener, options, signals, task_status)
            nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure


async def _serve(
    agent: HostedAgent,
    listener: trio.SocketListener,
    options: HostOptions,
    signals: AsyncIterator[int],
    task_status: trio.TaskStatus[str],
) -> None:
    async with AsyncExitStack() as stack:
        journal, generation = None, 0
        if options.journal is not None and not isinstance(agent, RawAgent):  # that one has no sessions
            journal = await stack.enter_async_context(_journal(options.journal, options))
            if "://" not in options.journal:
                from ..journal.moving import generation_of

                generation = generation_of(Path(options.journal))
        traces = telemetry.begin(os.environ.get("AGENTMGR_SERVICE", "agent"))
        if traces is not None:
            stack.push_async_callback(traces.close)
        sessions = SessionRegistry(
            agent,
            options,
            instance_id=options.instance_id,
            node_id=None if "://" in (options.journal or "") else options.node_id,
            generation=generation,
            journal=journal,
            telemetry=traces,
        )
        await _serve_sessions(agent, sessions, listener, options, signals, task_status)


def _check_journal(where: str | None) -> None:
    """Raises `AgentManagerError` where it cannot be used from here."""
    if where is None or "://" not in where:
        return
    from ..journal.redis_connection import RedisAddress

    url, _, service = where.partition("#")
    RedisAddress.parse(url)
    if not service:
        raise InvalidRequest("a journal in Redis needs a service's name behind its URL: redis://HOST/0#NAME")


def _journal(where: str, options: HostOptions) -> AbstractAsyncContextManager[SessionJournal]:
    # Not before they are needed: sqlite3 takes 5 ms to import.
    if "://" not in where:
        from ..journal.sqlite import open_journal as open_file

        return open_file(Path(where), options.instance_id)
    from ..journal.holders import run_of
    from ..journal.redis import open_journal

    url, _, service_id = where.partition("#")
    return open_journal(url, service_id, options.instance_id, run=run_of(options.token))


async def _serve_sessions(
    agent: HostedAgent,
    sessions: SessionRegistry,
    listener: trio.SocketListener,
    options: HostOptions,
    signals: AsyncIterator[int],
    task_status: trio.TaskStatus[str],
) -> None:
    address = listener.socket.getsockname()[0]
    any_machine = options.open_beyond_loopback and not is_loopback(address)
    if any_machine:
        logger.warning(
            "%s is not loopback: any machine and user that reaches it may use this agent; "
            "for tokens and TLS, register the agent and use the gateway", address,
        )  # fmt: skip
    door = Door(options.token, allowed_origins=options.allowed_origins, any_machine=any_machine)
    server = AgentServer(agent, sessions, token=options.token, door=door)
    async with trio.open_nursery() as nursery:
        await nursery.start(sessions.run)
        async with trio.open_nursery() as serving:
            serving.start_soon(server.serve, listener)
            if options.lifeline_fd is not None:
                # Not in `serving`: that ends when the last client is gone, whatever the manager does.
                nursery.start_soon(_end_with_the_manager, options.lifeline_fd)
            logger.info("%s is served at %s", options.agent_factory_path, _url(listener))
            task_status.started(_url(listener))
            if options.ready_fd is not None:
                os.write(options.ready_fd, b"\n")
                os.close(options.ready_fd)
            async for _ in signals:
                break
            server.go_away()
            serving.cancel_scope.deadline = trio.current_time() + SHUTDOWN_TIMEOUT_S
        with trio.move_on_after(LEAVE_TIMEOUT_S):
            await sessions.all_left()
        nursery.cancel_scope.cancel()


async def make_agent(file: LoadedFile, wanted: Runtime, nursery: trio.Nursery) -> HostedAgent:
    """Calls the factory, on the runtime that was asked for, or that the file names or shows by its imports.

    Where none of them says it, what the factory gave decides.
    Raises `AgentLoadError`.
    """
    wanted = file.runtime if wanted is Runtime.AUTO else wanted
    runtime = await open_runtime(wanted, nursery)
    subject = await contain(lambda: runtime.call(produce, file.make))
    if isinstance(subject, Failure):
        what = f"{file.path}: the factory raised {name_of(subject.error)}"
        hint = attempt(lambda: remedy(subject.error, runtime.kind))
        raise failed(f"{what}; {hint}" if isinstance(hint, str) else what, subject.error)
    unusable = f"{file.path}: what the factory returned cannot be used"
    if wanted is Runtime.AUTO and guarded(lambda: needs(subject), unusable) is Runtime.ASYNCIO:
        runtime = await open_runtime(Runtime.ASYNCIO, nursery)
    return guarded(lambda: adapt(subject, file.make if file.makes_new else None, runtime), unusable)


async def open_listener(options: HostOptions) -> trio.SocketListener:
    """Raises `PortNotAvailable`."""
    if options.fd is not None:
        inherited = socket.socket(fileno=options.fd)
        inherited.setblocking(False)
        return trio.SocketListener(trio.socket.from_stdlib_socket(inherited))
    try:
        return (await trio.open_tcp_listeners(options.port, host=options.host))[0]
    except OSError as error:
        raise PortNotAvailable(
            f"Port {options.port} is not available on {options.host}: {error.strerror or error}"
        ) from None


async def _end_with_the_manager(pipe: int) -> None:
    """The manager writes nothing into it: it becomes readable when the other end is closed."""
    await trio.lowlevel.wait_readable(pipe)
    logger.warning("the manager has ended; this agent ends with it (on_manager_death = die)")
    os.kill(os.getpid(), signal.SIGTERM)


def _url(listener: trio.SocketListener) -> str:
    host, port, *_ = listener.socket.getsockname()
    return f"ws://{authority(host, port)}"
