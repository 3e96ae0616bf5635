"""One WebSocket connection as a client, on a stream of our own.

`trio_websocket.open_websocket` waits for the peer when its block is left and has a nursery's groups to take
apart; here leaving is at once, and what went wrong is one exception.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Awaitable, Callable, Sequence
from urllib.parse import SplitResult, urlsplit

import h11
import trio
import wsproto.utilities
from trio_websocket import ConnectionClosed, ConnectionRejected, WebSocketConnection, wrap_client_stream

from ..errors import InvalidRequest, leaves
from ..visible import visible
from ..websocket.refusal import read_refusal
from ..websocket.sockets import Dial, Stream, open_stream

CONNECT_TIMEOUT_S = 10.0
UPGRADE_TIMEOUT_S = 13.0
"""A gateway lets a client wait for an instance for less (`GatewayLimits.queue_timeout_s`), then says why."""
MAX_MESSAGE_BYTES = 64 * 2**20
_RECEIVE_BYTES = 64 * 1024  #: at once: with trio-websocket's 4 KiB, large events cost twice the CPU
WORTH_RETRYING = frozenset({408, 425, 429, 500, 502, 503, 504})
"""Refusals that say "not now"; any other would be the same next time."""


class CannotConnect(Exception):
    """`code`: of the refusal, a `RefusalCode` of this version or another; None where there was none."""

    def __init__(self, reason: str, *, worth_retrying: bool = True, code: str | None = None) -> None:
        super().__init__(reason)
        self.worth_retrying = worth_retrying
        self.code = code


def parse_url(url: str) -> SplitResult:
    """Raises `InvalidRequest` for what is not a `ws://` or `wss://` URL."""
    try:
        parts = urlsplit(url)
        valid = parts.scheme in ("ws", "wss") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        valid = False
    if not valid:
        raise InvalidRequest(f"{url!r} is not a WebSocket URL such as ws://localhost:9090")
    return parts


async def with_connection(
    url: str,
    headers: Sequence[tuple[str, str]],
    use: Callable[[WebSocketConnection], Awaitable[None]],
    dial: Dial = trio.open_tcp_stream,
    ssl_context: ssl.SSLContext | None = None,
) -> None:
    """Connects, awaits `use(websocket)`, and drops the connection. Raises `CannotConnect`.

    `ssl_context` is for `wss://`; None trusts whom the system trusts.
    """
    parts = parse_url(url)
    host, port = str(parts.hostname), parts.port or (443 if parts.scheme == "wss" else 80)
    tls = (ssl_context or ssl.create_default_context()) if parts.scheme == "wss" else None
    try:
        with trio.fail_after(CONNECT_TIMEOUT_S):
            stream = await open_stream(host, port, dial=dial, tls=tls)
    except trio.BrokenResourceError as error:
        if not isinstance(error.__cause__, ssl.SSLError):
            raise CannotConnect(f"cannot connect to {host}:{port}: {_why(error)}") from None
        raise CannotConnect(
            f"no TLS with {host}:{port}: {_of_tls(error.__cause__)}", worth_retrying=False
        ) from None
    except (OSError, trio.TooSlowError) as error:
        raise CannotConnect(f"cannot connect to {host}:{port}: {_why(error)}") from None
    rejected: list[ConnectionRejected] = []
    opened = False
    try:
        async with trio.open_nursery() as nursery:
            with trio.move_on_after(UPGRADE_TIMEOUT_S) as patience:
                websocket = await wrap_client_stream(
                    nursery,
                    # A server that closes instead of answering would leave us waiting for the deadline.
                    _TellingStream(stream, patience.cancel),  # type: ignore[arg-type]  # any stream will do
                    parts.netloc.rpartition("@")[2],
                    parts._replace(scheme="", netloc="", fragment="", path=parts.path or "/").geturl(),
                    extra_headers=[(name.encode(), value.encode()) for name, value in headers],
                    max_message_size=MAX_MESSAGE_BYTES,
                    receive_buffer_size=_RECEIVE_BYTES,
                )
                opened = True
            if opened:
                await use(websocket)
            nursery.cancel_scope.cancel()
    except* ConnectionRejected as group:
        rejected += leaves(group)
    except* (h11.ProtocolError, wsproto.utilities.ProtocolError, ConnectionClosed):
        pass  # trio-websocket's reader, on a peer that breaks the protocol: the connection is over
    finally:
        await trio.aclose_forcefully(stream)
    for refusal in rejected:
        code, reason = read_refusal(refusal.body or b"")
        if not reason:
            status = refusal.status_code
            reason = f"it answers with HTTP status {status}, as no agentmgr gateway and no agent does"
        raise CannotConnect(
            # One line: what a peer says must not pass for a message of ours.
            f"{host}:{port} refused the connection: {visible(reason)}",
            worth_retrying=refusal.status_code in WORTH_RETRYING,
            code=code,
        )
    if not opened and trio.current_time() >= patience.deadline:
        raise CannotConnect(f"{host}:{port} did not answer within {UPGRADE_TIMEOUT_S:.0f} s")
    if not opened:
        raise CannotConnect(f"{host}:{port} did not answer as a WebSocket server does")


def _of_tls(error: ssl.SSLError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted: {error.verify_message}"
    return error.reason or str(error)


def _why(error: BaseException) -> str:
    if isinstance(error, trio.TooSlowError):
        return f"no answer within {CONNECT_TIMEOUT_S:.0f} s"
    cause = error.__cause__
    if isinstance(cause, ExceptionGroup):  # one for each address that was tried
        *_, error = leaves(cause)
    errno = getattr(error, "errno", None) or 0
    return os.strerror(errno) if errno > 0 else str(error) or type(error).__name__


class _TellingStream(trio.abc.Stream):
    """Says when the peer has closed before it could become a WebSocket."""

    def __init__(self, stream: Stream, on_end: Callable[[], None]) -> None:
        self._stream = stream
        self._on_end = on_end

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        try:
            data = await self._stream.receive_some(max_bytes)
        except trio.BrokenResourceError:
            self._on_end()
            raise
        if not data:
            self._on_end()
        return data

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        try:
            await self._stream.send_all(data)
        except trio.BrokenResourceError:
            self._on_end()
            raise

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        self._on_end()
        await self._stream.aclose()
