"""How many instances of a service are to run, where that is a range: as few as its load allows.

The rules:

* The load is what the instances have under way, connections or turns, and the clients that wait for a seat.
  `share` says which of the two counts, and how much of it one instance takes.
* Needed are so many instances that none has more than its share on average, within the range, and at least
  one: that none runs is decided elsewhere (`ServiceConfig.on_demand`).
* What is needed and not there is started at once.
* What is not needed ends when it was not needed for `DOWN_AFTER_S`, without a break. So a constant load is
  met once, and the number rests; a load that comes and goes faster than that keeps the number of its peaks.
* The instance that ends is the emptiest. It drains without a deadline, so no turn is cut.

An instance that was given up counts, until it ends as one that is not needed: what fails at its start is not
tried at one position after the other, unless clients wait.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

from attrs import frozen

from ..models import SERVING, Instance, ServiceConfig, ServiceStatus
from ..models.instance_range import InstanceRange

DOWN_AFTER_S = 120.0
"""Longer than a person pauses between two messages: a shorter lull is no reason to end an instance."""
TURNS = 4  #: under way per instance: of an agent, they wait for a model most of the time
_OF_MAX_SESSIONS = 0.7  #: a client that comes while another instance starts must find a seat

Unit = Literal["connections", "turns"]


@frozen
class Share:
    """How much load one instance is to have."""

    most: int
    unit: Unit


def share(config: ServiceConfig) -> Share:
    if config.sessions_per_instance is not None:
        return Share(config.sessions_per_instance, "connections")
    if config.max_sessions:
        return Share(max(1, int(_OF_MAX_SESSIONS * config.max_sessions)), "connections")
    return Share(TURNS, "turns")


@frozen
class Turns:
    """Those of one instance that have begun and not ended."""

    under_way: int
    asking: int = 0  #: of them, those that wait for a person's answer, and so are no work

    @property
    def at_work(self) -> int:
        return max(0, self.under_way - self.asking)


@frozen
class Load:
    """Of one service, at one time."""

    under_way: int  #: connections or turns, those of instances that drain included: they move to the others
    waiting: int = 0  #: clients without a seat

    def needs(self, share: Share, bounds: InstanceRange) -> int:
        needed = -(-(self.under_way + self.waiting) // share.most)
        return min(max(needed, bounds.least_awake), bounds.most)


@frozen
class Needs:
    """How many instances were needed lately, and until when."""

    seen: tuple[tuple[float, int], ...] = ()  #: times rise, numbers fall; the last one is needed now

    @classmethod
    def since(cls, now: float, count: int) -> Needs:
        """Of a service that is looked at for the first time: what runs was needed."""
        return cls(((now, count),))

    def with_need(self, now: float, needed: int) -> Needs:
        # What was needed last was needed until now: there was no look in between.
        seen = [*self.seen[:-1], (now, self.seen[-1][1])] if self.seen else []
        kept = [(at, count) for at, count in seen if count > needed and now - at < DOWN_AFTER_S]
        return Needs((*kept, (now, needed)))

    @property
    def most(self) -> int:
        return max((count for _, count in self.seen), default=0)


@frozen
class Step:
    """Another number of instances, and why."""

    count: int
    reason: str


def decide(
    bounds: InstanceRange, share: Share, load: Load, running: int, needs: Needs, now: float
) -> tuple[Needs, Step | None]:
    """What was needed, with this look added; and a change of the number of instances, if there is to be one.

    `running`: how many are to run at present. `now`: seconds of any clock that is not set.
    """
    needed = load.needs(share, bounds)
    needs = needs.with_need(now, needed)
    if needed > running:
        by_load = f"{_said(load, share)}, and one instance takes {share.most}"
        of_range = f"at least {bounds.least_awake} must run"
        return needs, Step(needed, of_range if needed == bounds.least_awake else by_load)
    if (enough := max(min(needs.most, bounds.most), bounds.least_awake)) < running:
        return needs, Step(enough, f"{_said(load, share)}; for {DOWN_AFTER_S:g} s no more were needed")
    return needs, None


def _said(load: Load, share: Share) -> str:
    unit = share.unit if load.under_way != 1 else share.unit.removesuffix("s")
    what = f"{load.under_way} {unit}" + (" under way" if share.unit == "turns" else "")
    if load.waiting:
        what += f", {load.waiting} {'client waits' if load.waiting == 1 else 'clients wait'}"
    return what


_ENDING = (ServiceStatus.DRAINING, ServiceStatus.STOPPING, ServiceStatus.STOPPED)


def counted(instances: Iterable[Instance]) -> tuple[Instance, ...]:
    """Those that are to run: all but the ones that end. In a rolling restart two are one."""
    at = {i.slot: i for i in instances if i.status not in _ENDING}
    return tuple(at[slot] for slot in sorted(at))


def wanted(config: ServiceConfig, instances: Iterable[Instance]) -> int:
    """How many of a service are to run now, with these that there are; of one that rests, after a start."""
    bounds = config.instance_range
    if bounds.is_fixed:
        return bounds.most
    return min(max(len(counted(instances)), bounds.least), bounds.most)


@frozen
class Standing:
    """One instance, as far as it matters for whether it may end."""

    instance: Instance
    connections: int
    turns: Turns | None = None  #: None: not known
    conversations: int | None = None  #: in its memory, as its last check has shown; None: not known


def surplus(config: ServiceConfig, standings: Sequence[Standing], count: int) -> list[str]:
    """The ids of up to `count` instances that may end, the emptiest first.

    What only an instance's memory has would be lost with it: it stays until it has no conversation.
    """
    if config.agent_factory_path and not config.keeps_sessions:
        standings = [
            one
            for one in standings
            if one.instance.status not in SERVING or (one.connections, one.conversations) == (0, 0)
        ]
    return [one.instance.instance_id for one in sorted(standings, key=_value)[:count]]


def _value(one: Standing) -> tuple[bool, int, int, int]:
    """Those that do not serve first, then those with the fewest turns, connections; then the latest slot."""
    serves = one.instance.status in SERVING
    return serves, one.turns.under_way if one.turns else 0, one.connections, -one.instance.slot
