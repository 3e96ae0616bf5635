"""How a worker reaches the manager: the socket beside the database, or TLS to another machine."""

from __future__ import annotations

import trio

from ..process.control_socket import connect
from ..process.paths import RuntimePaths
from .spec import ClusterManager, WorkerSpec

ALPN = "agentmgr-worker/1"  #: whatever `protocol.VERSION` is: the manager ends one of another version
_DIAL_S = 10.0  #: for the TCP connection and the TLS handshake


async def dial(spec: WorkerSpec) -> trio.abc.Stream:
    """A connection to the manager that runs. Raises OSError where none does, or not this cluster's."""
    if spec.manager is None:
        return await connect(RuntimePaths.of(spec.settings.db_path).worker_socket)
    assert spec.credentials is not None
    return await _dial(spec.manager, spec.credentials)


async def _dial(manager: ClusterManager, credentials: str) -> trio.abc.Stream:
    from ..credentials import MANAGER, Credentials, explain, peer  # here: `ssl` is for nodes only
    from ..errors import CannotUseCluster

    with trio.move_on_after(_DIAL_S):
        try:
            context = Credentials(credentials).client_context(ALPN)
            tcp = await trio.open_tcp_stream(manager.host, manager.port, local_address=manager.source)
            stream = trio.SSLStream(tcp, context, https_compatible=True)
            try:
                await stream.do_handshake()
                if (member := peer(stream)) is None or member.node_id != MANAGER:
                    raise OSError(f"{manager} is not the manager of this cluster")
            except BaseException:
                await trio.aclose_forcefully(stream)
                raise
            return stream
        except trio.BrokenResourceError as error:
            raise OSError(explain(error) or "the connection was closed") from error
        except CannotUseCluster as error:
            raise OSError(error.message) from error
    raise OSError(f"{manager} did not answer within {_DIAL_S:g} s")
