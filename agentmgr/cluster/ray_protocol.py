"""The messages between a manager and its bridge to Ray, the process of `ray_bridge`: JSON lines.

The manager begins with `Begin`. The bridge answers `Connected` or `CannotConnect`. Then the manager asks for
all that it waits for (`Ask`, `Drop`), says `AllAsked`, and both speak as things happen. A bridge keeps
nothing: what it has to know is in Ray, or is said again to the next one.
"""

from __future__ import annotations

from collections.abc import Mapping
from json import dumps
from typing import get_args

from attrs import field, frozen

from ..codec import from_plain, parse_json, to_plain
from ..errors import InvalidRequest
from ..generation import Generation
from .engine import Claim, Machine

ALIVE_EVERY_S = 2.0  #: a bridge says at least so often that Ray answers

# What the manager says.


@frozen
class Begin:
    cluster_id: str
    ray_address: str  #: `auto`, or HOST:PORT of Ray's head
    manager_host: str  #: where nodes reach the manager; empty: at the address of its machine in Ray
    manager_port: int
    version: str  #: of agentmgr
    generation: Generation  #: of this manager


@frozen
class Ask:
    """For a claim."""

    claim_id: str
    number: int  #: of this ask; what is said of an earlier one for this id means nothing any more
    bundle: Mapping[str, float]  #: as Ray's placement groups have it; `memory` in bytes
    selector: Mapping[str, str]  #: of labels, the same
    prefer: str = ""  #: the engine id of the machine to try first


@frozen
class Drop:
    """Gives a claim back, or takes back what was asked; answered by `Dropped`."""

    claim_id: str


@frozen
class AllAsked:
    """Claims that are pending in Ray, and were not asked for by now, are of an earlier manager: drop them."""


@frozen
class Hold:
    """Exactly these machines are held."""

    engine_ids: tuple[str, ...]


@frozen
class Held:
    """Answers `Hold`, when it is so."""

    engine_ids: tuple[str, ...]


@frozen
class Invited:
    """Answers `WantsSecret`."""

    engine_id: str
    secret: str = field(repr=False)


@frozen
class Revive:
    """Starts the daemon on that machine again, if it has ended."""

    engine_id: str


# What the bridge says.


@frozen
class Connected:
    own: str  #: the engine id of the manager's own machine
    ray: str  #: its version
    alive: tuple[str, ...]  #: engine ids of all machines, also of those whose daemon is not up yet
    dead: Mapping[str, str]  #: those that Ray knows to be dead, and why
    claims: tuple[Claim, ...]


@frozen
class CannotConnect:
    reason: str


@frozen
class Alive:
    """Ray answers."""


@frozen
class Up:
    """A machine has a daemon of ours."""

    machine: Machine
    remarks: tuple[str, ...] = ()  #: what is not as it should be there, for the user


@frozen
class Unfit:
    """A machine is alive, and no daemon of ours could be started there."""

    engine_id: str
    address: str
    reason: str


@frozen
class Gone:
    engine_id: str
    reason: str


@frozen
class Obeys:
    """A node has a newer manager than this one."""

    node_id: str
    newer: Generation


@frozen
class WantsSecret:
    """The daemon of that machine needs a secret to join; answered by `Invited`."""

    engine_id: str


@frozen
class Given:
    """Answers `Ask`."""

    number: int
    claim: Claim


@frozen
class Pending:
    """`Ask` has to wait. Said again when it is for another reason."""

    number: int
    claim_id: str
    feasible: bool  #: some machine could have it, if less of it were in use


@frozen
class Refused:
    """Ray cannot express what `Ask` asks for."""

    number: int
    claim_id: str
    reason: str


@frozen
class Dropped:
    claim_id: str


@frozen
class Claims:
    """All that there are: one has gone, or has moved."""

    claims: tuple[Claim, ...]


Order = Begin | Ask | Drop | AllAsked | Hold | Invited | Revive
Report = (
    Connected
    | CannotConnect
    | Alive
    | Up
    | Unfit
    | Gone
    | Obeys
    | WantsSecret
    | Given
    | Pending
    | Refused
    | Dropped
    | Held
    | Claims
)

_ORDERS = {kind.__name__: kind for kind in get_args(Order)}
_REPORTS = {kind.__name__: kind for kind in get_args(Report)}


def encode(message: Order | Report) -> bytes:
    words = [type(message).__name__, to_plain(message)]
    return dumps(words, separators=(",", ":")).encode() + b"\n"


def decode_order(line: bytes) -> Order:
    """Raises `InvalidRequest`."""
    match parse_json(line):
        case [str(name), data] if name in _ORDERS:
            order: Order = from_plain(data, _ORDERS[name])
            return order
    raise InvalidRequest("a manager does not send this to its bridge to Ray")


def decode_report(line: bytes) -> Report:
    """Raises `InvalidRequest`."""
    match parse_json(line):
        case [str(name), data] if name in _REPORTS:
            report: Report = from_plain(data, _REPORTS[name])
            return report
    raise InvalidRequest("a bridge to Ray does not send this")
