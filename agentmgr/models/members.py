"""The nodes of a cluster as the database has them and as interfaces show them, and the secrets to join it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from attrs import Attribute, Factory, evolve, field, frozen

from .fields import ID, invalid, new_id, rule, utc_now
from .nodes import NodeState

# A name is the value of the label `node`, which services are placed by.
_NODE_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?")


@rule(pattern=rf"^{_NODE_NAME.pattern}$")
def check_node_name(_: Any, attribute: Attribute[Any], value: str) -> None:
    if ID.fullmatch(value) or not _NODE_NAME.fullmatch(value):
        raise invalid(
            attribute.name,
            f"must be 1 to 63 letters, digits and '-_.', with a letter or digit at both ends, not {value!r}",
        )


def unique_name(wanted: str, taken: frozenset[str]) -> str:
    """`vm`, or `vm-2`, `vm-3`, … where that is taken. Anything becomes a valid name."""
    wanted = re.sub(r"[^A-Za-z0-9_.-]", "-", wanted)[:58].strip("_.-") or "node"
    if ID.fullmatch(wanted):
        wanted = f"node-{wanted}"
    names = (wanted, *(f"{wanted}-{number}" for number in range(2, len(taken) + 3)))
    return next(name for name in names if name not in taken)


@frozen
class NodeRecord:
    """A node that has joined, or the manager's own machine, whose id is empty."""

    node_id: str
    name: str = field(validator=check_node_name)  #: no other node's
    address: str = ""  #: where other nodes reach it
    labels: Mapping[str, str] = Factory(dict)  #: without `node`, which is its name
    resources: Mapping[str, float] = Factory(dict)
    key_digest: str = field(default="", repr=False)  #: SHA-256 of the public key that it joined with
    joined_at: datetime = Factory(utc_now)
    cordoned: bool = False  #: nothing new is placed there
    left_by: str = ""  #: the daemon (`Facts.daemon_id`) that had it drained: the next one lifts the cordon


@frozen
class JoinSecret:
    """What lets machines join. The secret itself is shown once and not stored."""

    digest: str = field(repr=False)  #: SHA-256 of it
    expires_at: datetime
    uses: int  #: how many machines it lets in
    used_by: tuple[str, ...] = ()  #: the names of those that it has let in
    secret_id: str = Factory(lambda: new_id("inv"))

    def refusal(self, now: datetime) -> str | None:
        """Why it lets no machine in any more."""
        if len(self.used_by) >= self.uses:
            once = "was used already" if self.uses == 1 else f"was used {self.uses} times already"
            return f"this secret {once}, by {', '.join(self.used_by)}"
        if now >= self.expires_at:
            return f"this secret has expired, at {self.expires_at:%Y-%m-%d %H:%M:%S} UTC"
        return None

    def used(self, name: str) -> JoinSecret:
        return evolve(self, used_by=(*self.used_by, name))


@frozen
class Node:
    """A node of a cluster, as interfaces show it."""

    node_id: str  #: empty: the manager's own machine
    name: str
    address: str
    state: NodeState
    reason: str  #: why it is in that state; empty where that says it all
    instances: int  #: that run there, as far as is known
    sessions: int  #: connections through the gateways to these
    cpu_percent: float | None  #: that they use, in percent of one core; None: not known
    memory_bytes: int | None  #: that they use; None: not known
    labels: Mapping[str, str]
    resources: Mapping[str, float]
    joined_at: datetime
    cordoned: bool
    agentmgr: str = ""  #: the version of its daemon
    python: str = ""
    clock_skew_s: float | None = None  #: its clock less the manager's
    troubles: tuple[str, ...] = ()
    claimed: Mapping[str, float] = Factory(dict)  #: of its resources: what is reserved for our instances


@frozen
class StaysThere:
    """An instance that a drain of its node has left there, which runs on."""

    service: str
    instance_id: str
    slot: int  #: its position among the instances of its service
    reason: str  #: why, for the user


@frozen
class DrainedNode:
    """What a drain of a node has done."""

    node: str
    moved: int  #: instances that ran there and do not any more
    left: tuple[StaysThere, ...]  #: what runs there still
    sessions_left: tuple[str, ...] = ()
    """Which sessions are there still of services that are not, and why, for the user. Where both are empty
    the machine may go."""


@frozen
class Invitation:
    """A join secret, as it is shown once."""

    secret: str = field(repr=False)
    expires_at: datetime
    uses: int
    host: str  #: where the manager is joined: `agentmgr node --join HOST:PORT`
    port: int
