"""Checks whether an instance answers: one connection, with a WebSocket handshake or an HTTP request in it.

A failed probe is a result too, whose reason says what was seen on the wire.

A probe is marked (`User-Agent: agentmgr-probe/VERSION`), so that servers can tell it from clients. By default
(`auto`) a command is asked for a WebSocket at `/`, and any status below 500 is good: a server that has its
route elsewhere, or requires a token, answers 404 or 403 there, and so it is alive and speaks HTTP.

This is wsproto over a bare socket. A connection of trio-websocket costs a task and three times the CPU, and
its `ping` never returns when the peer goes away; a trio socket goes through trio's loop for each call
(measured).
"""

from __future__ import annotations

import math
import os
import secrets
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import h11
import trio
from attrs import evolve, frozen
from wsproto import ConnectionType, WSConnection
from wsproto.events import (
    AcceptConnection,
    CloseConnection,
    Event,
    Ping,
    Pong,
    RejectConnection,
    Request,
    TextMessage,
)
from wsproto.utilities import ProtocolError

from ..codec import parse_json
from ..core.health import ProbeResult
from ..core.hosts import authority
from ..core.proof import HEALTH_PATH, PROOF_HEADER, proof, sender_proof
from ..models import CheckKind, CheckMethod
from ..protocol import FAILED, NORMAL
from ..version import __version__
from ..websocket.sockets import OUR_OWN_SHORTAGE, Wire, connect_socket

USER_AGENT = f"agentmgr-probe/{__version__}"

_MAX_ANSWER_BYTES = 64 * 1024
_CLOSE_TIMEOUT_S = 1.0
_AUTO = CheckMethod(CheckKind.AUTO)

_OTHER_PATH = "where another path answers: --ready websocket:PATH or --ready http:PATH"
_NO_HTTP = "where it speaks another protocol: --ready tcp"
_SAID_CHARS = 200
_SILENT = "accepted and said nothing"


class _Failed(Exception):
    """The probe has failed; the message is the reason."""

    def __init__(self, reason: str, advice: str | None = None, status: int | None = None) -> None:
        super().__init__(reason)
        self.advice = advice
        self.status = status


