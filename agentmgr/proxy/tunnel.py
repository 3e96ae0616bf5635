"""The relay: bytes from one socket to the other, for all sessions, in one loop.

A task for each direction, waiting for its socket, costs two to four times what the relaying itself costs
(24 to 90 µs of CPU for an echo, measured). So all sockets are in one level-triggered epoll, and one trio
task waits for that epoll and serves what is ready in a plain loop: receive, follow the frames, send.
A batch is bounded, so that other tasks get their turn.

A session's own task sleeps meanwhile (`Tunnel.changed`). The relay never closes a socket: it says how a
tunnel stands, and the session's task decides (`session`).
"""

from __future__ import annotations

import logging
import select
import ssl
from collections.abc import Iterator
from contextlib import contextmanager

import trio
from attrs import frozen

from .frames import FrameTracker, FrameViolation
from .wire import Wire

logger = logging.getLogger("agentmgr.gateway")

_AGAIN = (BlockingIOError, InterruptedError, ssl.SSLWantReadError, ssl.SSLWantWriteError)

_IN, _OUT = select.EPOLLIN, select.EPOLLOUT
_BUFFER_BYTES = 128 * 1024  # a 64 KiB message and its header in one turn
_BATCH = 64  # ready sockets for each look at the epoll
_ROUNDS = 8  # looks before other tasks get their turn: 8 * 64 small messages take about 2 ms


@frozen
class Ending:
    """Why a tunnel is over, and what is left to say."""

    by: str  #: `client`, `backend` or `gateway`
    code: int | None  #: the close code seen, or for the gateway's own endings the one to send
    reason: str
    abrupt: bool = False  #: nothing more can or needs to be said to either side


class Leg:
    """One socket of a tunnel and what the epoll is to tell us of it."""

    __slots__ = ("interest", "sock", "source_of", "target_of", "tunnel", "wire")

    def __init__(self, tunnel: Tunnel, wire: Wire) -> None:
        self.tunnel = tunnel
        self.wire = wire
        self.sock = wire.sock
        self.interest = 0
        self.source_of: Flow
        self.target_of: Flow


class Flow:
    """The bytes from one leg to the other."""

    __slots__ = (
        "bytes", "ended", "frames_seen", "last_data", "name", "pending", "receive_into", "send",
        "source", "stalled_since", "target", "tracker",
    )  # fmt: skip

    def __init__(self, name: str, source: Leg, target: Leg, tracker: FrameTracker, now: float) -> None:
        self.name = name  #: whose bytes these are: `client` or `backend`
        self.source = source
        self.target = target
        self.tracker = tracker
        self.receive_into = source.sock.recv_into
        self.send = target.sock.send
        self.pending = b""  #: received and not sent yet; while there is some, nothing more is received
        self.ended = False  #: the source has nothing more to say
        self.bytes = 0
        self.frames_seen = 0
        self.last_data = now  #: when a data frame last went by
        self.stalled_since: float | None = None  #: when the target last took anything, if it makes us wait
        source.source_of = self
        target.target_of = self


class Tunnel:
    """The two flows between a client and its instance."""

    __slots__ = ("changed", "closing_since", "ending", "first_close", "from_backend", "from_client")

    def __init__(self, client: Wire, backend: Wire, *, max_message_bytes: int, now: float) -> None:
        client_leg, backend_leg = Leg(self, client), Leg(self, backend)
        inbound = FrameTracker(masked=True, max_message_bytes=max_message_bytes)
        outbound = FrameTracker(masked=False)
        self.from_client = Flow("client", client_leg, backend_leg, inbound, now)
        self.from_backend = Flow("backend", backend_leg, client_leg, outbound, now)
        self.changed = trio.Event()
        self.ending: Ending | None = None
        self.first_close: Flow | None = None  #: whose close frame, or end of stream, was the first to go by
        self.closing_since = 0.0  #: when that was

    @property
    def last_data(self) -> float:
        return max(self.from_client.last_data, self.from_backend.last_data)

    def end(self, ending: Ending) -> None:
        """The first ending counts."""
        if self.ending is None:
            self.ending = ending
            self.changed.set()

    def closing(self, flow: Flow, now: float) -> None:
        if self.first_close is None:
            self.first_close, self.closing_since = flow, now
            self.changed.set()

    def seen(self) -> Ending:
        """The ending of a tunnel in which a side ended it by itself, as it was seen."""
        assert self.first_close is not None
        tracker = self.first_close.tracker
        reason = tracker.close_reason if tracker.closed else "end of stream"
        return Ending(self.first_close.name, tracker.close_code, reason, abrupt=True)


