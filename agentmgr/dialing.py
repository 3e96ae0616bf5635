"""How a node reaches the manager: TCP, TLS 1.3, and a look at who answers."""

from __future__ import annotations

import os
import re
import ssl
from contextlib import AsyncExitStack, suppress
from pathlib import Path

import trio
from attrs import frozen

from .codec import from_answer, parse_json, to_json
from .core.patience import Patience
from .credentials import CLOSED, MANAGER, Credentials, explain, peer
from .errors import CannotReachManager, CannotUseCluster, InvalidRequest
from .replacing import replace

NODE_PROTOCOL = "agentmgr-node/1"
"""As ALPN names it. Which messages the two sides know is `protocol.VERSION`, which they say themselves."""

DEFAULT_PORT = 9443
DIAL_S = 5.0  #: until the manager has answered
LONGEST_DIAL_S = 20.0  #: the same, for one that has dialled in vain before

_LOOK_S = 1.0  #: between looks for another address of the manager

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


@frozen
class _Written(ManagerAddress):
    """What the file of a node says."""

    before: ManagerAddress | None = None  #: where it was until then


class ManagerFile:
    """The file of a node that says where its manager is. Whoever moves the manager replaces it; the node's
    daemon and its gateway read it at each dial, and look at it each second.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._dialled: ManagerAddress | None = None

    def read(self) -> ManagerAddress:
        """Raises `CannotUseCluster`."""
        found = self._read()
        return ManagerAddress(found.host, found.port)

    def before(self) -> ManagerAddress | None:
        """Where the manager was before it moved; None: it has not. Raises `CannotUseCluster`."""
        return self._read().before

    def _read(self) -> _Written:
        try:
            return from_answer(parse_json(self.path.read_bytes()), _Written)
        except (OSError, InvalidRequest) as error:
            why = getattr(error, "strerror", None) or error
            raise CannotUseCluster(
                f"{self.path} does not say where the manager is ({why}): `agentmgr node --join HOST:PORT "
                f"--directory {self.path.parent}` does"
            ) from None

    def to_dial(self) -> ManagerAddress:
        """As `read`; `moved` compares with it from now on."""
        self._dialled = self.read()
        return self._dialled

    def write(self, manager: ManagerAddress) -> None:
        """Where it says anything new: a full disk is no reason not to run. Raises `CannotUseCluster`."""
        before = None
        with suppress(CannotUseCluster):
            if (before := self.read()) == manager:
                return
        written = _Written(manager.host, manager.port, before)
        try:
            replace(self.path, to_json(written).encode(), lasting=True)
        except OSError as error:
            raise CannotUseCluster(f"{self.path} cannot be written: {error.strerror or error}") from None

    async def moved(self) -> None:
        """Returns when it names another address than was dialled last."""
        while True:
            await trio.sleep(_LOOK_S)
            with suppress(CannotUseCluster):  # it is said as it is dialled
                if self._dialled is not None and self.read() != self._dialled:
                    return


def dial_patience() -> Patience:
    """Of a handshake with the manager; the way to it has `DIAL_S` each time."""
    return Patience(DIAL_S, LONGEST_DIAL_S)


async def dial(
    manager: ManagerAddress,
    credentials: Credentials,
    protocol: str,
    *,
    source: str | None = None,
    patience: Patience | None = None,
) -> trio.SSLStream[trio.SocketStream]:
    """A connection to the manager of the cluster. `source`: the local address that it comes from. `patience`:
    of one that dials until it gets through.

    Raises `OSError`, `CannotReachManager`, `CannotUseCluster`.
    """
    context = credentials.client_context(protocol)
    stream = await connect(manager, context, source=source, patience=patience)
    found = peer(stream)
    if found is None or found.node_id != MANAGER:
        await trio.aclose_forcefully(stream)
        raise CannotReachManager(f"what answers at {manager} is not the cluster's manager, but {found}")
    return stream


async def connect(
    manager: ManagerAddress,
    context: ssl.SSLContext,
    *,
    source: str | None = None,
    patience: Patience | None = None,
) -> trio.SSLStream[trio.SocketStream]:
    """TLS as the context has it. Raises `OSError`, `CannotReachManager`."""
    patience = patience or dial_patience()
    within_s = DIAL_S
    try:
        with trio.fail_after(within_s):
            tcp = await trio.open_tcp_stream(manager.host, manager.port, local_address=source)
        within_s = patience.seconds
        with trio.fail_after(within_s):
            stream = trio.SSLStream(tcp, context, https_compatible=True)
            async with AsyncExitStack() as unless_greeted:
                unless_greeted.push_async_callback(trio.aclose_forcefully, stream)
                await stream.do_handshake()
                unless_greeted.pop_all()
        patience.learn(in_vain=False)
    except trio.TooSlowError:
        patience.learn(in_vain=True)
        raise OSError(f"{manager} did not answer within {within_s:g} s") from None
    except trio.BrokenResourceError as error:
        why = explain(error) or CLOSED
        raise (NotNow if why == CLOSED else CannotReachManager)(f"{manager}: {why}") from error
    if stream.selected_alpn_protocol() is None:
        await trio.aclose_forcefully(stream)
        raise CannotReachManager(
            f"{manager} does not know this node's protocol: update agentmgr there, or is it another program?"
        )
    return stream
