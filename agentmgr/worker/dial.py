"""How a worker reaches the manager: the socket beside the database, or TLS to another machine."""

from __future__ import annotations

import trio

from ..process.control_socket import connect
from ..process.paths import RuntimePaths
from .spec import WorkerSpec


async def dial(spec: WorkerSpec) -> trio.abc.Stream:
    """A connection to the manager that runs. Raises OSError where none does."""
    return await connect(RuntimePaths.of(spec.settings.db_path).worker_socket)
