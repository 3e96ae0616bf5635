"""What is said at a gate before the bytes of a connection: which instance is meant, and if it was reached.

Over TLS (ALPN `PROTOCOL`), each message is its length in two bytes, big-endian, and JSON: `[name, fields]`.
A gateway sends `Open`. The gate answers `Failed`, or `Opened`: from then on the bytes are the instance's own.
Not a header of the client's request, so that nothing of a client is near the choice of the instance.
"""

from __future__ import annotations

import ssl
from typing import get_args

from attrs import frozen

from ..codec import from_plain, parse_json, to_json
from ..errors import InvalidRequest
from ..websocket.sockets import Wire

PROTOCOL = "agentmgr-gate/1"
_MOST_BYTES = 4096


@frozen
class Open:
    instance_id: str
    key: str  #: the `Sec-WebSocket-Key` that the instance will be asked with; "": it is asked by plain HTTP


@frozen
class Opened:
    proof: str  #: for `core.proof.PROOF_HEADER`; "": the instance wants none


@frozen
class Failed:
    """The facts of a `DialFailed`; another instance may be asked."""

    reason: str
    timed_out: bool = False
    outdated: bool = False
    blame: bool = True


Message = Open | Opened | Failed

_BY_NAME = {kind.__name__: kind for kind in get_args(Message)}


def check_spoken(sock: ssl.SSLSocket) -> None:
    """Raises `InvalidRequest` where the peer does not speak this protocol."""
    if sock.selected_alpn_protocol() != PROTOCOL:
        raise InvalidRequest(f"it does not speak {PROTOCOL}: it is of another version, or no gateway")


async def send(wire: Wire, message: Message) -> None:
    """Raises `OSError`."""
    text = f'["{type(message).__name__}",{to_json(message)}]'.encode()
    await wire.send_all(len(text).to_bytes(2, "big") + text)


async def receive(wire: Wire) -> Message:
    """Reads one message, and not a byte more. Raises `InvalidRequest`, `OSError`."""
    size = int.from_bytes(await _exactly(wire, 2), "big")
    if size > _MOST_BYTES:
        raise InvalidRequest(f"a message is over {_MOST_BYTES} bytes")
    match parse_json(await _exactly(wire, size)):
        case [str(name), fields] if name in _BY_NAME:
            message: Message = from_plain(fields, _BY_NAME[name])
            return message
    raise InvalidRequest("this is none of the messages that are exchanged at a gate")


async def _exactly(wire: Wire, size: int) -> bytes:
    received = b""
    while len(received) < size:
        data = await wire.receive(size - len(received))
        if not data:
            raise OSError("it closed the connection")
        received += data
    return received
