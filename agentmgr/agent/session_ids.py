"""The ids of a host's sessions, and why a session that a client names is not there."""

from __future__ import annotations

import re
import secrets
from collections import OrderedDict

from ..core.affinity import named_instance, named_node, place_named
from ..protocol import EndReason, ErrorCode, LossReason
from .incoming import BadInput
from .limits import MAX_REMEMBERED_ENDS
from .message import Client
from .session import Session

_OURS = re.compile(r"ses_[0-9a-f]{32,}(\.[\w:.-]+)?")
_MESSAGES = {
    LossReason.ENDED: "the session has ended",
    LossReason.EXPIRED: "the session expired: it was without a connection for longer than the service allows",
    LossReason.INSTANCE_LOST: "the session was lost with its instance, which has ended or was restarted",
    LossReason.NODE_LOST: "the session was lost with its machine; a new one can be begun",
    LossReason.UNKNOWN: "there is no such session; it may have ended",
}
# Every other end is `ended`.
_REASON_OF_END = {EndReason.TIMEOUT: LossReason.EXPIRED, EndReason.RESTART: LossReason.INSTANCE_LOST}


def no_session(reason: LossReason, message: str = "") -> BadInput:
    return BadInput(ErrorCode.SESSION_NOT_FOUND, message or _MESSAGES[reason], reason=reason)


def elsewhere(instance_id: str) -> BadInput:
    return BadInput(
        ErrorCode.SESSION_ELSEWHERE,
        "another instance holds the session; connect again, and name it in the handshake",
        instance=instance_id,
    )


def how_it_ended(session: Session) -> LossReason:
    return _REASON_OF_END.get(session.end_reason or EndReason.RESTART, LossReason.ENDED)


class SessionIds:
    """Makes ids, and remembers the latest of those whose sessions have ended.

    An id names the instance that holds the session, and the node of its journal, if it is on one: a gateway
    finds the way back without having to remember.
    It also has a mark of the process that made it: an instance keeps its id over its restarts, and sessions
    that are in memory only do not live on.
    """

    def __init__(self, instance_id: str, node_id: str | None = "", generation: int = 0) -> None:
        """`generation`: of the journal on that node."""
        self._node_id = node_id
        place = ".".join(filter(None, (place_named(node_id or "", generation), instance_id)))
        self._end = secrets.token_hex(4) + (f".{place}" if place else "")
        self._ends: OrderedDict[str, tuple[str | None, LossReason]] = OrderedDict()  # owner and reason

    def new(self) -> str:
        return f"ses_{secrets.token_hex(16)}{self._end}"

    def ended(self, session: Session) -> None:
        self._ends[session.id] = session.owner, how_it_ended(session)
        if len(self._ends) > MAX_REMEMBERED_ENDS:
            self._ends.popitem(last=False)

    @staticmethod
    def may_be(session_id: str) -> bool:
        """Whether one of our instances can have made it."""
        return _OURS.fullmatch(session_id) is not None

    def missing(self, session_id: str, client: Client, *, durable: bool) -> BadInput:
        """What to tell the client that names it; of another owner's session, nothing but this.

        `durable`: a journal was asked too.
        """
        if session_id.endswith(self._end):
            its_owner, reason = self._ends.get(session_id, (client.identity, LossReason.UNKNOWN))
            return no_session(reason if client.identity == its_owner else LossReason.UNKNOWN)
        if self._node_id is not None and named_node(session_id) not in (None, self._node_id):
            if client.named_session == session_id:
                return no_session(LossReason.NODE_LOST)  # while that is known, a gateway leads none here
            # A gateway has not seen which session it is, and only a gateway knows of the machine.
            return elsewhere(named_instance(session_id) or "")
        lost = self.may_be(session_id) and not durable
        return no_session(LossReason.INSTANCE_LOST if lost else LossReason.UNKNOWN)
