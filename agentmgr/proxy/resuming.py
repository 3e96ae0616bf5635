"""Has another instance go on with a connection whose instance has ended, so that its client notices nothing.

The client's socket stays. Its seat is given back, and another one is waited for as a new client would. The
instance hears how many whole frames the client has, and how many bytes of the next; it goes on with that
frame, of which those bytes are dropped here. It says how many of the client's messages have been taken in;
those after them are sent again (`tail`).
"""

from __future__ import annotations

import random
import re
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, closing
from urllib.parse import quote

import trio
from attrs import define

from ..core.gateway_headers import RESUME_HEADER, RESUMED_HEADER
from ..core.request import ClientRequest
from ..protocol import NO_CODE
from ..websocket.frames import CLOSE, PING, PONG, FrameTracker, frame_head
from ..websocket.head import HeadReader, ResponseHead
from ..websocket.refusal import Refusal
from ..websocket.sockets import Wire
from .connections import Connections, LiveConnection
from .dialer import Dialer, DialFailed
from .limits import GatewayLimits
from .lobby import Lobby
from .tail import Tail, whole_frames
from .tunnel import Ending
from .upstream import BackendRefused, open_backend
from .visit import Seat, Visit

_PAUSE_S, _LONGEST_PAUSE_S = 0.05, 0.5  # between tries at instances that cannot go on yet
_CHUNK_BYTES = 64 * 1024
_TAKEN = re.compile(r"taken=([0-9]{1,18}); pings=([0-9]{1,18})")
_GONE = Ending("client", None, "it left while its connection was resumed", abrupt=True)


class Hopeless(Exception):
    """No instance can go on with this connection."""


def asks_to(asked: bytes, value: str) -> bytes:
    """The same head, which asks that the connection can be resumed, or is."""
    return asked[:-2] + f"{RESUME_HEADER}: {value}\r\n\r\n".encode()


def taken_in(answer: ResponseHead) -> tuple[int, int] | None:
    """How many of the client's messages and pings; None where the connection cannot be resumed."""
    found = _TAKEN.fullmatch(answer.by_name.get(RESUMED_HEADER.lower(), ""))
    if found is None or "sec-websocket-extensions" in answer.by_name:
        return None
    return int(found[1]), int(found[2])


