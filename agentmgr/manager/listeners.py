"""Where a manager listens: the gateway at an address, in this process or in workers, and the names of all."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

import trio
from attrs import evolve

from ..core.hosts import is_loopback
from ..process.listening import open_listeners
from ..proxy.certificate import Certificate
from ..worker.spec import WorkerSpec, gate_of
from .control_plane import ControlPlane
from .worker_set import OnNodes, WorkerSet, on_no_nodes

logger = logging.getLogger(__name__)


class ManagerListeners:
    """Opens the gateway's listeners, and names all those that this process has open."""

    def __init__(self) -> None:
        self.open: list[dict[str, str | int]] = []  #: for `get_info`
        self._worker_sets: set[WorkerSet] = set()

    @contextmanager
    def named(self, kind: str, host: str, port: int, *, tls: bool) -> Iterator[None]:
        entry: dict[str, str | int] = {"kind": kind, "host": host, "port": port, "tls": tls}
        self.open.append(entry)
        try:
            yield
        finally:
            self.open.remove(entry)

    async def serve_gateway(
        self,
        plane: ControlPlane,
        spec: WorkerSpec,
        certificate: Certificate | None,
        workers: int,
        task_status: trio.TaskStatus[int],
    ) -> None:
        """Serves it at the address of `spec` until cancelled; `task_status` gets the port.

        Raises `PortNotAvailable`, `InvalidRequest`, and `ManagerError` where the workers do not start.
        """
        spec.settings.check_gateway()
        if not is_loopback(spec.host) and not plane.access.required:
            logger.warning(
                "the gateway at %s:%d is open to all who can reach it; "
                "`agentmgr tokens create NAME --scope connect` makes it ask for a token",
                spec.host,
                spec.port,
            )
        # Without a number given, those that a former manager left there are kept: their connections go on.
        left = plane.worker_manager.left_at(spec.host)
        on_nodes: OnNodes = on_no_nodes
        if (cluster := plane.cluster) is not None:
            on_nodes = partial(cluster.gateways.serving, spec.settings)
            spec = evolve(spec, credentials=str(cluster.credentials), gate_host=cluster.gate_host)
        if count := workers or sum(worker.hello.port == spec.port for worker in left):
            worker_set = WorkerSet(spec, count, worker_manager=plane.worker_manager, on_nodes=on_nodes)
            self._worker_sets.add(worker_set)
            try:
                await worker_set.run(task_status=task_status)
            finally:
                self._worker_sets.remove(worker_set)
            return
        listeners = await open_listeners(spec.host, spec.port)
        port = listeners[0].socket.getsockname()[1]
        with ExitStack() as stack:
            for listener in listeners:
                stack.callback(listener.socket.close)
            stack.enter_context(self.named("proxy", spec.host, port, tls=certificate is not None))
            gate_listeners: list[trio.SocketListener] = []
            if spec.gate_host is not None:
                gate_listeners = await open_listeners(spec.gate_host, 0)
                for listener in gate_listeners:
                    stack.callback(listener.socket.close)
                stack.enter_context(plane.worker_manager.own_gate(gate_of(spec, gate_listeners)))
            stack.enter_context(on_nodes(port))
            serve = partial(
                plane.gateway.serve,
                listeners,
                certificate=certificate,
                proxy_protocol=spec.settings.proxy_protocol,
                gate_listeners=gate_listeners,
            )
            async with trio.open_nursery() as nursery:
                await nursery.start(serve)
                task_status.started(port)

    def stop_workers(self, *, leave: bool) -> None:
        """Ends those that serve the gateway; with `leave` they serve on, and the next manager adopts them."""
        for workers in tuple(self._worker_sets):
            workers.stop(leave=leave)