@frozen
class Probe:
    """How to check one instance."""

    host: str  #: numeric
    port: int
    token: str | None
    """Of a hosted agent, which must prove that it has it. None: a command, checked by `method`."""
    method: CheckMethod = _AUTO

    async def __call__(self, timeout_s: float = math.inf) -> ProbeResult:
        """Never raises; a failure is a result with its reason."""
        try:
            return await self._connect_and_ask(timeout_s)
        except _Failed as failure:
            return ProbeResult(False, reason=str(failure), advice=failure.advice, status=failure.status)
        except BrokenPipeError:
            return ProbeResult(False, reason="broke the connection")
        except ConnectionRefusedError:
            return ProbeResult(False, reason=f"connection refused at {self._address}")
        except OSError as error:
            reason = os.strerror(error.errno or 0).lower()
            return ProbeResult(False, reason=reason, inconclusive=error.errno in OUR_OWN_SHORTAGE)

    async def _connect_and_ask(self, timeout_s: float) -> ProbeResult:
        begin = trio.current_time()
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as sock:
            peer = _Peer(sock)
            failure: _Failed | None = None
            with trio.move_on_after(timeout_s) as patience:
                try:
                    await connect_socket(sock, (self.host, self.port))
                    peer.seen = _SILENT
                    result = await self._ask(peer)
                except _Failed as refused:
                    failure = refused
            if patience.cancelled_caught:
                raise _Failed(f"{peer.seen} for {timeout_s:g} s", peer.advice)
            latency_s = trio.current_time() - begin
            # It has answered; how it closes the connection says nothing of its health.
            await peer.part()
            if failure is not None:
                raise failure
            return evolve(result, latency_s=latency_s)

    async def _ask(self, peer: _Peer) -> ProbeResult:
        if self.token is not None:
            return await self._ask_for_proof(peer, self.token)
        match self.method.kind:
            case CheckKind.TCP:
                return ProbeResult(True)
            case CheckKind.HTTP:
                return ProbeResult(True, status=await self._get(peer))
            case _:
                return ProbeResult(True, status=await self._shake_hands(peer))

    async def _ask_for_proof(self, peer: _Peer, token: str) -> ProbeResult:
        challenge = secrets.token_hex(16)
        target = f"{HEALTH_PATH}?challenge={challenge}"
        # With the proof the answer has more than the status, also where the kernel does not tell our user id.
        shown = sender_proof(token, target, now=time.monotonic(), salt=secrets.token_hex(8))
        status = await peer.upgrade(self._address, target, (PROOF_HEADER.encode(), shown.encode()))
        if status != 101:
            raise _Failed(f"answered {status} to the health check", status=status)
        peer.seen = "accepted the health check and gave no answer"
        # An answer from the agent's own loop shows more than a pong.
        return evolve(_judge(await peer.text(), proof(token, challenge)), status=status)

    async def _shake_hands(self, peer: _Peer) -> int:
        peer.advice = _NO_HTTP
        path = self.method.path
        status = await peer.upgrade(self._address, path)
        good = status == 101 if self.method.kind is CheckKind.WEBSOCKET else status < 500
        if not good:
            raise _Failed(f"answered {status} to the WebSocket handshake at {path}", _OTHER_PATH, status)
        if status == 101:
            peer.seen, peer.advice = "no ping answered", "where it answers GET: --ready http:PATH"
            await peer.ping()
        return status

    async def _get(self, peer: _Peer) -> int:
        peer.advice = _NO_HTTP
        path = self.method.path
        status = await peer.get(self._address, path)
        if not 200 <= status < 400:
            raise _Failed(f"answered {status} to GET {path}", _OTHER_PATH, status)
        return status

    @property
    def _address(self) -> str:
        return authority(self.host, self.port)


def _judge(text: str, expected: str) -> ProbeResult:
    try:
        answer = parse_json(text)
    except ValueError:
        answer = None
    if not isinstance(answer, dict) or answer.get("proof") != expected:
        raise _Failed("the answer comes from another process than the one that was started")
    status, detail = answer.get("status"), str(answer.get("detail") or "")
    if status == "unhealthy":
        raise _Failed(detail or "the agent says that it is unhealthy")
    journal = answer.get("journal")
    if not isinstance(journal, dict):
        journal = {}
    result = ProbeResult(
        True,
        said=_said_of(journal) or None,
        journal_degraded=journal.get("degraded") is not None,
        sessions=count_of(answer.get("sessions")),
        quiet_s=_seconds(answer.get("quiet_s")),
    )
    if status == "degraded":
        return evolve(result, reason=detail or "the agent says that it is degraded", degraded=True)
    return result


def count_of(value: Any) -> int | None:
    """A number of things, of what a host has answered."""
    return value if isinstance(value, int) and 0 <= value < 2**53 else None


