"""What a command in the foreground hears of, and tells, who started it: stop signals, and systemd."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio
from attrs import Factory, frozen

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@frozen
class StopSignals:
    """Set by the first, second and third SIGINT (Ctrl-C), SIGTERM or SIGHUP (a closed terminal)."""

    first: trio.Event = Factory(trio.Event)
    second: trio.Event = Factory(trio.Event)
    third: trio.Event = Factory(trio.Event)

    def received(self) -> None:
        for event in (self.first, self.second, self.third):
            if not event.is_set():
                event.set()
                break


@asynccontextmanager
async def stop_signals() -> AsyncIterator[StopSignals]:
    """Receives the signals that stop this process, and reports each.

    The receiver stays open while the block winds up: without it, a second signal would kill the clean-up.
    """
    stop = StopSignals()
    # What the receiver puts back at its end: a second signal must not kill the interpreter's own end either.
    before = {number: signal.signal(number, signal.SIG_IGN) for number in _SIGNALS}
    try:
        with trio.open_signal_receiver(*_SIGNALS) as received:
            async with trio.open_nursery() as nursery:

                async def listen() -> None:
                    async for _ in received:
                        stop.received()

                nursery.start_soon(listen)
                yield stop
                nursery.cancel_scope.cancel()
    finally:
        if not stop.first.is_set():
            for number, handler in before.items():
                signal.signal(number, handler)


class Notifier:
    """Reports to systemd that this process is ready, alive or stopping (sd_notify(3)), if it asks for it."""

    def __init__(self) -> None:
        # Taken out of the environment: it is for this process, not for the services.
        self._address = os.environ.pop("NOTIFY_SOCKET", "")
        watchdog_us = os.environ.pop("WATCHDOG_USEC", "")
        self._watchdog_s = int(watchdog_us) / 1e6 if watchdog_us.isdigit() else None

    def send(self, state: str) -> None:
        """Sends a state such as `READY=1`. It is no error when nothing listens."""
        if not self._address:
            return
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
            try:
                sock.sendto(state.encode(), address)
            except OSError:
                return

    async def keep_alive(self) -> None:
        """Says twice in each watchdog interval that the event loop turns; until cancelled."""
        if self._watchdog_s is None:
            return
        while True:
            self.send("WATCHDOG=1")
            await trio.sleep(self._watchdog_s / 2)
