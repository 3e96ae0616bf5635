"""Ends a connection that neither side has ended: sends a close frame to each side that can still take one."""

from __future__ import annotations

from contextlib import suppress

import trio

from ..protocol import GOING_AWAY, PROTOCOL_ERROR, TOO_BIG
from ..websocket.frames import FrameViolation, close_frame
from .tunnel import Ending, Flow, Tunnel

_CHUNK_BYTES = 64 * 1024
_MOST_DISCARDED = 16 * 1024 * 1024


async def say_goodbye(tunnel: Tunnel, ending: Ending, *, timeout_s: float) -> None:
    """Sends the ending's code to the client and takes leave of the instance, within `timeout_s` seconds.

    The relay must have released the tunnel. The sockets stay open: closing them is up to their owner.
    """
    if ending.abrupt or ending.code is None:
        return
    # Both sides get the code of a protocol error; else the instance sees a client that goes away.
    to_backend = ending.code if ending.code in (PROTOCOL_ERROR, TOO_BIG) else GOING_AWAY
    codes = {tunnel.from_backend: ending.code, tunnel.from_client: to_backend}
    if ending.by == "backend":
        del codes[tunnel.from_client]
    with trio.move_on_after(timeout_s):
        async with trio.open_nursery() as nursery:
            for flow, code in codes.items():
                nursery.start_soon(_close, flow, code, ending.reason)
        # Only now, because finishing a frame reads from the socket that the other flow listens to here.
        async with trio.open_nursery() as nursery:
            for flow in codes:
                nursery.start_soon(_wait_for_answer, flow.back)


def at_boundary(flow: Flow) -> bool:
    """Can a close frame follow what was passed on of this flow, with no more from its source?"""
    return flow.tracker.partial <= len(flow.pending)


async def _close(flow: Flow, code: int, reason: str) -> None:
    """Sends the flow's target a close frame and the end of the stream."""
    if flow.stalled_since is not None and flow.pending:
        return  # it has not read what it was sent before; a close frame would only join that
    target, tracker = flow.target, flow.tracker
    with suppress(OSError):  # gone already
        if await _reach_boundary(flow) and not tracker.closed:
            await target.send_all(close_frame(code, reason, masked=flow.name == "client"))
        target.end_sending()


async def _wait_for_answer(flow: Flow) -> None:
    """Returns when the flow's source has answered the close frame, has left, or is not worth waiting for."""
    # Closing with unread data in the socket would be a reset, and could overtake the close frame. But who
    # goes on sending so much has not read it anyway.
    tracker, discarded, follow = flow.tracker, 0, True
    with suppress(OSError):
        while not tracker.closed and discarded < _MOST_DISCARDED:
            data = await flow.source.receive(_CHUNK_BYTES)
            if not data:
                return
            discarded += len(data)
            if follow:
                try:
                    tracker.feed(data)
                except FrameViolation:
                    follow = False  # its leaving is all that can be understood of it


async def _reach_boundary(flow: Flow) -> bool:
    """Brings the bytes sent to the end of a frame, where a close frame is legal. False: impossible."""
    tracker = flow.tracker
    source, target = flow.source, flow.target
    data = memoryview(flow.pending)
    while True:
        if tracker.partial <= len(data):
            await target.send_all(data[: len(data) - tracker.partial])
            return True
        await target.send_all(data)
        received = await source.receive(_CHUNK_BYTES)
        if not received:
            return False
        try:
            tracker.feed(received)
        except FrameViolation:
            return False
        data = memoryview(received)
