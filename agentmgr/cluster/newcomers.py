"""Connections of which it is not known yet whose they are: strangers must not keep nodes out by their number.

There is room for so many at once. When one more comes, the address that has the most of them loses its oldest
one. So a node, which has one or two and is done in milliseconds, gets in through any flood that does not come
from thousands of addresses.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv6Address, ip_address

import trio
from attrs import define, field


class Newcomers:
    def __init__(self, most: int) -> None:
        self._most = most
        self._count = 0
        self._of: dict[str, dict[Newcomer, None]] = {}  # by network, the oldest one first

    @contextmanager
    def admitted(self, host: str) -> Iterator[Newcomer]:
        """A connection from there; what is done within ends when it has to make room (`Newcomer.ousted`)."""
        newcomer = Newcomer(_network(host))
        if self._count >= self._most:
            self._make_room()
        self._of.setdefault(newcomer.network, {})[newcomer] = None
        self._count += 1
        try:
            with newcomer.scope:
                yield newcomer
        finally:
            self._remove(newcomer)

    def _make_room(self) -> None:
        most = max(self._of.values(), key=len)
        oldest = next(iter(most))
        self._remove(oldest)
        oldest.ousted = True
        oldest.scope.cancel()

    def _remove(self, newcomer: Newcomer) -> None:
        """Also where it was removed already."""
        its = self._of.get(newcomer.network, {})
        if newcomer in its:
            del its[newcomer]
            self._count -= 1
            if not its:
                del self._of[newcomer.network]


@define(eq=False)
class Newcomer:
    network: str
    ousted: bool = False
    scope: trio.CancelScope = field(factory=trio.CancelScope)


def _network(host: str) -> str:
    """Whoever has one IPv6 address has 2^64 of them."""
    try:
        address = ip_address(host)
    except ValueError:
        return host
    return str(int(address) >> 64) if isinstance(address, IPv6Address) else host
