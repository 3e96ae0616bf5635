"""The client's side of the handshake: its head in, its 101 out.

The 101 is written here, not by trio-websocket: everything in it has been decided by then, by our own judge of
the client's head and of the backend's answer (`head`), and going through h11, wsproto and a reader task for
the one line that is missing took a third of what a connection costs.
"""

from __future__ import annotations

import trio

from ..core.gateway_headers import RESUMED_HEADER, sets_login
from ..websocket.head import HeadReader, RequestHead, ResponseHead, accept_token
from ..websocket.sockets import Wire
from .limits import GatewayLimits
from .proxy_protocol import MOST_BYTES, Origin, ProxyHeaderReader


class ClientGone(Exception):
    """The client left before it had an answer, so no answer is sent."""


_OURS = frozenset({"sec-websocket-accept", "content-length", RESUMED_HEADER.lower()})
"""Not the instance's to say, or said to the gateway."""


async def read_origin(wire: Wire) -> Origin:
    """The PROXY header that a connection begins with, and not a byte more.

    Raises `BadProxyHeader`, `ClientGone`.
    """
    reader = ProxyHeaderReader()
    try:
        while reader.origin is None:
            # Looked at first: what follows the header may be TLS, which reads the socket for itself.
            ahead = await wire.peek(MOST_BYTES)
            if not ahead:
                raise ClientGone("it left before its PROXY header was complete")
            await wire.receive(reader.feed(ahead))
    except OSError as error:
        raise ClientGone(str(error)) from None
    return reader.origin


async def read_head(wire: Wire, limits: GatewayLimits) -> RequestHead:
    """The client's request; what came behind its head is in `wire.ahead`. Raises `Refusal`, `ClientGone`."""
    reader = HeadReader(max_bytes=limits.head_bytes, max_fields=limits.head_fields)
    try:
        while True:
            data, wire.ahead = wire.ahead or await wire.receive(limits.head_bytes), b""
            if not data:
                raise ClientGone("it left before its request was complete")
            if head := reader.feed(data):
                wire.ahead = reader.rest
                return head
    except OSError as error:
        raise ClientGone(str(error)) from None


async def switch_protocols(wire: Wire, request: RequestHead, answer: ResponseHead) -> None:
    """Sends the client its 101, with all that the backend put into its own. Raises `ClientGone`."""
    lines = [
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Accept: {accept_token(request.key)}\r\n"
    ]
    lines += [
        f"{name}: {value}\r\n"
        for name, value in answer.end_to_end
        if name.lower() not in _OURS and not sets_login(name, value)
    ]
    lines.append("\r\n")
    try:
        await wire.send_all("".join(lines).encode("latin-1"))
    except OSError:
        raise ClientGone("it left before its answer was sent") from None


async def refuse(wire: Wire, refusal: bytes) -> None:
    """Sends a complete answer and takes leave, without a reset overtaking it."""
    try:
        await wire.send_all(refusal)
        wire.end_sending()
        while await wire.receive(64 * 1024):
            await trio.lowlevel.checkpoint()  # it may send faster than we read
    except OSError:
        pass  # it did not stay to hear it
