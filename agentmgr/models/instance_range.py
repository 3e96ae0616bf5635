"""How many instances of a service are to run: a number, or a range within which its load decides."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

from attrs import Attribute, frozen

from .fields import invalid, rule

MOST_INSTANCES = 1000

_RANGE = re.compile(r"(0|[1-9][0-9]{0,3})\.\.([1-9][0-9]{0,3})")


@frozen
class InstanceRange:
    """A number n is the range from n to n."""

    least: int  #: 0: none while it has no clients
    most: int

    @property
    def is_fixed(self) -> bool:
        return self.least == self.most

    @property
    def least_awake(self) -> int:
        """How many run at least while any runs."""
        return max(1, self.least)


@cache
def instance_range(instances: int | str) -> InstanceRange:
    """Of the option `instances`, as `check_instances` has let it pass."""
    if isinstance(instances, int):
        return InstanceRange(instances, instances)
    least, _, most = instances.partition("..")
    return InstanceRange(int(least), int(most))


@rule(minimum=1, maximum=MOST_INSTANCES, pattern=f"^{_RANGE.pattern}$")
def check_instances(_: Any, attribute: Attribute[Any], value: int | str) -> None:
    needed = f"must be a number from 1 to {MOST_INSTANCES}, or a range such as 2..8 or 0..4"
    if isinstance(value, int):
        if not 1 <= value <= MOST_INSTANCES:
            none = "; `agentmgr stop` ends all" if value == 0 else ""
            raise invalid(attribute.name, f"{needed}, not {value}{none}")
        return
    found = _RANGE.fullmatch(value) if isinstance(value, str) else None
    if found is None:
        raise invalid(attribute.name, f"{needed}, not {value!r}")
    least, most = int(found[1]), int(found[2])
    if least > most or most > MOST_INSTANCES:
        problem = "its lower end comes first" if least > most else f"at most {MOST_INSTANCES}"
        raise invalid(attribute.name, f"{needed}, not {value!r}: {problem}")
