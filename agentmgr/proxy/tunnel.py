"""The relay: bytes from one socket to the other, for all connections, in one loop.

A task for each direction, waiting for its socket, costs two to four times what the relaying itself costs
(24 to 90 µs of CPU for an echo, measured). So all sockets are in one level-triggered epoll, and one trio
task waits for that epoll and serves what is ready in a plain loop: receive, follow the frames, send.
While messages come one upon the other it may wait for the next in that loop too (`busy_wait_s`), because a
trip through trio's costs as much as a message. Other tasks run after a millisecond or two.

A connection's own task sleeps meanwhile (`Tunnel.changed`). The relay never closes a socket: it says how a
tunnel stands, and the connection's task decides (`lifetime`).
"""

from __future__ import annotations

import logging
import math
import select
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, cast

import trio
from attrs import evolve, frozen

from ..protocol import FAILED, NO_CODE, TOO_SLOW
from ..websocket.frames import FrameTracker, FrameViolation, OpaqueBytes
from ..websocket.sockets import Wire
from .tail import Tail

logger = logging.getLogger("agentmgr.gateway")

_AGAIN = (BlockingIOError, InterruptedError, ssl.SSLWantReadError, ssl.SSLWantWriteError)

_IN, _OUT = select.EPOLLIN, select.EPOLLOUT
# A 64 KiB message and its header in one slice. And more than a TLS record, so that nothing stays behind in
# OpenSSL, where no epoll would report it; what the handshake left there is read without being reported.
_BUFFER_BYTES = 128 * 1024
_RECORD_BYTES = 16 * 1024  # the most that one of TLS has
_BATCH = 64  # ready sockets for each look at the epoll
_SLICE_S = 0.001  # after which, and the batch that is in hand, other tasks run


@frozen
class Ending:
    """Why a tunnel is over, and what is left to say."""

    by: str  #: `client`, `backend` or `gateway`
    code: int | None  #: the close code seen, or for the gateway's own endings the one to send
    reason: str
    abrupt: bool = False  #: nothing more can or needs to be said to either side
    services_fault: bool = False  #: of the gateway's own endings, those that the instance has caused
    resumes: bool = False  #: another instance may go on with the connection
    at_gate: bool = False  #: on the way to another node, so that its instance may live


class Flow:
    """The bytes from one socket to the other. It also holds which epoll events are wanted of its source."""

    __slots__ = (
        "awaited", "back", "bytes", "ended", "interest", "last_data", "name", "pending", "receive_into",
        "send", "source", "stalled_since", "tail", "target", "tracker", "tunnel",
    )  # fmt: skip

    back: Flow  #: the one in the other direction
    tunnel: Tunnel

    def __init__(self, name: str, source: Wire, target: Wire, tracker: FrameTracker, now: float) -> None:
        self.name = name  #: whose bytes these are: `client` or `backend`
        self.source = source
        self.target = target
        self.tracker = tracker
        self.receive_into = receiving(source)
        self.send = target.sock.send
        self.interest = 0  #: the epoll events that are wanted of the source
        self.pending = b""  #: received and not sent yet; while there is some, nothing more is received
        self.ended = False  #: the source has nothing more to say
        self.bytes = 0
        self.last_data = now  #: when a data frame last went by
        self.stalled_since: float | None = None  #: when the target last took anything, if it makes us wait
        self.awaited = name == "client"  #: its next message is the first, or the answer to that
        self.tail: Tail | None = None  #: of what a client sent, where its connection can be resumed


def receiving(source: Wire) -> Callable[[memoryview], int]:
    """What fills a buffer from a socket, and says how many bytes that were."""
    sock = source.sock
    if isinstance(sock, ssl.SSLSocket):
        # `recv_into` is another call around it.
        read: Callable[[memoryview], int] = partial(cast(Any, sock.read), _BUFFER_BYTES)
        return read
    return sock.recv_into


