"""What a gateway of a node leaves to the next one: the port of its gate, and the table that it routes by.

The daemon starts a gateway that has died anew, also while no manager runs. Gateways elsewhere know the port
of its gate from the manager that was; from the table it knows where the instances of its node are.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path

import trio

from ..errors import InvalidRequest, PortNotAvailable
from ..process.listening import open_listeners
from ..replacing import replace
from .protocol import Table, decode_order, encode
from .spec import WorkerSpec

logger = logging.getLogger("agentmgr.gateway")

_EVERY_S = 5.0  # between two writes; more where the table is so large that they would take 1% of the time


def _file(spec: WorkerSpec, suffix: str) -> Path:
    return spec.log.with_suffix(suffix)


async def open_gate(spec: WorkerSpec) -> list[trio.SocketListener]:
    """Listens where the gate was; at another port where that is taken, as while this one replaces a gateway
    that lives. Raises as `open_listeners`.
    """
    assert spec.gate_host is not None
    file = _file(spec, ".gate")
    try:
        listeners = await open_listeners(spec.gate_host, int(file.read_text()))
    except (OSError, ValueError, PortNotAvailable):
        listeners = await open_listeners(spec.gate_host, 0)
        try:
            replace(file, str(listeners[0].socket.getsockname()[1]).encode(), lasting=False)
        except OSError as error:
            logger.warning("the port of the gate is not kept for the next gateway: %s", error)
    return listeners


class KeptTable:
    def __init__(self, spec: WorkerSpec) -> None:
        self._file = _file(spec, ".table")
        self._news = trio.Event()

    def changed(self) -> None:
        self._news.set()

    async def run(self, current: Callable[[], Table]) -> None:
        """Writes the current one whenever it has changed, until cancelled."""
        while True:
            await self._news.wait()
            self._news = trio.Event()
            took_s = 0.0
            try:
                took_s = await trio.to_thread.run_sync(self._write, current())
            except OSError as error:
                logger.warning("the routing table is not kept for the next gateway: %s", error)
            await trio.sleep(max(_EVERY_S, 100 * took_s))

    def _write(self, table: Table) -> float:
        """Returns how many seconds of a processor it took. Raises `OSError`."""
        began = time.thread_time()
        replace(self._file, encode(table), lasting=False)
        return time.thread_time() - began

    def read(self) -> Table | None:
        """None: there is none, or it is another version's."""
        try:
            found = decode_order(self._file.read_bytes())
        except (OSError, InvalidRequest):
            return None
        return found if isinstance(found, Table) else None
