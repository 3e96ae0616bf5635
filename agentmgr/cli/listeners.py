"""The gateway and the API that a command opens: as the manager, or beside another process that is it.

Beside a manager the gateway is this process, and its workers, and goes on when the manager is killed or
replaced; the API is the manager's own, which it serves for as long as this command runs.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from secrets import token_hex

import trio
from attrs import evolve, frozen

from ..api import serve_api
from ..client.api import ListenerKind, ManagerClient
from ..errors import ManagerNotRunning, PortNotAvailable
from ..logging_setup import configure_logging
from ..manager import AgentManager
from ..manager.worker_set import WorkerSet
from ..process.listening import bind, open_listeners
from ..process.paths import RuntimePaths
from ..proxy.certificate import Certificate
from ..settings import Settings
from ..worker.pidfile import PidFile, living, locked
from ..worker.spec import WorkerSpec
from ..worker.worker import Worker
from .foreground import managing, run_until_stopped
from .group import Cli
from .managers import find_manager, manages_unless_another_does
from .out import note, say
from .render import address, console
from .signals import stop_signals

_SUCCESSION_S = 3.0  #: a manager that takes the place of another one answers sooner than that
_LOOK_S = 0.1  #: between looks for it


@frozen
class Listeners:
    """What a command opens: ports; None is not opened."""

    host: str
    gateway: int | None
    api: int | None
    certificate: Certificate | None
    api_opened: Callable[[int], Awaitable[None]] | None = None  #: what else is done then, with its port

    @property
    def files(self) -> tuple[str | None, str | None]:
        """Of the certificate and its key."""
        return self.certificate.files if self.certificate else (None, None)

    async def opened(self, kind: ListenerKind, port: int) -> None:
        tls = self.certificate is not None
        where = address(kind, self.host, port, tls=tls)
        if kind == "api":  # in one piece: a script may read the first line alone, and close
            where += f"\nconsole at {console(self.host, port, tls=tls)}"
        say(where, lines=True, flush=True)
        if kind == "api" and self.api_opened is not None:
            await self.api_opened(port)


async def serve(cli: Cli, settings: Settings, wanted: Listeners, *, kept: Sequence[str]) -> None:
    """Opens them until Ctrl-C, or until the manager ends.

    `kept`: flags that a manager which runs already does not take over.
    """
    configure_logging(settings.log_level, settings.log_format)
    async with stop_signals() as signals:

        async def manage() -> None:
            await check_ports(cli.paths, wanted)
            async with managing(cli, settings, signals) as (manager, nursery):
                await open_here(nursery, manager, wanted)
                await run_until_stopped(manager, signals)

        client = await manages_unless_another_does(cli.paths, manage)
        if client is None:
            return
        if kept:
            note(f"a manager is running already; it keeps its own {', '.join(kept)}")
        async with trio.open_nursery() as nursery:
            if wanted.api is not None:
                nursery.start_soon(_serve_api, cli, client, wanted, signals.first)
            if wanted.gateway is not None:
                await _serve_gateway(cli, client, settings, wanted, signals.first)
                nursery.cancel_scope.cancel()
        if signals.first.is_set():
            return
        if wanted.gateway is not None and (await find_manager(cli.paths, patience_s=0)).client is not None:
            note("the manager has ended this gateway: it ends, or is of another version; then start it again")
        else:
            note("the manager has ended, and its listeners with it")


async def check_ports(paths: RuntimePaths, wanted: Listeners) -> None:
    """To be asked before a manager takes anything over: one that fails after that ends what ran well.

    Raises `PortNotAvailable`, `InvalidRequest`.
    """
    running = living(paths.workers)
    # The port of workers that a former manager left is shared, or will be given up.
    left = not all(worker.guest for worker in running)
    for port, shared in ((wanted.gateway, left), (wanted.api, False)):
        if port is None:
            continue
        try:
            for sock in await bind(wanted.host, port, shared=shared):
                sock.close()
        except PortNotAvailable as error:
            guests = [f"pid {worker.pid}" for worker in running if worker.guest]
            if not guests or port != wanted.gateway:
                raise
            raise PortNotAvailable(
                f"{error.message}; an `agentmgr proxy` in a terminal ({', '.join(guests)}) serves this "
                "database already, and goes on with the next manager: end it, or leave out --proxy-port"
            ) from None


async def open_here(nursery: trio.Nursery, manager: AgentManager, wanted: Listeners) -> None:
    """Opens them where this process is the manager; the gateway in a process of its own, which outlives it,
    unless the settings say otherwise.

    Raises `PortNotAvailable`, and `ManagerError` where that process does not start.
    """
    host, certificate, workers = wanted.host, wanted.certificate, manager.settings.proxy_workers
    if wanted.gateway is not None:
        gateway = partial(
            manager.serve_proxy,
            host,
            wanted.gateway,
            certificate=certificate,
            workers=1 if workers is None else workers,
        )
        await wanted.opened("proxy", await nursery.start(gateway))
    if wanted.api is not None:
        api = partial(serve_api, manager, host=host, port=wanted.api, certificate=certificate)
        await wanted.opened("api", await nursery.start(api))


async def _serve_api(cli: Cli, client: ManagerClient, wanted: Listeners, stop: trio.Event) -> None:
    """Has the manager serve its API over TCP until `stop` is set; when it ends, has the next one serve it.

    With a gateway in this process it waits for the next one without limit.

    Raises `ManagerNotRunning` when the manager is killed.
    """
    while not stop.is_set():
        try:
            await _serve_api_of_one(client, wanted, stop)
        except* ManagerNotRunning:
            if wanted.gateway is None:
                raise
        give_up_at = trio.current_time() + _SUCCESSION_S
        while not stop.is_set() and (await find_manager(cli.paths, patience_s=0)).client is None:
            if wanted.gateway is None and trio.current_time() > give_up_at:
                return
            await trio.sleep(_LOOK_S)
        if not stop.is_set():
            note("the manager was replaced; opening again in the new one")


async def _serve_api_of_one(client: ManagerClient, wanted: Listeners, stop: trio.Event) -> None:
    """Returns when `stop` is set, or when the manager ends."""
    certfile, keyfile = wanted.files
    assert wanted.api is not None
    opened = client.open_listener("api", wanted.host, wanted.api, certfile=certfile, keyfile=keyfile)
    async with _naming_port_owner(client, "api", wanted.api), opened as (port, lines):
        await wanted.opened("api", port)
        async with trio.open_nursery() as nursery:

            async def listen() -> None:
                async for _ in lines:
                    pass
                nursery.cancel_scope.cancel()

            nursery.start_soon(listen)
            await stop.wait()
            nursery.cancel_scope.cancel()


async def _serve_gateway(
    cli: Cli, client: ManagerClient, settings: Settings, wanted: Listeners, stop: trio.Event
) -> None:
    """Serves until `stop` is set or the manager is shut down; a manager that is killed may be replaced.

    Raises `PortNotAvailable`, `ManagerError`.
    """
    settings.check_gateway()
    assert wanted.gateway is not None
    ours = evolve(settings, db_path=str(cli.paths.database))
    # In a cluster, by which it reaches the instances of other nodes.
    credentials = str(cli.paths.cluster) if cli.paths.cluster.exists() else None
    spec = WorkerSpec(
        f"wrk_{token_hex(8)}",
        ours,
        wanted.host,
        wanted.gateway,
        *wanted.files,
        guest=True,
        credentials=credentials,
    )
    async with _naming_port_owner(client, "proxy", wanted.gateway):
        if (count := settings.proxy_workers or 1) > 1:
            await _serve_by_several(spec, count, wanted, stop)
        else:
            await _serve_by_this_process(cli.paths, spec, wanted, stop)


async def _serve_by_this_process(
    paths: RuntimePaths, spec: WorkerSpec, wanted: Listeners, stop: trio.Event
) -> None:
    worker = Worker(spec)
    with locked(paths.workers, PidFile(spec.worker_id, os.getpid(), guest=True)):
        listeners = await open_listeners(spec.host, spec.port)
        port = listeners[0].socket.getsockname()[1]
        async with trio.open_nursery() as nursery:

            async def announce() -> None:
                await worker.serving.wait()
                await wanted.opened("proxy", port)

            async def end() -> None:
                await stop.wait()
                worker.end()

            nursery.start_soon(announce)
            nursery.start_soon(end)
            await worker.serve(listeners, wanted.certificate)
            nursery.cancel_scope.cancel()


async def _serve_by_several(spec: WorkerSpec, count: int, wanted: Listeners, stop: trio.Event) -> None:
    workers = WorkerSet(spec, count, worker_manager=None)
    async with trio.open_nursery() as nursery:

        async def run(*, task_status: trio.TaskStatus[int]) -> None:
            await workers.run(task_status=task_status)
            nursery.cancel_scope.cancel()

        await wanted.opened("proxy", await nursery.start(run))
        await stop.wait()
        workers.stop()


@asynccontextmanager
async def _naming_port_owner(client: ManagerClient, kind: ListenerKind, port: int) -> AsyncIterator[None]:
    """Where the manager itself holds the port, the error says so."""
    try:
        yield
    except* PortNotAvailable:
        for listener in (await client.get_info())["listeners"]:
            if (listener["kind"], listener["port"]) == (kind, port):
                raise PortNotAvailable(
                    f"this manager has its {address(**listener)} already, which serves all clients; "
                    "for a second one, choose another port"
                ) from None
        raise
