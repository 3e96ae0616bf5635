"""How one of several suitable instances is chosen.

Every strategy is a function of what it is given: the instances that can take the client now (never none),
the open connections of each, a source of randomness, whose turn it was. It looks nothing up by itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import lru_cache
from hashlib import blake2b
from typing import Protocol, TypeVar

from ..models import RoutingStrategy

Rand = Callable[[], float]  #: a random number from 0 up to 1, as `random.random`


class Candidate(Protocol):
    @property
    def instance_id(self) -> str: ...
    @property
    def weight(self) -> float: ...


C = TypeVar("C", bound=Candidate)

_NONE: Mapping[str, float] = {}
_64_BITS = 2**64 - 1


class Rotation:
    """Whose turn it is: smooth weighted round robin, as in nginx (`ngx_http_upstream_round_robin.c`).

    In each turn every backend earns its weight; the richest is chosen and pays the turn's total. Weights 5,
    1, 1 make a a b a c a a. A backend that cannot take a client for a while neither earns nor pays, so it is
    not flooded when it is back.
    """

    def __init__(self) -> None:
        self._credit: dict[str, float] = {}

    def next(self, candidates: Sequence[C], weights: Mapping[str, float] = _NONE) -> C:
        credit = self._credit
        best, most, total = candidates[0], -math.inf, 0.0
        for candidate in candidates:
            name = candidate.instance_id
            weight = weights.get(name, candidate.weight) if weights else candidate.weight
            total += weight
            have = credit[name] = credit.get(name, 0.0) + weight
            if have > most:
                best, most = candidate, have
        credit[best.instance_id] -= total
        return best

    def forget_all_but(self, instance_ids: Collection[str]) -> None:
        for gone in self._credit.keys() - instance_ids:
            del self._credit[gone]


def choose(
    strategy: RoutingStrategy,
    candidates: Sequence[C],
    *,
    live: Mapping[str, int],
    rotation: Rotation,
    rand: Rand,
    key: str | None = None,
    weights: Mapping[str, float] = _NONE,
) -> C:
    """One of the candidates, of which there must be one at least.

    `live` counts connections by instance id. `key` is what `hash_based` goes by; without one it takes turns.
    `weights` overrides those of the instances that are being warmed in; `hash_based` does not look at it,
    because a client would be sent away from its instance for that while only.
    """
    match strategy:
        case RoutingStrategy.MANUAL:
            return candidates[0]
        case RoutingStrategy.LEAST_CONNECTIONS:
            return _least_loaded(candidates, live, rand, weights)
        case RoutingStrategy.WEIGHTED_RANDOM:
            return _weighted_random(candidates, rand, weights)
        case RoutingStrategy.HASH_BASED if key is not None:
            return _rendezvous(candidates, key)
        case _:  # tag_based too: its tags have chosen the candidates already
            return rotation.next(candidates, weights)


def _least_loaded(
    candidates: Sequence[C], live: Mapping[str, int], rand: Rand, weights: Mapping[str, float]
) -> C:
    least, equals = math.inf, list(candidates[:1])
    for candidate in candidates:
        name = candidate.instance_id
        # The connection to come is counted too: else all idle instances are equal, whatever their weight.
        load = (live.get(name, 0) + 1) / weights.get(name, candidate.weight)
        if load < least:
            least, equals = load, [candidate]
        elif load == least:
            equals.append(candidate)
    return equals[int(rand() * len(equals))]


def _weighted_random(candidates: Sequence[C], rand: Rand, weights: Mapping[str, float]) -> C:
    shares = [weights.get(candidate.instance_id, candidate.weight) for candidate in candidates]
    point = rand() * sum(shares)
    for candidate, share in zip(candidates, shares, strict=True):
        point -= share
        if point < 0:
            return candidate
    return candidates[-1]


def _rendezvous(candidates: Sequence[C], key: str) -> C:
    """Highest random weight (Thaler and Ravishankar, 1998): adding or removing one moves only its share."""
    client, weight = _digest(key), candidates[0].weight
    best, most = candidates[0], -1
    for candidate in candidates:
        if candidate.weight != weight:
            return max(candidates, key=lambda candidate: _score(client, candidate))
        # With equal weights the scores have the order of these, without a logarithm for each.
        mixed = client * _multiplier(candidate.instance_id) & _64_BITS
        if mixed > most:
            best, most = candidate, mixed
    return best


def _score(client: int, candidate: Candidate) -> float:
    mixed = client * _multiplier(candidate.instance_id) & _64_BITS
    return -candidate.weight / math.log((mixed + 0.5) / 2**64)


@lru_cache(maxsize=16_384)
def _multiplier(instance_id: str) -> int:
    # Multiply-shift hashing (Dietzfelbinger et al., 1997): a random odd multiplier for each instance. Both
    # digests are uniform already; hashing each pair anew would take ten times as long.
    return _digest(instance_id) | 1


def _digest(text: str) -> int:
    return int.from_bytes(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")