def _seconds(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and 0 <= value < math.inf else None


def _said_of(journal: dict[str, Any]) -> str:
    """What of its sessions a host cannot keep, and which it could not read."""
    remarks = []
    for name, what in (("not_durable", "not durable"), ("set_aside", "sessions that cannot be read")):
        notes = journal.get(name)
        if isinstance(notes, list) and notes:
            more = f" and {len(notes) - 1} more; its log has them" if len(notes) > 1 else ""
            remarks.append(f"{what}: {str(notes[0])[:_SAID_CHARS]}{more}")
    return "\n".join(remarks)


class _Peer:
    """The protocols over a socket."""

    def __init__(self, sock: socket.socket) -> None:
        self.seen = "accepted no connection"  #: the reason, if no more comes
        self.advice: str | None = None  #: to go with it
        self._wire = Wire(sock)
        self._websocket = WSConnection(ConnectionType.CLIENT)
        self._open = False  #: the WebSocket is
        self._received = b""
        self._count = 0
        self._text = ""

    async def get(self, host: str, path: str) -> int:
        """The status of the answer to an HTTP request."""
        connection = h11.Connection(h11.CLIENT)
        headers = [("Host", host), ("User-Agent", USER_AGENT), ("Connection", "close")]
        request = h11.Request(method="GET", target=path, headers=headers)
        await self._wire.send_all(connection.send(request) or b"")
        while True:
            try:
                event = connection.next_event()
            except h11.RemoteProtocolError as error:
                raise self._not_http(error) from None
            if isinstance(event, h11.Response):
                return event.status_code
            if event is h11.NEED_DATA:
                connection.receive_data(await self._receive_some())

    async def upgrade(self, host: str, target: str, *headers: tuple[bytes, bytes]) -> int:
        """The status of the answer to a WebSocket handshake; 101: it is open."""
        marked = [(b"User-Agent", USER_AGENT.encode()), *headers]
        await self._wire.send_all(
            self._websocket.send(Request(host=host, target=target, extra_headers=marked))
        )
        answer = await self._next(lambda event: isinstance(event, AcceptConnection | RejectConnection))
        if isinstance(answer, RejectConnection):
            return answer.status_code
        self._open = True
        return 101

    async def ping(self) -> None:
        """Also good: a server that closes the WebSocket in order instead, as one that requires a token."""
        await self._wire.send_all(self._websocket.send(Ping(b"agentmgr")))
        answer = await self._next(lambda event: isinstance(event, Pong | CloseConnection))
        if isinstance(answer, CloseConnection) and answer.code == FAILED:
            raise _Failed("closed the WebSocket with 1011: it failed inside", status=101)

    async def text(self) -> str:
        last = await self._next(
            lambda event: (
                isinstance(event, CloseConnection)
                or (isinstance(event, TextMessage) and event.message_finished)
            )
        )
        if isinstance(last, CloseConnection):
            raise _Failed("closed the WebSocket at once", status=101)
        return self._text

    async def part(self) -> None:
        """Closes the connection in order: a server logs an error when its peer is gone in the middle."""
        with trio.move_on_after(_CLOSE_TIMEOUT_S), suppress(OSError, _Failed, ProtocolError):
            if self._open:
                await self._wire.send_all(self._websocket.send(CloseConnection(code=NORMAL)))
                await self._next(lambda event: isinstance(event, CloseConnection))
            self._wire.end_sending()
            while True:  # closing a socket with unread data resets the connection
                await self._receive_some()

    async def _next(self, wanted: Callable[[Event], bool]) -> Event:
        while True:
            try:
                for event in self._websocket.events():
                    if isinstance(event, TextMessage):
                        self._text += event.data
                    if isinstance(event, Ping):
                        await self._wire.send_all(self._websocket.send(event.response()))
                    if isinstance(event, CloseConnection) and self._open:
                        self._open = False
                        with suppress(ProtocolError):  # it answers ours
                            await self._wire.send_all(self._websocket.send(event.response()))
                    if wanted(event):
                        return event
                data = await self._receive_some()
                self._websocket.receive_data(data)
            except ProtocolError as error:
                raise self._not_http(error) from None

    def _not_http(self, error: Exception) -> _Failed:
        if self._received.startswith(b"HTTP/"):
            return _Failed(f"does not speak WebSocket: {error}", _OTHER_PATH)
        return _Failed(f"does not speak HTTP: {error}", _NO_HTTP)

    async def _receive_some(self) -> bytes:
        data = await self._wire.receive(4096)
        self._count += len(data)
        self._received = (self._received + data)[:5]
        if not data:
            raise _Failed("closed the connection without a whole answer")
        if self._count > _MAX_ANSWER_BYTES:
            raise _Failed("sent too much")
        if self.seen is _SILENT:
            self.seen = "accepted and sent no whole HTTP answer"
        return data
