"""What a value takes in memory."""

from __future__ import annotations

import math
import sys
from typing import Any


def weigh(value: Any, most: float = math.inf) -> int:
    """What a value of JSON's kinds takes in memory; it is not counted on when it is more than `most`.

    Not the length of its text: `[[],[],[]]` takes 20 times that.
    """
    size, pending = 0, [value]
    while pending:
        item = pending.pop()
        size += sys.getsizeof(item)
        if size > most:
            break
        if isinstance(item, dict):
            pending += item
            pending += item.values()
        elif isinstance(item, list | tuple):
            pending += item
    return size
