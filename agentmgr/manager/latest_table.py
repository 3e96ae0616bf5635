"""The latest routing table, as the gateway workers get it: what has changed for each, encoded once."""

from __future__ import annotations

from attrs import evolve

from ..core.routing import RoutingTable
from ..core.table_change import TableChange
from ..models import Token, TokenPolicy
from ..worker import protocol
from .gateway_access import GatewayAccess


class LatestTable:
    def __init__(self, access: GatewayAccess) -> None:
        self.version = 0
        self._access = access
        self._table = RoutingTable()
        self._whole_since = 0  # the version since which backends only have changed
        self._known: tuple[object, ...] = ()  # all but the backends
        self._lines: dict[int, bytes] = {}  # by the version that a worker has; 0: none

    def put(self, table: RoutingTable) -> None:
        self.version += 1
        self._table, self._lines = table, {}
        known = (evolve(table, backends=()), *self._who_may_connect())
        if known != self._known:
            self._known, self._whole_since = known, self.version

    def after(self, version: int, table: RoutingTable) -> tuple[bytes, RoutingTable]:
        """The line for a worker that has this version, which is `table`; and the table that it has then."""
        since = version if version >= self._whole_since else 0
        if (line := self._lines.get(since)) is None:
            line = self._lines[since] = protocol.encode(self._order(since, table))
        return line, self._table

    def _order(self, since: int, table: RoutingTable) -> protocol.Table | protocol.Changes:
        change = TableChange.between(table, self._table) if since else None
        if change is not None:
            return protocol.Changes(since, self.version, change)
        return protocol.Table(self.version, self._table, *self._who_may_connect())

    def _who_may_connect(self) -> tuple[tuple[Token, ...], TokenPolicy, frozenset[str]]:
        tokens = self._access.tokens
        return tokens.all(), tokens.policy, frozenset(tokens.left_open)
