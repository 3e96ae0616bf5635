"""What a service allows its sessions."""

from __future__ import annotations

from attrs import frozen

from ..choices import OnDisconnect, WhenBusy


@frozen
class SessionLimits:
    """What a service allows its sessions. Durations in seconds, 0: no limit."""

    session_timeout: float = 1800.0  #: how long it stays when nobody is connected
    turn_timeout: float = 0.0
    confirm_timeout: float = 300.0
    on_disconnect: OnDisconnect = OnDisconnect.CONTINUE
    disconnect_grace: float = 0.0
    when_busy: WhenBusy = WhenBusy.QUEUE
    buffer_events: int = 4096
    buffer_bytes: int = 2**20
