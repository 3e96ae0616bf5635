"""When a service that starts on demand is asleep, and when one that is awake may fall asleep.

The rules:

* Asleep: it should run, it starts on demand, and it has no instance. A service that was given up is not
  asleep: it needs an operator.
* It falls asleep after `idle_stop` seconds in which it had no connection, no turn and no open question, as a
  whole, whatever its number of instances. The gateways count its connections, its hosts know the rest. What
  a command does without a connection cannot be seen.
* It does not fall asleep while it starts, restarts or drains, nor while a service runs that starts `after`
  it.
* A host that does not say that it is at rest is busy.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from attrs import frozen

from ..models import SERVING, DesiredStatus, ServiceSpec, ServiceStatus

_AT_AN_END = frozenset({ServiceStatus.ERROR, ServiceStatus.STOPPED})


def is_asleep(spec: ServiceSpec, instances: Iterable[ServiceStatus]) -> bool:
    """`instances`: the status of each that it has."""
    return (
        spec.config.on_demand
        and spec.desired_status is DesiredStatus.RUNNING
        and all(status is ServiceStatus.STOPPED for status in instances)
    )


@frozen
class Use:
    """What is seen of the use of a service at one moment."""

    instances: tuple[ServiceStatus, ...]
    connections: int  #: of all its instances, those about to open included
    free_since: float  #: monotonic: when its last connection ended, or it was ready
    quiet_s: float = math.inf  #: for how long no host of it has had a turn or an open question
    needed: bool = False  #: another service that starts after it runs


def sleeps_at(use: Use, idle_stop_s: float, now: float) -> float:
    """The earliest moment at which it may fall asleep; at or before `now`: it may now.

    `math.inf`: not before the status of an instance changes. `now` is monotonic.
    """
    statuses = set(use.instances)
    if not statuses & SERVING or statuses - SERVING - _AT_AN_END:
        return math.inf
    if use.connections or use.needed or use.quiet_s <= 0:
        return now + idle_stop_s
    return max(use.free_since, now - use.quiet_s) + idle_stop_s
