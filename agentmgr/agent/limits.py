"""What a service allows its sessions, and what a host keeps for its clients at most, each with its reason.

Sizes are what a value takes in memory (`weigh`), in bytes.
"""

from __future__ import annotations

import math
import sys
from typing import Any

from attrs import fields, frozen

from ..models.fields import DAY_S
from ..models.host_config import HostConfig

# Of a host.
HOST_BYTES = 256 * 2**20
"""All that clients make it keep. An agent with its framework takes 100 to 200 MiB, so that an instance stays
below 512 MiB; and it is room for thousands of usual conversations, of some 50 KiB each."""
SESSION_BYTES = 16 * 1024
"""A session with nothing in it: its task, its scopes, the steps that it remembers."""
MAX_REMEMBERED_ENDS = 4096
"""Sessions that have ended and whose clients can still learn how; about 1 MiB of them."""

# Of a connection.
MAX_SESSIONS = 64
"""Programs use a few, an attacker would use all."""
MAX_CONTROL_BYTES = 64 * 1024
"""Answers outside any session that may wait; a client that reads none of them is not read from either."""
STATE_PAUSE_S = 0.1
"""Requests for state that come within it get one answer at its end: to encode one takes up to 50 ms."""

# Of a session.
MAX_ID_CHARS = 256
"""Of a `session_id` or `step_id`: ours have 60 at most."""
MAX_QUEUED = 16
"""Messages that may wait for the running turn; a person never has so many under way."""
QUEUE_BYTES = 2 * 2**20
"""Messages that run or wait, where text counts twice, as the message and as its content; a single one may be
larger."""
REMEMBERED_STEPS = 256
"""Messages remembered by their `step_id`, so that one sent twice around a reconnect is taken once."""
MAX_HISTORY = 1000
"""Entries of a history, two for each turn."""
HISTORY_BYTES = 2**20
"""More than the context of a model; the oldest turns go first, the newest stays."""
ENTRY_BYTES = 2**20
"""Of one message or answer in a history: 250,000 tokens and more."""
STREAM_BYTES = 8 * 2**20
"""Of what a turn streams, to be joined to its answer; no model says so much, but a turn may have no end."""
STATE_BYTES = 2**20
"""Of `session.state` as it is shown to a client."""
SHOWN_HISTORY_BYTES = 3 * 2**20
"""Of a history as it is shown to a client: all that is ours, but an author may put in more."""
JOURNAL_CHUNK_BYTES = 64 * 1024
"""Of a session's older events, read from the journal at once for one client. Four times as many would take as
long in all, and keep the first of them back for 9 ms more."""
MAX_JUMP = 10**9
"""By so much a client may be ahead of its session, which a host that could not write has lost a part of."""

MAX_CONFIRM_S = 30 * DAY_S
"""That a question waits because its client says so: as much as the option `confirm_timeout` may be."""


@frozen
class SessionLimits(HostConfig):
    """What a service allows its sessions, and how much of a session is kept for clients that come back."""

    buffer_events: int = 4096
    buffer_bytes: int = 2**20

    def patience(self, asked: Any) -> float:
        """How long a question waits: the service's `confirm_timeout`, and where its owner has set none, what
        the turn's message asks for.
        """
        unset = self.confirm_timeout == fields(HostConfig).confirm_timeout.default
        if unset and type(asked) in (int, float) and asked > 0:
            return float(min(asked, MAX_CONFIRM_S))
        return self.confirm_timeout


def weigh(value: Any, most: float = math.inf) -> int:
    """What a value of JSON's kinds takes in memory; it is not counted on when it is more than `most`.

    Not the length of its text: `[[],[],[]]` takes 20 times that.
    """
    size, pending = 0, [value]
    while pending:
        item = pending.pop()
        size += sys.getsizeof(item)
        if size > most:
            break
        if isinstance(item, dict):
            pending += item
            pending += item.values()
        elif isinstance(item, list | tuple):
            pending += item
    return size
