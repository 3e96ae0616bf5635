"""How long one waits that tries again and again."""

from __future__ import annotations


class Patience:
    """Doubles with each wait in vain, up to a bound.

    Whoever is waited for may be slow, and not gone: as a manager with little of a core, to which hundreds of
    machines dial at once. With the same patience each time it would do most of its work for peers that have
    given up, and they would all dial anew, for ever.
    """

    def __init__(self, first_s: float, longest_s: float) -> None:
        self._first_s, self._longest_s = first_s, longest_s
        self.seconds = first_s

    def learn(self, *, in_vain: bool) -> None:
        """Of one wait."""
        self.seconds = min(2 * self.seconds, self._longest_s) if in_vain else self._first_s
