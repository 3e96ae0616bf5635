"""What a service allows its sessions."""

from __future__ import annotations

from attrs import frozen

from ..choices import OnDisconnect, WhenBusy

MAX_ID_CHARS = 256
"""Of a `session_id` or `step_id`: ours have 60 at most. 256 of them are remembered in each session."""
QUEUE_BYTES = 2**20
"""Messages of a session that run or wait, as their frames; a single one may be larger."""
HISTORY_BYTES = 2**20
"""Of a session's history, more than the context of a model; the oldest turns go first, the newest stays."""
STATE_BYTES = 2**20
"""Of `session.state` as it is shown to a client."""


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
