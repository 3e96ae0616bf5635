"""Time zones, as this machine knows them."""

from __future__ import annotations

import os
from contextlib import suppress
from datetime import UTC, tzinfo
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from ..errors import FieldProblem, InvalidRequest

_LOCAL = "/etc/localtime"


def zone(name: str | None) -> tzinfo:
    """The zone of this name; without one, this machine's, which is UTC where it has none.

    Raises `InvalidRequest`.
    """
    if name is None:
        return _local()
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):  # OSError: the name of a directory
        known = f"is not known on this machine: {name!r}; it has to be as in Europe/Berlin"
        advice = f"{known} (a system without zones gets them by its package tzdata)"
        raise InvalidRequest(f"timezone {advice}", fields=[FieldProblem("timezone", advice)]) from None


def _local() -> tzinfo:
    named = os.environ.get("TZ", "").lstrip(":")
    with suppress(OSError):
        named = named or os.path.realpath(_LOCAL).rpartition("/zoneinfo/")[2]
    with suppress(ZoneInfoNotFoundError, ValueError, OSError):
        return ZoneInfo(named)
    with suppress(ValueError, OSError), open(_LOCAL, "rb") as file:
        return ZoneInfo.from_file(file)
    return UTC
