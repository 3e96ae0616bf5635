"""Telling systemd how the manager is (sd_notify(3)): ready, alive, stopping."""

from __future__ import annotations

import os
import socket

import trio


class Notifier:
    """Sends to the socket that `NOTIFY_SOCKET` names, if it names one."""

    def __init__(self) -> None:
        # Taken out of the environment: it is for this process, not for the services.
        self._address = os.environ.pop("NOTIFY_SOCKET", "")
        watchdog_us = os.environ.pop("WATCHDOG_USEC", "")
        self._watchdog_s = int(watchdog_us) / 1e6 if watchdog_us.isdigit() else None

    def tell(self, state: str) -> None:
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
            self.tell("WATCHDOG=1")
            await trio.sleep(self._watchdog_s / 2)
