"""Ending a session that its two sides did not end themselves: a close frame to whoever can still take one."""

from __future__ import annotations

import trio

from .frames import PROTOCOL_ERROR, TOO_BIG, FrameViolation, close_frame
from .tunnel import Ending, Flow, Tunnel

_GOING_AWAY = 1001
_DISCARD_BYTES = 64 * 1024


async def say_goodbye(tunnel: Tunnel, ending: Ending, *, timeout_s: float) -> None:
    """Sends the ending's code to the client and takes leave of the instance, within `timeout_s` seconds.

    The relay must have released the tunnel. The sockets stay open: closing them is up to their owner.
    """
    if ending.abrupt or ending.code is None:
        return
    # What went wrong on the wire is told to both; else the instance just sees a client that goes away.
    to_backend = ending.code if ending.code in (PROTOCOL_ERROR, TOO_BIG) else _GOING_AWAY
    goodbyes = [(tunnel.from_backend, ending.code)]
    if ending.by != "backend":
        goodbyes.append((tunnel.from_client, to_backend))
    with trio.move_on_after(timeout_s):
        # First both are told, then both are waited for: telling one may take a look at what the other sends.
        async with trio.open_nursery() as nursery:
            for flow, code in goodbyes:
                nursery.start_soon(_end_flow, flow, code, ending.reason)
        async with trio.open_nursery() as nursery:
            for flow, _ in goodbyes:
                nursery.start_soon(_answered, flow.target.source_of)


def at_boundary(flow: Flow) -> bool:
    """Can a close frame follow what was passed on of this flow, with no more from its source?"""
    return flow.tracker.partial <= len(flow.pending)


async def _end_flow(flow: Flow, code: int, reason: str) -> None:
    """Tells the flow's target that nothing more will come."""
    target, tracker = flow.target.wire, flow.tracker
    if flow.stalled_since is not None and flow.pending:
        return  # it has not read what it was sent before; a close frame would only join that
    try:
        if await _reach_boundary(flow) and not tracker.closed:
            masked = flow.name == "client"
            await target.send_all(close_frame(code, reason, masked=masked))
        target.end_sending()
    except OSError:
        pass  # gone already


async def _answered(flow: Flow) -> None:
    """Returns when the flow's source has answered with a close frame, or has gone.

    Closing with unread data in the socket would be a reset, and could overtake our own close frame. But a
    client that has answered may leave it to us to close the connection (RFC 6455, section 7.1.1).
    """
    try:
        while not flow.tracker.closed and (data := await flow.source.wire.receive(_DISCARD_BYTES)):
            flow.tracker.feed(data)
    except (OSError, FrameViolation):
        pass  # gone, or nothing that could be followed


async def _reach_boundary(flow: Flow) -> bool:
    """Brings the bytes sent to the end of a frame, where a close frame is legal. False: impossible."""
    tracker = flow.tracker
    source, target = flow.source.wire, flow.target.wire
    data = memoryview(flow.pending)
    while True:
        if tracker.partial <= len(data):
            await target.send_all(data[: len(data) - tracker.partial])
            return True
        await target.send_all(data)
        received = await source.receive(_DISCARD_BYTES)
        if not received:
            return False
        try:
            tracker.feed(received)
        except FrameViolation:
            return False
        data = memoryview(received)
