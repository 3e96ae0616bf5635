"""Does it answer? A real WebSocket handshake, and an answer on it, over a connection of its own each time.

wsproto over a bare socket: a connection of trio-websocket costs a task and three times the CPU, and its
`ping` never wakes when the peer goes away; and a trio socket takes a trip through trio's loop for each call
(measured).
"""

from __future__ import annotations

import errno
import ipaddress
import math
import os
import secrets
import socket
import time
from collections.abc import Callable
from contextlib import suppress

import trio
from attrs import frozen
from wsproto import ConnectionType, WSConnection
from wsproto.events import (
    AcceptConnection,
    CloseConnection,
    Event,
    Ping,
    Pong,
    RejectConnection,
    RejectData,
    Request,
    TextMessage,
)
from wsproto.utilities import ProtocolError

from ..codec import parse_json
from ..core.health import ProbeResult
from ..core.proof import HEALTH_PATH, PROOF_HEADER, proof, sender_proof

_MAX_ANSWER_BYTES = 64 * 1024
# The manager has no descriptor or memory left to ask with, which says nothing of the instance.
_OUR_OWN_SHORTAGE = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS, errno.EADDRNOTAVAIL)
_CLOSE_TIMEOUT_S = 1.0


class _Failed(Exception):
    """The probe's verdict; the message is the reason."""


@frozen
class Probe:
    """How to ask one instance."""

    host: str  #: numeric
    port: int
    token: str | None
    """Of a hosted agent, which must prove that it has it; None: any WebSocket server will do."""

    async def __call__(self, timeout_s: float = math.inf) -> ProbeResult:
        """Never raises; a failure is a result with its reason."""
        try:
            return await self._meet(timeout_s)
        except _Failed as failure:
            return ProbeResult(False, reason=str(failure))
        except BrokenPipeError:
            return ProbeResult(False, reason="broke the connection")
        except OSError as error:
            reason = os.strerror(error.errno or 0).lower()
            return ProbeResult(False, reason=reason, inconclusive=error.errno in _OUR_OWN_SHORTAGE)
        except ProtocolError as error:
            return ProbeResult(False, reason=f"does not speak WebSocket: {error}")

    async def _meet(self, timeout_s: float) -> ProbeResult:
        begin = trio.current_time()
        family = socket.AF_INET6 if ipaddress.ip_address(self.host).version == 6 else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as sock:
            peer = _Peer(sock)
            with trio.move_on_after(timeout_s) as patience:
                await _connect(sock, (self.host, self.port))
                remark = await self._ask(peer)
            if patience.cancelled_caught:
                raise _Failed(f"no answer within {timeout_s:g} s")
            latency_s = trio.current_time() - begin
            # It has answered; how it takes the farewell says nothing of its health.
            await peer.part()
            return ProbeResult(True, latency_s, remark, degraded=remark is not None)

    async def _ask(self, peer: _Peer) -> str | None:
        """Returns what the agent says of itself when it is not at its best."""
        challenge = secrets.token_hex(16)
        target, headers = "/", []
        if self.token is not None:
            target = f"{HEALTH_PATH}?challenge={challenge}"
            # Only with it the answer says more than the status, where the kernel does not tell whose we are.
            shown = sender_proof(self.token, target, now=time.monotonic(), salt=secrets.token_hex(8))
            headers = [(PROOF_HEADER.encode(), shown.encode())]
        host = f"[{self.host}]" if ":" in self.host else self.host
        await peer.send(Request(host=f"{host}:{self.port}", target=target, extra_headers=headers))
        await peer.receive_until(AcceptConnection)
        if self.token is not None:  # an answer from the agent's own loop says more than a pong
            return _judge(await peer.text(), proof(self.token, challenge))
        await peer.send(Ping(b"agentmgr"))
        await peer.receive_until(Pong)
        return None


def _judge(text: str, expected: str) -> str | None:
    try:
        answer = parse_json(text)
    except ValueError:
        answer = None
    if not isinstance(answer, dict) or answer.get("proof") != expected:
        raise _Failed("the answer comes from another process than the one that was started")
    status, detail = answer.get("status"), str(answer.get("detail") or "")
    if status == "unhealthy":
        raise _Failed(detail or "the agent says that it is unhealthy")
    if status == "degraded":
        return detail or "the agent says that it is degraded"
    return None


async def _connect(sock: socket.socket, address: tuple[str, int]) -> None:
    error = sock.connect_ex(address)
    if error == errno.EINPROGRESS:
        await trio.lowlevel.wait_writable(sock)
        error = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if error:
        raise OSError(error, os.strerror(error))


class _Peer:
    """wsproto's events over a socket."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._connection = WSConnection(ConnectionType.CLIENT)
        self._received = 0
        self._text = ""

    async def send(self, event: Event) -> None:
        left = memoryview(self._connection.send(event))
        while left:
            try:
                left = left[self._socket.send(left) :]
            except BlockingIOError:
                await trio.lowlevel.wait_writable(self._socket)

    async def receive_until(self, kind: type[Event]) -> None:
        await self._receive(lambda event: isinstance(event, kind))

    async def text(self) -> str:
        await self._receive(lambda event: isinstance(event, TextMessage) and event.message_finished)
        return self._text

    async def part(self) -> None:
        """Politely: a server that finds its peer gone in the middle fills its log with it."""
        with trio.move_on_after(_CLOSE_TIMEOUT_S), suppress(OSError, _Failed, ProtocolError):
            await self.send(CloseConnection(code=1000))
            await self.receive_until(CloseConnection)

    async def _receive(self, last: Callable[[Event], bool]) -> None:
        while True:
            for event in self._connection.events():
                if isinstance(event, TextMessage):
                    self._text += event.data
                if last(event):
                    return
                if isinstance(event, Ping):
                    await self.send(event.response())
                if isinstance(event, RejectConnection):
                    raise _Failed(f"refused the WebSocket handshake with status {event.status_code}")
                if isinstance(event, CloseConnection | RejectData):
                    raise _Failed("closed the WebSocket at once")
            self._connection.receive_data(await self._receive_some())

    async def _receive_some(self) -> bytes:
        while True:
            await trio.lowlevel.wait_readable(self._socket)  # an answer is never there at once
            try:
                data = self._socket.recv(4096)
            except BlockingIOError:
                continue  # it was a false alarm
            self._received += len(data)
            if not data:
                raise _Failed("closed the connection")
            if self._received > _MAX_ANSWER_BYTES:
                raise _Failed("sent too much")
            return data