class Tunnel:
    """The two flows between a client and its instance. With `opaque` no frames are followed, as at a gate."""

    __slots__ = (
        "asked_at", "changed", "closing_since", "ending", "first_byte_s", "first_close", "from_backend",
        "from_client", "patience",
    )  # fmt: skip

    def __init__(
        self, client: Wire, backend: Wire, *, max_message_bytes: int = 0, now: float, opaque: bool = False
    ) -> None:
        kind = OpaqueBytes if opaque else FrameTracker
        self.from_client = Flow(
            "client", client, backend, kind(masked=True, max_message_bytes=max_message_bytes), now
        )
        self.from_backend = Flow("backend", backend, client, kind(masked=False), now)
        self.from_client.back, self.from_backend.back = self.from_backend, self.from_client
        self.from_client.tunnel = self.from_backend.tunnel = self
        self.changed = trio.Event()
        self.ending: Ending | None = None
        self.first_close: Flow | None = None  #: whose close frame, or end of stream, was the first to go by
        self.closing_since = 0.0  #: when that was
        self.asked_at = 0.0  #: when the client's first message went by
        self.first_byte_s: float | None = None  #: from then to what the instance said next
        self.patience = 2.0 if opaque else 1.0  #: in stall timeouts: at a gate, the gateway's own comes first

    @property
    def flows(self) -> tuple[Flow, Flow]:
        return self.from_client, self.from_backend

    @property
    def last_data(self) -> float:
        return max(self.from_client.last_data, self.from_backend.last_data)

    def rejoin(self, backend: Wire) -> None:
        """Another instance goes on where the one before ended; it was sent what that had not taken in."""
        self.from_backend.source, self.from_backend.receive_into = backend, receiving(backend)
        self.from_client.target, self.from_client.send = backend, backend.sock.send
        self.from_client.pending = b""
        self.from_client.ended = self.from_backend.ended = False
        self.from_client.stalled_since = self.from_backend.stalled_since = None

    def end(self, ending: Ending) -> None:
        """The first ending counts."""
        if self.ending is None:
            self.ending = ending
            self.changed.set()

    def arrived(self, flow: Flow, now: float) -> None:
        """The client's first message, or the first one that the instance sends after it."""
        flow.awaited = False
        if flow is self.from_client:
            self.asked_at, flow.back.awaited = now, True
        else:
            self.first_byte_s = now - self.asked_at

    def closing(self, flow: Flow, now: float) -> None:
        if self.first_close is None:
            self.first_close, self.closing_since = flow, now
            self.changed.set()

    def seen(self) -> Ending:
        """The ending of a tunnel in which a side ended it by itself, as it was seen."""
        assert self.first_close is not None
        tracker = self.first_close.tracker
        if not tracker.closed:
            return Ending(self.first_close.name, None, "end of stream", abrupt=True)
        code = NO_CODE if tracker.close_code is None else tracker.close_code
        return Ending(self.first_close.name, code, tracker.close_reason, abrupt=True)