class Relay:
    """Serves all tunnels that it was given, for as long as `run` runs."""

    def __init__(self, *, stall_timeout_s: float = 60.0) -> None:
        self._epoll = select.epoll()
        self._legs: dict[int, Leg] = {}
        self._buffer = memoryview(bytearray(_BUFFER_BYTES))
        self._stalled: set[Flow] = set()
        self._stall_timeout_s = stall_timeout_s
        self._somebody_stalled = trio.Event()

    async def run(self, *, task_status: trio.TaskStatus[trio.CancelScope] = trio.TASK_STATUS_IGNORED) -> None:
        """Relays until the scope that it reports is cancelled; shielded from every other cancellation.

        Sessions end in order, and relay until they have: their owner cancels the relay after them.
        """
        with self._epoll, trio.CancelScope(shield=True) as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._watch_stalls)
                task_status.started(scope)
                while True:
                    await trio.lowlevel.wait_readable(self._epoll.fileno())
                    self._turn()

    @contextmanager
    def carrying(self, tunnel: Tunnel) -> Iterator[None]:
        """Relays inside the block, beginning with what came along with the handshakes."""
        legs = (tunnel.from_client.source, tunnel.from_client.target)
        for leg in legs:
            self._legs[leg.sock.fileno()] = leg
        try:
            now = trio.current_time()
            for flow in (tunnel.from_client, tunnel.from_backend):
                data, flow.source.wire.ahead = flow.source.wire.ahead, b""
                if data:
                    self._pass_on(flow, memoryview(data), now)
            for leg in legs:
                if tunnel.ending is None:
                    self._set_interest(leg)
            yield
        finally:
            self.release(tunnel)

    def release(self, tunnel: Tunnel) -> None:
        """Touches the tunnel's sockets no more."""
        for leg in (tunnel.from_client.source, tunnel.from_client.target):
            if self._legs.pop(leg.sock.fileno(), None) is not None and leg.interest:
                self._epoll.unregister(leg.sock)
                leg.interest = 0
        self._stalled.discard(tunnel.from_client)
        self._stalled.discard(tunnel.from_backend)

    def _turn(self) -> None:
        legs = self._legs
        now = trio.current_time()
        for _ in range(_ROUNDS):
            ready = self._epoll.poll(0, _BATCH)
            for fd, events in ready:
                leg = legs.get(fd)
                if leg is None:
                    continue  # its tunnel ended earlier in this batch
                try:
                    if events & _OUT:
                        self._flush(leg.target_of, now)
                    if events & ~_OUT and leg.interest & _IN:
                        self._receive(leg.source_of, now)
                except Exception:  # the boundary: a fault in one tunnel must not reach the others
                    logger.exception("a tunnel ended with an error of the relay's own")
                    self._end(leg.tunnel, Ending("gateway", 1011, "internal error"))
            if len(ready) < _BATCH:
                break

    def _receive(self, flow: Flow, now: float) -> None:
        while True:
            try:
                size = flow.receive_into(self._buffer)
            except _AGAIN:
                return
            except OSError as error:
                self._lost(flow, error)
                return
            if not size:
                self._at_end(flow, now)
                return
            self._pass_on(flow, self._buffer[:size], now)
            # TLS may hold decrypted bytes that no epoll will ever tell of.
            if not flow.source.wire.secure or flow.pending or flow.source.tunnel.ending is not None:
                return

    def _pass_on(self, flow: Flow, data: memoryview, now: float) -> None:
        tracker = flow.tracker
        try:
            tracker.feed(data)
        except FrameViolation as fault:
            data = data[: fault.safe]
            self._end(flow.source.tunnel, Ending("gateway", fault.code, fault.reason))
        flow.bytes += len(data)
        if tracker.data_frames != flow.frames_seen:
            flow.frames_seen = tracker.data_frames
            flow.last_data = now
        if tracker.closed:
            flow.source.tunnel.closing(flow, now)
        try:
            sent = flow.send(data)
        except _AGAIN:
            sent = 0
        except OSError:
            self._undeliverable(flow)
            return
        if sent < len(data):
            flow.pending = bytes(data[sent:])
            if flow.source.tunnel.ending is None:
                flow.stalled_since = now
                self._stalled.add(flow)
                self._somebody_stalled.set()
                self._set_interest(flow.source)
                self._set_interest(flow.target)

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
        self._set_interest(flow.source)
        self._set_interest(flow.target)
        if flow.ended:
            self._drained(flow)
        elif flow.source.wire.secure:
            self._receive(flow, now)

    def _at_end(self, flow: Flow, now: float) -> None:
        """The source's end of stream."""
        tunnel = flow.source.tunnel
        flow.ended = True
        if flow is tunnel.from_backend and tunnel.first_close is None:
            self._end(tunnel, Ending("backend", None, "the instance ended the connection"))
            return
        tunnel.closing(flow, now)
        self._set_interest(flow.source)
        if not flow.pending:
            self._drained(flow)

    def _drained(self, flow: Flow) -> None:
        """All that the source ever said has been delivered."""
        tunnel = flow.source.tunnel
        other = flow.target.source_of
        # TLS has no half close that peers agree on: there, the end of one direction is the end.
        if (other.ended and not other.pending) or flow.target.wire.secure:
            self._end(tunnel, tunnel.seen())
        else:
            flow.target.wire.end_sending()

    def _undeliverable(self, flow: Flow) -> None:
        """The target takes nothing more. What it had said before can still be read, and must be."""
        flow.pending = b""
        flow.ended = True
        self._stalled.discard(flow)
        self._set_interest(flow.source)
        self._set_interest(flow.target)

    def _lost(self, flow: Flow, error: OSError) -> None:
        """The source is gone, without an end of stream."""
        tunnel = flow.source.tunnel
        if tunnel.first_close is not None:
            self._end(tunnel, tunnel.seen())
            return
        reason = f"connection lost: {error.strerror or error}"
        self._end(tunnel, Ending(flow.name, None, reason, abrupt=flow is tunnel.from_client))

    def _end(self, tunnel: Tunnel, ending: Ending) -> None:
        self.release(tunnel)
        tunnel.end(ending)

    def _set_interest(self, leg: Leg) -> None:
        out, into = leg.source_of, leg.target_of
        wanted = 0 if out.ended or out.pending else _IN
        if into.pending:
            wanted |= _OUT
        if wanted == leg.interest:
            return
        # With nothing wanted it leaves the epoll: a hang-up cannot be masked, and would wake us for ever.
        if not wanted:
            self._epoll.unregister(leg.sock)
        elif not leg.interest:
            self._epoll.register(leg.sock, wanted)
        else:
            self._epoll.modify(leg.sock, wanted)
        leg.interest = wanted

    async def _watch_stalls(self) -> None:
        while True:
            await self._somebody_stalled.wait()
            self._somebody_stalled = trio.Event()
            while self._stalled:
                await trio.sleep(self._stall_timeout_s / 20)
                overdue = trio.current_time() - self._stall_timeout_s
                for flow in list(self._stalled):
                    if flow.stalled_since is not None and flow.stalled_since <= overdue:
                        who = flow.target.source_of.name
                        flow.source.tunnel.end(Ending("gateway", 1013, f"the {who} does not read"))
