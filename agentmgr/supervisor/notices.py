"""What a command reports by sd_notify(3): that it is ready, that it is alive, and a status text.

Each launch has a socket of its own, in `NOTIFY_SOCKET`. Its name follows from the instance's token, so that
the next manager can open it again for an instance that it adopts. While no manager runs, a message is
refused, as it is without systemd; a sender has to cope with that (sd_notify(3) says so).
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from hashlib import sha256

import trio

from ..process.peer import UCRED

_MESSAGE_BYTES = 4096
_SAID_LENGTH = 200
_AT_ONCE = 100  #: messages; a sender that never pauses must not hold up others


class Notices:
    """Receives them while `listen` runs."""

    def __init__(self, token: str) -> None:
        """Raises OSError."""
        self.ready = trio.Event()
        self.said: str | None = None
        self.watchdog = False  #: it has sent WATCHDOG=1 at least once
        self._alive_at = trio.current_time()
        self._rhythm_s = 0.0  #: between its last two WATCHDOG=1
        self._triggered = False
        self._is_ours: Callable[[int], bool] = lambda pid: False
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)  # the kernel names the sender
            # Abstract: no path to be too long, and nothing to clear away after a crash.
            sock.bind("\0" + _name(token))
        except OSError:
            sock.close()
            raise
        self._socket = sock

    async def listen(self, is_ours: Callable[[int], bool]) -> None:
        """Receives messages until cancelled. A sender blocks when they are not read.

        `is_ours`: whether a process belongs to the instance.
        """
        self._is_ours = is_ours
        while True:
            await trio.lowlevel.wait_readable(self._socket)
            self._receive()

    def _receive(self) -> None:
        """Takes what has come."""
        for _ in range(_AT_ONCE):
            try:
                # No room for descriptors that a sender attaches: the kernel drops them.
                message, ancillary, *_ = self._socket.recvmsg(_MESSAGE_BYTES, socket.CMSG_SPACE(UCRED.size))
            except BlockingIOError:
                return
            for level, kind, data in ancillary:
                if (level, kind) == (socket.SOL_SOCKET, socket.SCM_CREDENTIALS):
                    pid, uid, _ = UCRED.unpack(data)
                    # A helper such as systemd-notify is often gone before it can be looked at.
                    if uid == os.geteuid() or self._is_ours(pid):
                        self._take(message)

    def _take(self, message: bytes) -> None:
        for line in message.decode(errors="replace").splitlines():
            name, _, value = line.partition("=")
            if (name, value) == ("READY", "1"):
                self.ready.set()
            elif (name, value) == ("WATCHDOG", "1"):
                now = trio.current_time()
                if self.watchdog:
                    self._rhythm_s = now - self._alive_at
                self.watchdog, self._triggered, self._alive_at = True, False, now
            elif (name, value) == ("WATCHDOG", "trigger"):
                self._triggered = True
            elif name == "STATUS":
                self.said = "".join(c for c in value if c.isprintable())[:_SAID_LENGTH] or None

    def expect_watchdog(self) -> None:
        """WATCHDOG=1 is due from now on: a service need not send it before it is ready."""
        self._alive_at = trio.current_time()

    def silence(self, within_s: float) -> str | None:
        """What is wrong with its watchdog; None: the last WATCHDOG=1 is recent.

        Recent means within `within_s`, or within three times the rhythm in which the service itself sends it:
        a service that got no `WATCHDOG_USEC` chooses its own.
        """
        self._receive()  # it may have spoken while this process was held up
        if self._triggered:
            return "it reported its own failure (WATCHDOG=trigger)"
        silent_s = trio.current_time() - self._alive_at
        if silent_s <= max(within_s, 3 * self._rhythm_s):
            return None
        return f"no WATCHDOG=1 for {silent_s:.1f} s"

    def close(self) -> None:
        trio.lowlevel.notify_closing(self._socket)
        self._socket.close()


def notify_address(token: str) -> str:
    """The value of `NOTIFY_SOCKET`; an abstract socket is written with an @."""
    return "@" + _name(token)


def _name(token: str) -> str:
    return f"agentmgr-notify-{sha256(token.encode()).hexdigest()[:32]}"
