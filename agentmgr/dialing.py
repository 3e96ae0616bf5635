"""How a node reaches the manager: TCP, TLS 1.3, and a look at who answers."""

from __future__ import annotations

import re
import ssl
from contextlib import AsyncExitStack

import trio
from attrs import frozen

from .credentials import CLOSED, MANAGER, Credentials, explain, peer
from .errors import CannotReachManager, InvalidRequest

NODE_PROTOCOL = "agentmgr-node/1"
"""As ALPN names it. Which messages the two sides know is `protocol.VERSION`, which they say themselves."""

DEFAULT_PORT = 9443
DIAL_S = 5.0  #: until the manager has answered

_ADDRESS = re.compile(r"(?:\[(?P<v6>[0-9a-fA-F:.]+)\]|(?P<host>[^:\[\]]+))(?::(?P<port>[0-9]{1,5}))?")


class NotNow(CannotReachManager):
    """It is busy, or went away meanwhile: the same may succeed in a moment."""


@frozen
class ManagerAddress:
    host: str
    port: int = DEFAULT_PORT

    @classmethod
    def parse(cls, text: str) -> ManagerAddress:
        """`HOST`, `HOST:PORT` or `[IPV6]:PORT`. Raises `InvalidRequest`."""
        found = _ADDRESS.fullmatch(text)
        port = int(found["port"] or DEFAULT_PORT) if found else 0
        if found is None or not 0 < port < 65536:
            raise InvalidRequest(f"the manager's address is HOST:PORT, or [IPV6]:PORT, not {text!r}")
        return cls(found["v6"] or found["host"], port)

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


async def dial(
    manager: ManagerAddress, credentials: Credentials, protocol: str, *, source: str | None = None
) -> trio.SSLStream[trio.SocketStream]:
    """A connection to the manager of the cluster. `source`: the local address that it comes from.

    Raises `OSError`, `CannotReachManager`, `CannotUseCluster`.
    """
    stream = await connect(manager, credentials.client_context(protocol), source=source)
    found = peer(stream)
    if found is None or found.node_id != MANAGER:
        await trio.aclose_forcefully(stream)
        raise CannotReachManager(f"what answers at {manager} is not the cluster's manager, but {found}")
    return stream


async def connect(
    manager: ManagerAddress, context: ssl.SSLContext, *, source: str | None = None
) -> trio.SSLStream[trio.SocketStream]:
    """TLS as the context has it. Raises `OSError`, `CannotReachManager`."""
    try:
        with trio.fail_after(DIAL_S):
            tcp = await trio.open_tcp_stream(manager.host, manager.port, local_address=source)
            stream = trio.SSLStream(tcp, context, https_compatible=True)
            async with AsyncExitStack() as unless_greeted:
                unless_greeted.push_async_callback(trio.aclose_forcefully, stream)
                await stream.do_handshake()
                unless_greeted.pop_all()
    except trio.TooSlowError:
        raise OSError(f"{manager} did not answer within {DIAL_S:g} s") from None
    except trio.BrokenResourceError as error:
        why = explain(error) or CLOSED
        raise (NotNow if why == CLOSED else CannotReachManager)(f"{manager}: {why}") from error
    if stream.selected_alpn_protocol() is None:
        await trio.aclose_forcefully(stream)
        raise CannotReachManager(
            f"{manager} does not know this node's protocol: update agentmgr there, or is it another program?"
        )
    return stream
