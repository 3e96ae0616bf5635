"""As much of an HTTP client as `ManagerClient` needs: one request per connection, read whole or in pieces.

A general client would cost every command a tenth of a second (httpx2 takes 110 ms to import, h11 9 ms), and
leaves async generators suspended when a stream is left early, which trio rightly warns of.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Generic, TypeVar
from urllib.parse import urlsplit

import h11
import trio

from ..errors import ManagerNotRunning
from ..process.companion import require_trio
from ..process.control_socket import connect
from ..websocket.sockets import open_stream

T = TypeVar("T")

CONNECT_TIMEOUT_S = 5.0
_CHUNK_BYTES = 64 * 1024


class Response:
    """An answer whose body is still to be read."""

    def __init__(self, stream: trio.abc.Stream, connection: h11.Connection, head: h11.Response) -> None:
        self.status = head.status_code
        self._stream = stream
        self._connection = connection

    @property
    def is_error(self) -> bool:
        return self.status >= 400

    async def receive(self) -> bytes:
        """The next piece of the body; empty at its end. Raises `ManagerNotRunning` where it is cut short."""
        while True:
            event = await _next_event(self._stream, self._connection)
            if isinstance(event, h11.Data):
                return bytes(event.data)
            if isinstance(event, h11.EndOfMessage):
                return b""

    async def read(self) -> bytes:
        pieces = []
        while piece := await self.receive():
            pieces.append(piece)
        return b"".join(pieces)


class Pieces:
    """The body of an answer, piece by piece as it comes."""

    def __init__(self, response: Response) -> None:
        self._response = response

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        if piece := await self._response.receive():
            return piece
        raise StopAsyncIteration


class Lines(Generic[T]):
    """What `parse` makes of each line of an answer; lines of which it makes None are skipped."""

    def __init__(self, response: Response, parse: Callable[[bytes], T | None]) -> None:
        self._response = response
        self._parse = parse
        self._rest = b""

    def __aiter__(self) -> AsyncIterator[T]:
        return self

    async def __anext__(self) -> T:
        while True:
            line, newline, rest = self._rest.partition(b"\n")
            if newline:
                self._rest = rest
                if (found := self._parse(line)) is not None:
                    return found
            elif piece := await self._response.receive():
                self._rest += piece
            else:
                raise StopAsyncIteration


def check_loop() -> None:
    """Raises `RuntimeError` where trio does not run."""
    require_trio("agentmgr.client", instead="import the same names from agentmgr.client.aio")


@asynccontextmanager
async def request(
    target: Path | str, method: str, path: str, *, headers: Mapping[str, str], body: bytes | None = None
) -> AsyncIterator[Response]:
    """The answer to a request to the unix socket or URL `target`.

    Raises `ManagerNotRunning` where none comes.
    """
    check_loop()
    stream, host = await _connect(target)
    async with stream:
        connection = h11.Connection(h11.CLIENT)
        head = [("Host", host), ("Connection", "close"), *headers.items()]
        if body is not None:
            head += [("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
        events: list[Any] = [h11.Request(method=method, target=path, headers=head)]
        if body:
            events.append(h11.Data(data=body))
        events.append(h11.EndOfMessage())
        try:
            await stream.send_all(b"".join(connection.send(event) or b"" for event in events))
        except trio.BrokenResourceError as error:
            raise ManagerNotRunning("the manager hung up") from error
        answer = await _next_event(stream, connection)
        while isinstance(answer, h11.InformationalResponse):
            answer = await _next_event(stream, connection)
        assert isinstance(answer, h11.Response)
        try:
            yield Response(stream, connection, answer)
        finally:
            await trio.aclose_forcefully(stream)


async def _connect(target: Path | str) -> tuple[trio.abc.Stream, str]:
    try:
        with trio.fail_after(CONNECT_TIMEOUT_S):
            if isinstance(target, Path):
                return await connect(target), "localhost"
            url = urlsplit(target)
            host, secure = url.hostname or "localhost", url.scheme == "https"
            port = url.port or (443 if secure else 80)
            tls = ssl.create_default_context() if secure else None
            return await open_stream(host, port, tls=tls), url.netloc
    except (OSError, trio.BrokenResourceError) as error:
        raise ManagerNotRunning(f"no manager answers at {target}: {error.__cause__ or error}") from error
    except trio.TooSlowError:
        raise ManagerNotRunning(f"no manager answers at {target} within {CONNECT_TIMEOUT_S:g} s") from None


async def _next_event(stream: trio.abc.Stream, connection: h11.Connection) -> h11.Event:
    try:
        while (event := connection.next_event()) is h11.NEED_DATA:
            connection.receive_data(bytes(await stream.receive_some(_CHUNK_BYTES)))
    except (trio.BrokenResourceError, h11.RemoteProtocolError) as error:
        raise ManagerNotRunning("the manager ended while it answered: try again") from error
    assert isinstance(event, h11.Event)
    return event