@define(eq=False)
class Resuming:
    """What one connection needs for it, while it lives."""

    connection: LiveConnection
    client: Wire
    asked: bytes  #: the head that its instance was asked with
    place: AsyncExitStack  #: its seat, and the instance's wire
    lobby: Lobby
    connections: Connections
    limits: GatewayLimits
    dialer: Dialer

    def __attrs_post_init__(self) -> None:
        inbound = self.connection.tunnel.from_client
        inbound.tail = Tail(inbound.tracker)

    async def resume(self, ending: Ending) -> bool:
        """Whether the connection goes on; else `tunnel.ending` says why, if it is another reason.

        The relay must have released it.
        """
        connection, tunnel = self.connection, self.connection.tunnel
        tunnel.ending, tunnel.changed = None, trio.Event()
        self.connections.adrift(connection)
        await self.place.aclose()
        goes_on = False
        with trio.move_on_after(connection.backend.resume_within):
            async with trio.open_nursery() as nursery:
                flushed = await nursery.start(self._keep_company)
                nursery.start_soon(_cancel_when, tunnel.changed.wait, nursery.cancel_scope)
                goes_on = await self._go_on(ending, flushed)
                nursery.cancel_scope.cancel()
        return goes_on

    async def _go_on(self, ending: Ending, flushed: trio.Event) -> bool:
        connection, before = self.connection, self.connection.backend
        visit = Visit(
            ClientRequest(f"/services/{quote(before.service_name, safe='')}", connection.client_ip),
            patience_s=before.resume_within,
            node_id=before.node_id if self.lobby.router.gates and before.journaled else None,
        )
        hopeless_at, pause_s = trio.current_time() + self.limits.queue_timeout_s, _PAUSE_S
        if ending.by == "backend":
            await self.lobby.noticed(before)
        while self.lobby.can_go_on(before):
            if ending.by == "gateway":
                visit.tried.add(before.instance_id)  # it lives, and is to lose its clients
            try:
                async with AsyncExitStack() as tried:
                    seat = await tried.enter_async_context(self.lobby.seat(visit))
                    if seat is not None and await self._try(visit, seat, tried, flushed):
                        self.place.push_async_exit(tried.pop_all())
                        return True
            except Hopeless:
                return False
            except Refusal:  # nothing is there to wait for, which may change: a restart has two halves
                if trio.current_time() > hopeless_at:
                    return False
            visit.tried.clear()
            await trio.sleep(pause_s * random.uniform(0.5, 1.5))
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
        return False

    async def _try(self, visit: Visit, seat: Seat, tried: AsyncExitStack, flushed: trio.Event) -> bool:
        """Raises `Hopeless`."""
        connection, tunnel, limits = self.connection, self.connection.tunnel, self.limits
        out = tunnel.from_backend.tracker
        where = f"delivered={out.messages + out.controls}; offset={out.partial}"
        asked = asks_to(self.asked, f"{connection.connection_id}; {where}")
        head = HeadReader(max_bytes=len(self.asked)).feed(self.asked)
        assert head is not None
        try:
            wire, answer = await open_backend(
                seat.backend,
                asked,
                head,
                limits,
                deadline=trio.current_time() + limits.dial_timeout_s,
                dialer=self.dialer,
            )
            tried.enter_context(closing(wire))
            taken, tail = taken_in(answer), tunnel.from_client.tail
            again = None if taken is None or tail is None else tail.after(*taken)
            if again is None:
                raise Hopeless
            with trio.fail_after(limits.handshake_timeout_s):
                await wire.send_all(again)
                await _drop(wire, out.partial)
        except DialFailed as fault:
            visit.sought = None
            if fault.holder is not None:
                self.lobby.moved(visit, seat, fault.holder)
            elif fault.outdated:
                await self.lobby.outdated(visit, seat)
            return False
        except BackendRefused as refused:
            visit.sought = None
            if refused.status != 503:
                raise Hopeless from None
            return False
        except (OSError, trio.TooSlowError):
            return False
        await flushed.wait()
        tunnel.rejoin(wire)
        connection.backend = seat.backend
        connection.resumed += 1
        self.lobby.opened(visit, seat)
        self.connections.rejoined(connection)
        return True

    async def _keep_company(self, *, task_status: trio.TaskStatus[trio.Event]) -> None:
        """Gives the client what was received for it; takes in what it sends, and answers its pings."""
        flushed = trio.Event()
        task_status.started(flushed)
        client, tunnel = self.client, self.connection.tunnel
        flow = tunnel.from_backend
        try:
            while flow.pending:
                flow.pending = flow.pending[await client.send_some(flow.pending) :]
            flushed.set()
            # In the middle of a frame nothing may be said.
            may_answer = not (flow.tracker.partial or tunnel.from_client.tracker.partial)
            while len(client.ahead) < self.limits.early_bytes:
                data = await client.receive(_CHUNK_BYTES)
                if not data:
                    tunnel.end(_GONE)
                    return
                client.ahead += data
                if may_answer:
                    await self._answer()
        except OSError:
            tunnel.end(_GONE)

    async def _answer(self) -> None:
        """Answers the control frames that begin or end what has come. Raises `OSError`."""
        data, kept = self.client.ahead, b""
        end = 0
        for first, start, end in whole_frames(data):
            frame = data[start:end]
            if first & 0x0F == PING and len(frame) <= 6 + 125:
                await self._say(frame_head(PONG, len(frame) - 6) + _unmasked(frame))
            elif first & 0x0F == CLOSE:
                tracker = FrameTracker(masked=True)
                tracker.feed(frame)
                code = NO_CODE if tracker.close_code is None else tracker.close_code
                await self._say(frame_head(frame[:1], len(frame) - 6) + _unmasked(frame))
                self.connection.tunnel.end(Ending("client", code, tracker.close_reason, abrupt=True))
            else:
                kept += frame
        self.client.ahead = kept + data[end:]

    async def _say(self, frame: bytes) -> None:
        with trio.move_on_after(self.limits.close_timeout_s, shield=True) as patience:
            await self.client.send_all(frame)  # whole, or not at all
        if patience.cancelled_caught:
            self.connection.tunnel.end(_GONE)


async def _drop(wire: Wire, size: int) -> None:
    """Takes so many bytes off what the instance sends: the client has them. Raises `OSError`."""
    while size:
        if not wire.ahead:
            wire.ahead = await wire.receive(_CHUNK_BYTES)
            if not wire.ahead:
                raise OSError("it ended the connection at once")
        cut = min(size, len(wire.ahead))
        wire.ahead, size = wire.ahead[cut:], size - cut


async def _cancel_when(event: Callable[[], Awaitable[None]], scope: trio.CancelScope) -> None:
    await event()
    scope.cancel()


def _unmasked(frame: bytes) -> bytes:
    """The payload of a client's control frame."""
    key, payload = frame[2:6], frame[6:]
    return bytes(byte ^ key[i % 4] for i, byte in enumerate(payload))
