"""How long a worker that no manager answers may keep what a manager could give to others.

A worker whose process the manager can watch keeps its seats for as long as that lives. On another machine a
cut cable looks like a death, so there it holds its seats at limited instances by a lease:

* The worker asks for a renewal each second, and the manager answers at once. The lease lasts `LEASE_S` from
  when the last question that was answered was *asked*: an answer that was long on its way, in a socket's
  buffer perhaps, renews nothing that the manager does not know of.
* When it is over, the worker ends what it holds by it.
* The manager takes that for free `LEASE_S + MARGIN_S` after it could last answer, and not before. The margin
  is for the close frames of what the worker ends, and for clocks that do not run equally fast.

So nothing is held twice, whatever the network does with messages. A machine whose clock stands still
(a virtual one that is paused) is the exception.
"""

from __future__ import annotations

import math

LEASE_S = 30.0
MARGIN_S = 10.0


class Lease:
    """The worker's side. Times are of one monotonic clock, in seconds."""

    def __init__(self, duration_s: float) -> None:
        self._duration_s = duration_s
        self._asked: dict[int, float] = {}  # when, by number; none that is older than an answered one
        self._next = 0
        self.ends_at = -math.inf

    def ask(self, now: float) -> int:
        """The number of a question that is asked now."""
        number, self._next = self._next, self._next + 1
        self._asked[number] = now
        return number

    def answered(self, number: int) -> None:
        if (asked_at := self._asked.get(number)) is not None:
            self.ends_at = max(self.ends_at, asked_at + self._duration_s)
            self._asked = {later: at for later, at in self._asked.items() if later > number}

    def unlinked(self) -> None:
        """No question that was asked so far is answered any more."""
        self._asked.clear()
