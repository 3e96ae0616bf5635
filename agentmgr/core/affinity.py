"""Which instance holds the session that a client names."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from hashlib import blake2b


def named_instance(session_id: str) -> str | None:
    """The instance that a session id names by itself, as `ID.INSTANCE_ID` does; it may never have existed.

    Such an id needs no memory: it holds after a restart of the gateway, and between several of them.
    """
    _, dot, instance_id = session_id.rpartition(".")
    return instance_id if dot else None


class Affinity:
    """Remembers where each named session was last opened; the oldest are forgotten first.

    What is kept of a session id is a digest, since a client may choose one of many kilobytes. `on_news` is
    called with each new digest and its holder.
    """

    def __init__(
        self, max_sessions: int = 65_536, *, on_news: Callable[[str, str], None] | None = None
    ) -> None:
        self._on_news = on_news
        self._max_sessions = max_sessions
        self._holders: OrderedDict[str, str] = OrderedDict()

    @property
    def known(self) -> Mapping[str, str]:
        """Instance ids by the digest of the session id, the oldest first."""
        return self._holders

    def remember(self, session_id: str, instance_id: str) -> None:
        key = _digest(session_id)
        news = self._holders.get(key) != instance_id
        self.learn(key, instance_id)
        if news and self._on_news is not None:
            self._on_news(key, instance_id)

    def learn(self, key: str, instance_id: str) -> None:
        """Remembers what another gateway reported: the digest of a session id, and its holder."""
        self._holders[key] = instance_id
        self._holders.move_to_end(key)
        if len(self._holders) > self._max_sessions:
            self._holders.popitem(last=False)

    def holder(self, session_id: str) -> str | None:
        """The instance id, as far as it is known; it may be gone."""
        known = self._holders.get(_digest(session_id))
        return named_instance(session_id) if known is None else known


def _digest(session_id: str) -> str:
    """16 bytes in hex: chance does not make two alike, and 65,536 of them take 14 MiB with their holders."""
    return blake2b(session_id.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