class Relay:
    """Serves all tunnels that it was given, until `ended` is cancelled."""

    def __init__(self, *, stall_timeout_s: float = 60.0, busy_wait_s: float = 0.0) -> None:
        self.ended = trio.CancelScope(shield=True)
        self._epoll = select.epoll()
        self._flows: dict[int, Flow] = {}  # by the descriptor of their source
        self._received = bytearray(_BUFFER_BYTES)
        self._buffer = memoryview(self._received)
        self._stalled: set[Flow] = set()
        self._stall_timeout_s = stall_timeout_s
        self._busy_wait_s = busy_wait_s
        self._stall_began = trio.Event()
        self._last_served = -math.inf
        self._woke_task = False

    async def run(self) -> None:
        """Relays until `ended` is cancelled; shielded from every other cancellation.

        Connections end in order, and relay until they have: their owner ends the relay after them.
        """
        with self._epoll, self.ended:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._watch_stalls)
                while True:
                    await trio.lowlevel.wait_readable(self._epoll.fileno())
                    self._serve_slice()

    @contextmanager
    def carrying(self, tunnel: Tunnel) -> Iterator[None]:
        """Relays inside the block, beginning with what came along with the handshakes."""
        for flow in tunnel.flows:
            self._flows[flow.source.sock.fileno()] = flow
        try:
            now = trio.current_time()
            for flow in tunnel.flows:
                data, flow.source.ahead = flow.source.ahead, b""
                if data:
                    self._pass_on(flow, memoryview(data), now)
            if tunnel.ending is None:
                for flow in tunnel.flows:
                    self._set_interest(flow)
                    if flow.source.secure and not flow.pending:
                        self._receive(flow, now)  # see _BUFFER_BYTES
            yield
        finally:
            self.release(tunnel)

    def release(self, tunnel: Tunnel) -> None:
        """Touches the tunnel's sockets no more."""
        for flow in tunnel.flows:
            if self._flows.pop(flow.source.sock.fileno(), None) is not None and flow.interest:
                self._epoll.unregister(flow.source.sock)
                flow.interest = 0
            self._stalled.discard(flow)

    def _serve_slice(self) -> None:
        """Serves what is ready, and what becomes ready while that goes on, within bounds."""
        now = trio.current_time()
        end = now + _SLICE_S
        wait_s = self._busy_wait_s if now - self._last_served < self._busy_wait_s else 0
        self._woke_task = False
        while ready := self._epoll.poll(wait_s, _BATCH):
            now = self._last_served = trio.current_time()
            self._serve(ready, now)
            # When little is going on, going back to trio costs less than another poll that finds nothing.
            if self._woke_task or now >= end or (not wait_s and len(ready) < 2):
                break

    def _serve(self, ready: list[tuple[int, int]], now: float) -> None:
        flows = self._flows
        for fd, events in ready:
            flow = flows.get(fd)
            if flow is None or flow.tunnel.ending is not None:
                continue  # its tunnel has ended: earlier in this batch, or by a limit or an operator
            try:
                if events & _OUT:
                    self._flush(flow.back, now)
                if events != _OUT and flow.interest & _IN:
                    self._receive(flow, now)
            except Exception:  # the boundary: a fault in one tunnel must not reach the others
                logger.exception("internal error in the relay: one connection closed with 1011")
                self._end(flow.tunnel, Ending("gateway", FAILED, "internal error"))

    def _receive(self, flow: Flow, now: float) -> None:
        try:
            size = flow.receive_into(self._buffer)
        except _AGAIN:
            return
        except OSError as error:
            self._lost(flow, error)
            return
        if size == _RECORD_BYTES and flow.source.secure:
            size += self._more(flow)
        if flow.tracker.is_message(self._received, size):
            flow.bytes += size
            flow.last_data = now
            if flow.awaited:
                flow.tunnel.arrived(flow, now)
            if flow.tail is not None:
                flow.tail.append(self._buffer[:size])
            self._send(flow, self._buffer[:size], size, now)
        elif size:
            self._pass_on(flow, self._buffer[:size], now)
        else:
            self._at_end(flow, now)

    def _more(self, flow: Flow) -> int:
        """After a full record of TLS: takes those behind it, as far as they are there. To send each by itself
        costs more than TLS itself does. What ends the stream is left for the next time.
        """
        size = _RECORD_BYTES
        with suppress(OSError):
            while size % _RECORD_BYTES == 0 and size <= _BUFFER_BYTES - _RECORD_BYTES:
                taken = flow.receive_into(self._buffer[size:])
                if not taken:
                    break
                size += taken
        return size - _RECORD_BYTES

    def _pass_on(self, flow: Flow, data: memoryview, now: float) -> None:
        tracker = flow.tracker
        data_frames = tracker.data_frames
        try:
            tracker.feed(data)
        except FrameViolation as fault:
            data = data[: fault.safe]
            of_service = flow is flow.tunnel.from_backend
            self._end(flow.tunnel, Ending("gateway", fault.code, fault.reason, services_fault=of_service))
        size = len(data)
        flow.bytes += size
        if flow.tail is not None:
            flow.tail.append(data)
        if tracker.data_frames != data_frames:
            flow.last_data = now
            if flow.awaited:
                flow.tunnel.arrived(flow, now)
        if tracker.closed:
            self._closing(flow, now)
        self._send(flow, data, size, now)

    def _send(self, flow: Flow, data: memoryview, size: int, now: float) -> None:
        try:
            sent = flow.send(data)
        except _AGAIN:
            sent = 0
        except OSError:
            self._undeliverable(flow)
            return
        if sent != size:
            flow.pending = bytes(data[sent:])
            if flow.tunnel.ending is None:
                flow.stalled_since = now
                self._stalled.add(flow)
                self._stall_began.set()
                self._set_interest(flow)
                self._set_interest(flow.back)

    def _flush(self, flow: Flow, now: float) -> None:
        try:
            sent = flow.send(flow.pending)
        except _AGAIN:
            return
        except OSError:
            self._undeliverable(flow)
            return
        flow.stalled_since = now
        flow.pending = flow.pending[sent:]
        if flow.pending:
            return
        flow.stalled_since = None
        self._stalled.discard(flow)
        self._set_interest(flow)
        self._set_interest(flow.back)
        if flow.ended:
            self._drained(flow)
        elif flow.source.secure:
            self._receive(flow, now)  # see _BUFFER_BYTES

    def _at_end(self, flow: Flow, now: float) -> None:
        """The source's end of stream."""
        tunnel = flow.tunnel
        flow.ended = True
        if flow is tunnel.from_backend and tunnel.first_close is None:
            self._end(tunnel, Ending("backend", None, "the instance ended the connection", resumes=True))
            return
        self._closing(flow, now)
        self._set_interest(flow)
        if not flow.pending:
            self._drained(flow)

    def _drained(self, flow: Flow) -> None:
        """All that the source ever said has been delivered."""
        back = flow.back
        # After both close frames nothing more is said, and TLS has no half close that peers agree on.
        said = back.ended or (back.tracker.closed and flow.tracker.closed) or not flow.target.half_closes
        if said and not back.pending:
            self._end(flow.tunnel, flow.tunnel.seen())
        else:
            flow.target.end_sending()

    def _undeliverable(self, flow: Flow) -> None:
        """The target takes nothing more. What it had said before can still be read, and must be."""
        flow.pending = b""
        flow.ended = True
        self._stalled.discard(flow)
        if flow.tunnel.ending is None:
            self._set_interest(flow)
            self._set_interest(flow.back)

    def _lost(self, flow: Flow, error: OSError) -> None:
        """The source is gone, without an end of stream."""
        tunnel = flow.tunnel
        if tunnel.first_close is not None:
            self._end(tunnel, tunnel.seen())
            return
        cut = isinstance(error, ssl.SSLEOFError)  # OpenSSL's words are for no client
        reason = f"connection lost: {'it was cut' if cut else error.strerror or error}"
        by_client = flow is tunnel.from_client
        ending = Ending(flow.name, None, reason, abrupt=by_client, resumes=not by_client)
        self._end(tunnel, evolve(ending, at_gate=flow.source.at_gate))

    def _closing(self, flow: Flow, now: float) -> None:
        flow.tunnel.closing(flow, now)
        self._woke_task = True

    def _end(self, tunnel: Tunnel, ending: Ending) -> None:
        self.release(tunnel)
        tunnel.end(ending)
        self._woke_task = True

    def _set_interest(self, flow: Flow) -> None:
        wanted = 0 if flow.ended or flow.pending else _IN
        if flow.back.pending:
            wanted |= _OUT
        if wanted == flow.interest:
            return
        # With nothing wanted it leaves the epoll: a hang-up cannot be masked, and would wake us for ever.
        if not wanted:
            self._epoll.unregister(flow.source.sock)
        elif not flow.interest:
            self._epoll.register(flow.source.sock, wanted)
        else:
            self._epoll.modify(flow.source.sock, wanted)
        flow.interest = wanted

    async def _watch_stalls(self) -> None:
        while True:
            await self._stall_began.wait()
            self._stall_began = trio.Event()
            while self._stalled:
                due = trio.current_time() + self._stall_timeout_s / 20
                await trio.sleep_until(due)
                now = trio.current_time()
                for flow in tuple(self._stalled):
                    assert flow.stalled_since is not None
                    # Time in which this process was stopped or had no processor is no fault of the others.
                    flow.stalled_since += now - due
                    if now - flow.stalled_since >= self._stall_timeout_s * flow.tunnel.patience:
                        # Who cannot get rid of its answers soon stops reading too. An instance that waits for
                        # its client is not at fault: else one client could have instances ejected.
                        of_service = not flow.tunnel.from_backend.pending
                        reason = f"the {'backend' if of_service else 'client'} does not read"
                        flow.tunnel.end(Ending("gateway", TOO_SLOW, reason, services_fault=of_service))
