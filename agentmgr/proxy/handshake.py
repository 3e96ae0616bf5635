"""The client's side of the handshake: its head in, its 101 out.

trio-websocket answers the upgrade, on a stream that holds exactly one head which our own judge has found
without fault (`head`), so nothing that h11 or wsproto would let pass reaches them. When its 101 is out the
stream ends for it and its reader task finishes: from then on the relay owns the socket. (Parking that
reader until the session's end was tried: it keeps 20 KiB for each idle tunnel.)
"""

from __future__ import annotations

import trio
from trio_websocket import ConnectionClosed, wrap_server_stream

from .head import HeadReader, RequestHead, ResponseHead
from .limits import GatewayLimits
from .proxy_protocol import MOST_BYTES, Origin, ProxyHeaderReader
from .refusal import ClientGone
from .wire import Wire


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
    """The request's head; what came behind it is in `wire.ahead`. Raises `Refusal` or `ClientGone`."""
    reader = HeadReader(max_bytes=limits.head_bytes, max_fields=limits.head_fields)
    try:
        while True:
            data = await wire.receive(limits.head_bytes)
            if not data:
                raise ClientGone("it left before its request was complete")
            if head := reader.feed(data):
                wire.ahead = reader.rest
                return head
    except OSError as error:
        raise ClientGone(str(error)) from None


async def switch_protocols(wire: Wire, request: RequestHead, answer: ResponseHead) -> None:
    """Sends the client its 101, with all that the backend put into its own. Raises `ClientGone`."""
    subprotocol = answer.by_name.get("sec-websocket-protocol")
    fields = [
        (name.encode("latin-1"), value.encode("latin-1"))
        for name, value in answer.end_to_end
        if name.lower() not in ("sec-websocket-accept", "sec-websocket-protocol", "content-length")
    ]
    stream = _HandOff(wire, _bare_upgrade(request))
    try:
        async with trio.open_nursery() as nursery:
            proposal = await wrap_server_stream(nursery, stream)
            await proposal.accept(subprotocol=subprotocol, extra_headers=fields)
    except* ConnectionClosed:
        raise ClientGone("it left before its answer was sent") from None


async def refuse(wire: Wire, refusal: bytes) -> None:
    """Sends a complete answer and takes leave, without a reset overtaking it."""
    try:
        await wire.send_all(refusal)
        wire.end_sending()
        while await wire.receive(64 * 1024):
            pass
    except OSError:
        pass  # it did not stay to hear it


def _bare_upgrade(request: RequestHead) -> bytes:
    """What the answer depends on, and no more. The Host is ours: wsproto chokes on some that are legal."""
    offered = request.by_name.get("sec-websocket-protocol")
    protocols = f"Sec-WebSocket-Protocol: {offered}\r\n" if offered else ""
    return (
        "GET / HTTP/1.1\r\nHost: gateway\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {request.key}\r\n{protocols}\r\n"
    ).encode("latin-1")


class _HandOff(trio.abc.Stream):
    """Gives one head, lets the answer out, and then is at its end."""

    def __init__(self, wire: Wire, head: bytes) -> None:
        self._wire = wire
        self._head = head
        self._answered = trio.Event()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        head, self._head = self._head, b""
        if not head:
            await self._answered.wait()
        return head

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        try:
            await self._wire.send_all(bytes(data))
        except OSError as error:
            raise trio.BrokenResourceError from error
        finally:
            self._answered.set()

    async def wait_send_all_might_not_block(self) -> None:
        await trio.lowlevel.checkpoint()

    async def aclose(self) -> None:
        self._answered.set()
