"""Which instance holds the session that a client names."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping


class Affinity:
    """Remembers where each named session was last opened; the oldest are forgotten first.

    A session id may also say it by itself, as `ID.INSTANCE_ID` does: that needs no memory, and holds after
    a restart of the gateway and between several of them.
    """

    def __init__(self, max_sessions: int = 65_536) -> None:
        self.tell: Callable[[str, str], None] | None = None  #: hears of what was not known before
        self._max_sessions = max_sessions
        self._holders: OrderedDict[str, str] = OrderedDict()

    @property
    def known(self) -> Mapping[str, str]:
        """Instance ids by session id, the oldest first."""
        return self._holders

    def remember(self, session_id: str, instance_id: str) -> None:
        news = self._holders.get(session_id) != instance_id
        self.learn(session_id, instance_id)
        if news and self.tell is not None:
            self.tell(session_id, instance_id)

    def learn(self, session_id: str, instance_id: str) -> None:
        """Remembers what another gateway told."""
        self._holders[session_id] = instance_id
        self._holders.move_to_end(session_id)
        if len(self._holders) > self._max_sessions:
            self._holders.popitem(last=False)

    def holder(self, session_id: str) -> str | None:
        """The instance id, as far as it is known; it may be gone."""
        known = self._holders.get(session_id)
        if known is not None:
            return known
        _, dot, instance_id = session_id.rpartition(".")
        return instance_id if dot else None
