"""A worker's process, as a manager starts it: `agentmgr.worker ADDRESS`, with a `WorkerSpec` on stdin."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress

import trio

from ..codec import from_json
from ..errors import AgentManagerError, leaves
from ..logging_setup import configure_logging, logging_to
from ..process.descriptors import raise_limit
from ..process.listening import open_listeners
from ..proxy import Certificate
from .kept import open_gate
from .pidfile import PidFile, locked
from .spec import WorkerSpec
from .worker import Worker


async def serve(spec: WorkerSpec) -> None:
    worker = Worker(spec)
    certificate = Certificate(spec.certfile, spec.keyfile) if spec.certfile else None
    with (
        locked(spec.files, PidFile(spec.worker_id, os.getpid(), spec.guest)),
        trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals,
    ):
        listeners = await open_listeners(spec.host, spec.port, shared=True) if spec.listens else []
        gate_listeners = [] if spec.gate_host is None else await open_gate(spec)
        async with trio.open_nursery() as nursery:

            async def obey_signals() -> None:
                async for _ in signals:
                    worker.end()

            async def announce(fd: int) -> None:
                await worker.serving.wait()
                with suppress(OSError):  # the process that started this one has gone
                    os.write(fd, b"ready\n")
                os.close(fd)

            async def watch_lifeline(fd: int) -> None:
                async with trio.lowlevel.FdStream(fd) as lifeline:
                    while await lifeline.receive_some():
                        pass
                worker.end()

            nursery.start_soon(obey_signals)
            if spec.lifeline is not None:
                nursery.start_soon(watch_lifeline, spec.lifeline)
            if spec.ready is not None:
                nursery.start_soon(announce, spec.ready)
            await worker.serve(listeners, certificate, gate_listeners=gate_listeners)
            nursery.cancel_scope.cancel()


def main() -> None:
    spec = from_json(sys.stdin.read(), WorkerSpec)
    raise_limit()
    configure_logging(spec.settings.log_level)
    try:
        # A crash's traceback goes to stderr: the manager reads it there when it starts the next worker.
        with logging_to(spec.log, alone=True):
            trio.run(serve, spec)
    except* (AgentManagerError, OSError) as group:
        sys.exit(f"the worker cannot serve: {next(leaves(group))}")


if __name__ == "__main__":
    main()
