"""Connects to instances: on this node over loopback, on another node through its gate.

Both ways the answer is a wire to the instance, and the proof by which that believes what is said to it of the
client. Whoever is next to the instance makes the proof (only one clock is right for it), and checks which
process answers while no manager updates the table: of an instance on another node that is its gate.
"""

from __future__ import annotations

import time
from contextlib import ExitStack, closing
from secrets import token_hex
from typing import TYPE_CHECKING

import trio

from ..core.hosts import authority
from ..core.proof import sender_proof
from ..core.routing import Backend, RoutingTable
from ..websocket.head import BadResponse
from ..websocket.sockets import OUR_OWN_SHORTAGE, Dial, Wire, connect
from .limits import GatewayLimits
from .proving import Proving

if TYPE_CHECKING:
    from ..credentials import Credentials


class DialFailed(Exception):
    """This instance did not accept the client. `retry`: asking another one does no harm."""

    def __init__(
        self,
        reason: str,
        *,
        retry: bool,
        timed_out: bool = False,
        outdated: bool = False,
        blame: bool = True,
        holder: str | None = None,
    ) -> None:
        """`outdated`: the table knows another process than the one that answers. `blame`: the instance.
        `holder`: the instance that holds the client's session, as this one says.
        """
        super().__init__(reason)
        self.reason = reason
        self.retry = retry
        self.timed_out = timed_out
        self.outdated = outdated
        self.blame = blame
        self.holder = holder


class Dialer:
    """How one gateway, or the manager, reaches instances. `update` tells it of each routing table."""

    def __init__(
        self, *, dial: Dial | None = None, node_id: str = "", credentials: Credentials | None = None
    ) -> None:
        """`node_id`: of this machine; `credentials`: by which gates know it, None without a cluster; `dial`
        connects on this machine, given host and port: over TCP if None.
        """
        self.node_id = node_id
        self.credentials = credentials
        self.proving = Proving(node_id)
        self._dial = dial
        self._gates = None
        if credentials is not None:
            from .gate_dialer import GateDialer

            self._gates = GateDialer(credentials)

    def update(self, table: RoutingTable) -> None:
        self.proving.end()
        if self._gates is not None:
            self._gates.update(table.gates)

    async def reach(
        self, backend: Backend, limits: GatewayLimits, *, deadline: float, key: str = ""
    ) -> tuple[Wire, str]:
        """A wire to the instance itself and to no other program, and the proof over `key`: the
        `Sec-WebSocket-Key` that it will be asked with, if any. Raises `DialFailed`.
        """
        if backend.node_id != self.node_id:
            if self._gates is None:
                raise DialFailed("it is on another node, and this gateway is in no cluster", retry=True)
            return await self._gates.reach(backend, limits, deadline=deadline, key=key)
        wire = await open_connection(backend.host, backend.port, limits, deadline, self._dial)
        with ExitStack() as until_proved:
            until_proved.enter_context(closing(wire))
            proving = self.proving
            if proving.wanted and not await _proved(proving, wire, backend, limits, deadline):
                wire.close()  # an agent's host of an older version answers one request
                wire = await open_connection(backend.host, backend.port, limits, deadline, self._dial)
            until_proved.pop_all()
        if not (key and backend.token):
            return wire, ""
        return wire, sender_proof(backend.token, key, now=time.monotonic(), salt=token_hex(8))


async def open_connection(
    host: str, port: int, limits: GatewayLimits, deadline: float, dial: Dial | None = None
) -> Wire:
    """Raises `DialFailed`."""
    where = authority(host, port)
    try:
        with trio.fail_at(min(deadline, trio.current_time() + limits.connect_timeout_s)):
            return await connect(host, port, dial)
    except trio.TooSlowError:
        raise DialFailed(f"{where} did not accept in time", retry=True, timed_out=True) from None
    except OSError as error:
        blame = error.errno not in OUR_OWN_SHORTAGE
        raise DialFailed(f"{where}: {error.strerror or error}", retry=True, blame=blame) from None


async def _proved(
    proving: Proving, wire: Wire, backend: Backend, limits: GatewayLimits, deadline: float
) -> bool:
    """Raises `DialFailed`."""
    try:
        with trio.fail_at(min(deadline, trio.current_time() + limits.handshake_timeout_s)):
            return await proving.passes(wire, backend)
    except trio.TooSlowError:
        raise DialFailed("it did not prove itself in time", retry=True, timed_out=True) from None
    except (BadResponse, OSError) as fault:
        raise DialFailed(str(fault), retry=True, outdated=True) from None
