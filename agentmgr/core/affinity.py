"""Which instance holds the session that a client names."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable, Mapping
from hashlib import blake2b

_OF_A_HOST = re.compile(
    r"ses_[0-9a-f]{32,}(?:\.(?=[n_])(?P<node>nod_[^\W_]+)?(?:_(?P<generation>[0-9]{1,9}))?)?\.ins_\w+"
)


def named_instance(session_id: str) -> str | None:
    """The instance that a session id names by itself, as `ID.INSTANCE_ID` does; it may never have existed.

    Such an id needs no memory: it holds after a restart of the gateway, and between several of them.
    """
    _, dot, instance_id = session_id.rpartition(".")
    return instance_id if dot else None


def named_node(session_id: str) -> str | None:
    """The node that a session id of a host names, as `ses_HEX.NODE_ID.INSTANCE_ID` does; "" is the manager's
    own machine. None: it is no such id.
    """
    return None if (found := named_place(session_id)) is None else found[0]


def named_place(session_id: str) -> tuple[str, int] | None:
    """The same with the generation of the journal there (`core.moves`), which follows the node where it is
    not 0: `ses_HEX.NODE_ID_2.INSTANCE_ID`, and `ses_HEX._2.INSTANCE_ID` on the manager's own machine.
    """
    found = _OF_A_HOST.fullmatch(session_id)
    return None if found is None else (found["node"] or "", int(found["generation"] or 0))


def place_named(node_id: str, generation: int) -> str:
    """What stands for both in an id."""
    return f"{node_id}_{generation}" if generation else node_id


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
        """Instance ids, or `INSTANCE_ID@NODE_ID`, by the digest of the session id, the oldest first."""
        return self._holders

    def remember(self, session_id: str, instance_id: str, node_id: str = "") -> None:
        key, holder = _digest(session_id), f"{instance_id}@{node_id}" if node_id else instance_id
        news = self._holders.get(key) != holder
        self.learn(key, holder)
        if news and self._on_news is not None:
            self._on_news(key, holder)

    def learn(self, key: str, holder: str) -> None:
        """Remembers what another gateway reported, as `known` has it."""
        self._holders[key] = holder
        self._holders.move_to_end(key)
        if len(self._holders) > self._max_sessions:
            self._holders.popitem(last=False)

    def holder(self, session_id: str) -> str | None:
        """The instance id, as far as it is known; it may be gone."""
        known = self._holders.get(_digest(session_id))
        return named_instance(session_id) if known is None else known.partition("@")[0]

    def node(self, session_id: str) -> str | None:
        """The id of the node that the holder was on, "" for the manager's own machine; None: not known."""
        known = self._holders.get(_digest(session_id))
        return named_node(session_id) if known is None else known.partition("@")[2]


def _digest(session_id: str) -> str:
    """16 bytes in hex: chance does not make two alike, and 65,536 of them take 14 MiB with their holders."""
    return blake2b(session_id.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
