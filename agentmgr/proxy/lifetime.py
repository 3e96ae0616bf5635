"""One connection from its opening to its end: relays, watches its limits, closes both sides."""

from __future__ import annotations

import math
import random
from collections.abc import Awaitable, Callable
from typing import Protocol

import trio
from attrs import evolve

from ..core.routing import Backend
from ..protocol import GOING_AWAY, POLICY
from .connections import SHUTDOWN, LiveConnection
from .farewell import at_boundary, say_goodbye
from .limits import GatewayLimits
from .tunnel import Ending, Relay

_EXPIRED = Ending("gateway", POLICY, "the token that opened this connection has expired")
_GONE = Ending("backend", None, "the instance has gone, or its node was lost", resumes=True)


class LossCode(Protocol):
    async def __call__(self, backend: Backend, *, resuming_failed: bool, at_gate: bool) -> int:
        """The close code for the client of an instance that is gone."""


class Pacer:
    """Spreads many endings at once over a while, so that the reconnects do not come as one wave."""

    def __init__(self, limits: GatewayLimits) -> None:
        self._step_s = limits.close_pause_s / limits.close_batch
        self._next = 0.0

    async def wait(self) -> None:
        now = trio.current_time()
        # Jitter keeps the order loose: clients that came together should not come back together.
        self._next = max(self._next, now) + self._step_s * random.uniform(0.5, 1.5)
        await trio.sleep_until(self._next)


async def run_connection(
    connection: LiveConnection,
    relay: Relay,
    pacer: Pacer,
    limits: GatewayLimits,
    *,
    loss_code: LossCode,
    resume: Callable[[Ending], Awaitable[bool]] | None = None,
) -> None:
    """Relays until the connection ends, then sends a close frame to each side that is still there.

    When it is cancelled it does the same, with 1001. The wires stay open: their owner closes them.
    `resume` has another instance go on
    with a connection that ended so, and says whether one does.
    """
    tunnel, goes_on = connection.tunnel, True
    while goes_on:
        with relay.carrying(tunnel):
            goes_on = False
            try:
                ending = await watch_limits(connection, limits)
                relay.release(tunnel)
                tried = False
                if resume is not None and ending.resumes and tunnel.first_close is None:
                    tried, goes_on = True, await resume(ending)
                    ending = tunnel.ending or ending
                if goes_on:
                    continue
                if ending.by == "backend" and not ending.abrupt and at_boundary(tunnel.from_backend):
                    code = await loss_code(connection.backend, resuming_failed=tried, at_gate=ending.at_gate)
                    ending = evolve(ending, code=code)
                connection.ending = ending
            finally:
                if not goes_on:
                    with trio.CancelScope(shield=True):
                        if connection.ending is SHUTDOWN:
                            await pacer.wait()
                        relay.release(tunnel)
                        await say_goodbye(tunnel, connection.ending, timeout_s=limits.close_timeout_s)


async def watch_limits(connection: LiveConnection, limits: GatewayLimits) -> Ending:
    """Sleeps until the relay has an ending, or a time limit of this connection has passed."""
    tunnel, idle_limit_s = connection.tunnel, connection.backend.idle_timeout
    while tunnel.ending is None:
        if tunnel.first_close is not None:
            deadline, overdue = tunnel.closing_since + limits.close_timeout_s, tunnel.seen()
        else:
            deadline = tunnel.last_data + idle_limit_s if idle_limit_s else math.inf
            overdue = Ending("gateway", GOING_AWAY, f"no message for {idle_limit_s:g} s")
            if connection.valid_until < deadline:
                deadline, overdue = connection.valid_until, _EXPIRED
            if connection.gone_at < deadline:
                deadline, overdue = connection.gone_at, _GONE
        if trio.current_time() >= deadline:
            return overdue
        tunnel.changed = trio.Event()
        with trio.move_on_at(deadline):
            await tunnel.changed.wait()
    return tunnel.ending
