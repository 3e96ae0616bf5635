"""How a worker reaches the manager: the socket beside the database, or TLS to another machine."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio

from ..errors import AgentManagerError
from ..process.control_socket import connect
from ..process.paths import RuntimePaths
from .spec import WorkerSpec

WORKER_PROTOCOL = "agentmgr-worker/1"
"""As ALPN names it, whatever `protocol.VERSION` is: the manager ends a worker of another one."""


class Dialer:
    def __init__(self, spec: WorkerSpec) -> None:
        self.moved: Callable[[], Awaitable[None]] = trio.sleep_forever
        """Returns when the manager is elsewhere than it was dialled last."""
        self._spec = spec
        if spec.manager is not None:
            from ..credentials import Credentials  # here: `ssl` is for clusters only
            from ..dialing import ManagerFile, dial_patience

            assert spec.credentials is not None
            self._file, self._credentials = ManagerFile(spec.manager.file), Credentials(spec.credentials)
            self._patience = dial_patience()
            self.moved = self._file.moved

    async def dial(self) -> trio.abc.Stream:
        """A connection to the manager that runs. Raises `OSError`: on another machine also where that is not
        this cluster's manager. Raises `DatabaseUnusable`, as `connect`.
        """
        if self._spec.manager is None:
            return await connect(RuntimePaths.of(self._spec.settings.db_path).worker_socket)
        from ..dialing import dial

        try:
            source = self._spec.manager.source
            manager, patience = self._file.to_dial(), self._patience
            return await dial(manager, self._credentials, WORKER_PROTOCOL, source=source, patience=patience)
        except AgentManagerError as error:
            raise OSError(error.message) from error
