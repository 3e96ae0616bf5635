"""Serves the gateway in this terminal, while another process is the manager; that one may be replaced."""

from __future__ import annotations

import os
from secrets import token_hex

import trio
from attrs import evolve

from ..manager.worker_set import WorkerSet
from ..process.listening import open_listeners
from ..proxy.certificate import Certificate
from ..settings import Settings
from ..worker.pidfile import PidFile, locked
from ..worker.spec import WorkerSpec
from ..worker.worker import Worker
from .addresses import address
from .group import Cli
from .out import note, say


async def serve_beside(
    cli: Cli, settings: Settings, certificate: Certificate | None, stop: trio.Event
) -> None:
    """Serves until `stop` is set or the manager is shut down. Raises `PortNotAvailable`, `ManagerError`."""
    settings.check_gateway()
    certfile, keyfile = certificate.files if certificate else (None, None)
    spec = WorkerSpec(
        f"wrk_{token_hex(8)}",
        evolve(settings, db_path=str(cli.paths.database)),
        settings.proxy_host,
        settings.proxy_port,
        certfile,
        keyfile,
        guest=True,
    )
    if (count := settings.proxy_workers or 1) > 1:
        await _serve_by_several(spec, count, stop)
    else:
        await _serve_here(cli, spec, certificate, stop)
    if not stop.is_set():
        note("the manager has ended, and its listeners with it")


async def _serve_here(cli: Cli, spec: WorkerSpec, certificate: Certificate | None, stop: trio.Event) -> None:
    worker = Worker(spec)
    with locked(cli.paths, PidFile(spec.worker_id, os.getpid(), guest=True)):
        listeners = await open_listeners(spec.host, spec.port)
        port = listeners[0].socket.getsockname()[1]
        async with trio.open_nursery() as nursery:

            async def announce() -> None:
                await worker.serving.wait()
                say(address("proxy", spec.host, port, tls=certificate is not None), flush=True)

            async def end() -> None:
                await stop.wait()
                worker.end()

            nursery.start_soon(announce)
            nursery.start_soon(end)
            await worker.serve(listeners, certificate)
            nursery.cancel_scope.cancel()


async def _serve_by_several(spec: WorkerSpec, count: int, stop: trio.Event) -> None:
    workers = WorkerSet(spec, count, worker_manager=None)
    async with trio.open_nursery() as nursery:

        async def run(*, task_status: trio.TaskStatus[int]) -> None:
            await workers.run(task_status=task_status)
            nursery.cancel_scope.cancel()

        port = await nursery.start(run)
        say(address("proxy", spec.host, port, tls=spec.certfile is not None), flush=True)
        await stop.wait()
        workers.stop()
