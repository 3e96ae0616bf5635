"""How a worker reaches the manager: the socket beside the database, or TLS to another machine."""

from __future__ import annotations

import trio

from ..errors import AgentManagerError
from ..process.control_socket import connect
from ..process.paths import RuntimePaths
from .spec import WorkerSpec

WORKER_PROTOCOL = "agentmgr-worker/1"
"""As ALPN names it, whatever `protocol.VERSION` is: the manager ends a worker of another one."""


async def dial(spec: WorkerSpec) -> trio.abc.Stream:
    """A connection to the manager that runs. Raises `OSError`: on another machine also where that is not this
    cluster's manager. Raises `DatabaseUnusable`, as `connect`.
    """
    if spec.manager is None:
        return await connect(RuntimePaths.of(spec.settings.db_path).worker_socket)
    from .. import dialing  # here: `ssl` is for clusters only
    from ..credentials import Credentials

    assert spec.credentials is not None
    address = dialing.ManagerAddress(spec.manager.host, spec.manager.port)
    credentials = Credentials(spec.credentials)
    try:
        return await dialing.dial(address, credentials, WORKER_PROTOCOL, source=spec.manager.source)
    except AgentManagerError as error:
        raise OSError(error.message) from error
