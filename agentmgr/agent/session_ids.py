"""The ids of a host's sessions, and why a session that a client names is not there."""

from __future__ import annotations

import re
import secrets
from collections import OrderedDict

from .incoming import BadInput
from .limits import MAX_REMEMBERED_ENDS
from .session import Session

_OURS = re.compile(r"ses_[0-9a-f]{32,}(\.[\w:.-]+)?")
_MESSAGES = {
    "ended": "the session has ended",
    "expired": "the session expired: it had been without a connection for longer than its service allows",
    "instance_lost": "the session was lost with the instance that held it, which has ended or was restarted",
    "unknown": "there is no such session; it may have ended",
}
_REASON_OF_END = {"timeout": "expired", "restart": "instance_lost"}  #: any other is `ended`


def no_session(reason: str, message: str = "") -> BadInput:
    """`reason`: `ended`, `expired`, `instance_lost`, or `unknown`."""
    return BadInput("session_not_found", message or _MESSAGES[reason], reason=reason)


def how_it_ended(session: Session) -> str:
    return _REASON_OF_END.get(session.end_reason, "ended")


class SessionIds:
    """Makes ids, and remembers the latest of those whose sessions have ended.

    An id names the instance that holds the session: a gateway finds the way back without having to remember.
    It also has a mark of the process that made it. An instance keeps its id over its restarts, and its
    sessions do not live on.
    """

    def __init__(self, instance_id: str) -> None:
        self._end = secrets.token_hex(4) + (f".{instance_id}" if instance_id else "")
        self._ends: OrderedDict[str, tuple[str | None, str]] = OrderedDict()  # owner and reason

    def new(self) -> str:
        return f"ses_{secrets.token_hex(16)}{self._end}"

    def ended(self, session: Session) -> None:
        self._ends[session.id] = session.owner, how_it_ended(session)
        if len(self._ends) > MAX_REMEMBERED_ENDS:
            self._ends.popitem(last=False)

    def missing(self, session_id: str, owner: str | None) -> BadInput:
        """What to tell the client `owner` that names it; of another owner's session, nothing but this."""
        if session_id.endswith(self._end):
            its_owner, reason = self._ends.get(session_id, (owner, "unknown"))
            return no_session(reason if owner == its_owner else "unknown")
        return no_session("instance_lost" if _OURS.fullmatch(session_id) else "unknown")
