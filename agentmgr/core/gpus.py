"""Which GPUs an instance may use, of those that claims hold on its node.

A claim says which GPUs its engine has reserved. That need not be what the instances use: when the engine was
stopped and started anew, all claims are made again while the instances live on, and the engine, which knows
nothing of them, may give each other ids. So a new instance gets

1. those of its own claim, as far as no other instance of ours uses them;
2. else others that our claims hold and no instance of ours uses.

Where each instance that lives has a claim, and GPUs are claimed whole, there are always enough: claims hold
as many as instances use. Where one has not got its claim back yet, there may be too few, and a new one waits.

A GPU can be shared: a claim for half of one has a share of 0.5 of it.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping

from attrs import frozen

_TINY = 1e-6  #: sums of fractions are not exact


@frozen
class Shares:
    """Of some GPUs, by their ids: the same part of each."""

    gpu_ids: tuple[str, ...]
    share: float = 1.0


def share_of(gpus: float) -> float:
    """The part of each of its GPUs that a claim for so many has."""
    return gpus / math.ceil(gpus) if gpus else 0.0


def hand_out(claim: Shares, held: Iterable[Shares], used: Iterable[Shares]) -> tuple[str, ...] | None:
    """As many GPUs as `claim` has; None: some instance still uses them.

    `held`: by all our claims on that node, also by this one; `used`: by the other instances there.
    """
    taken, reserved = _summed(used), _summed(held)
    own = [it for it in claim.gpu_ids if taken[it] + claim.share <= 1 + _TINY]
    others = [
        it
        for it in sorted(reserved, key=_in_order)
        if it not in claim.gpu_ids and reserved[it] - taken[it] + _TINY >= claim.share
    ]
    found = (own + others)[: len(claim.gpu_ids)]
    return tuple(sorted(found, key=_in_order)) if len(found) == len(claim.gpu_ids) else None


def _summed(shares: Iterable[Shares]) -> Mapping[str, float]:
    found = defaultdict[str, float](float)
    for each in shares:
        for gpu_id in each.gpu_ids:
            found[gpu_id] += each.share
    return found


def _in_order(gpu_id: str) -> tuple[int, str]:
    """2 before 10."""
    return len(gpu_id), gpu_id
