"""What is said once, and not again for a while: the same refusal of a stranger who tries again and again."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Hashable


class Repeats:
    def __init__(self, quiet_s: float = 60.0, most: int = 1000) -> None:
        """`most`: how many are remembered; further ones push out those that were asked about longest ago."""
        self._quiet_s, self._most = quiet_s, most
        self._said = OrderedDict[Hashable, float]()  # when

    def is_new(self, what: Hashable, now: float) -> bool:
        """Whether it was not said within the last `quiet_s`; then it counts as said now."""
        said = self._said.pop(what, -math.inf)
        is_new = now - said >= self._quiet_s
        self._said[what] = now if is_new else said
        if len(self._said) > self._most:
            self._said.popitem(last=False)
        return is_new
