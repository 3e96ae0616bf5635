"""Checks which process answers at an instance's address while no manager updates the routing table.

A manager that lives holds the ports of its hosted agents, and takes an instance that has gone out of the
table. When it has gone itself, a gateway that goes on dials by its last table, and any user of the machine
may by then listen where an instance did. So before anything of a client is sent there, a hosted agent proves
that it knows its token, on the connection that the client is to get. A command has no token: the socket that
listens there must belong to the user that it belonged to when the table was last right.
"""

from __future__ import annotations

import hmac
import json
from secrets import token_hex

from ..core.proof import HEALTH_PATH, proof
from ..core.routing import Backend, RoutingTable
from ..process.peer import listener_uid
from ..websocket.head import BadResponse, parse_response
from ..websocket.sockets import Wire

_STRANGER = "another program than the instance listens there"
_MOST_BYTES = 4096  # of the answer; a proof takes 300


class Proving:
    """Wanted from `begin` to `end`, of the instances of this node."""

    def __init__(self, node_id: str = "") -> None:
        self._node_id = node_id
        self._owners: dict[str, int | None] | None = None  # of commands' listening sockets, by instance id

    def begin(self, table: RoutingTable) -> None:
        """The table has just stopped being kept up to date."""
        if self._owners is None:
            self._owners = {
                b.instance_id: listener_uid(b.host, b.port)
                for b in table.backends
                if not b.token and b.node_id == self._node_id
            }

    def end(self) -> None:
        self._owners = None

    @property
    def wanted(self) -> bool:
        return self._owners is not None

    async def passes(self, wire: Wire, backend: Backend) -> bool:
        """Whether the connection can go on to be used; else the instance has proved itself and closes it.

        Raises `BadResponse` where it does not prove itself, `OSError`.
        """
        if backend.token:
            return await _answers(wire, backend.token)
        owner = (self._owners or {}).get(backend.instance_id)
        if owner is None or listener_uid(backend.host, backend.port) != owner:
            raise BadResponse(_STRANGER)
        return True


async def _answers(wire: Wire, token: str) -> bool:
    challenge = token_hex(16)
    target = f"{HEALTH_PATH}?challenge={challenge}&only=proof"
    await wire.send_all(
        f"GET {target} HTTP/1.1\r\nHost: localhost\r\nConnection: keep-alive\r\n\r\n".encode()
    )
    received = b""
    while not (parts := received.partition(b"\r\n\r\n"))[1]:
        received += await _more(wire, len(received))
    answer, body = parse_response(parts[0] + parts[1]), parts[2]
    length = answer.by_name.get("content-length", "")
    if answer.status != 200 or not length.isascii() or not length.isdigit():
        raise BadResponse(_STRANGER)
    while len(body) < min(int(length), _MOST_BYTES):
        body += await _more(wire, len(body))
    if not hmac.compare_digest(_proof_in(body).encode(), proof(token, challenge).encode()):
        raise BadResponse(_STRANGER)
    return answer.by_name.get("connection", "").lower() == "keep-alive"


def _proof_in(body: bytes) -> str:
    try:
        report = json.loads(body)
    except (ValueError, RecursionError):
        return ""
    return str(report.get("proof")) if isinstance(report, dict) else ""


async def _more(wire: Wire, so_far: int) -> bytes:
    data = await wire.receive(_MOST_BYTES)
    if not data or so_far + len(data) > 2 * _MOST_BYTES:
        raise BadResponse(_STRANGER)
    return data
