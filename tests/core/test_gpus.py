"""Which GPUs an instance uses: over restarts of the engine, which gives its claims other ids each time."""

from __future__ import annotations

import math
import random

from attrs import define
from hypothesis import given
from hypothesis import strategies as st

from agentmgr.core.gpus import Shares, hand_out, share_of


def test_an_instance_uses_what_is_reserved_for_it() -> None:
    claim = Shares(("2", "10"))
    assert hand_out(claim, [claim], []) == ("2", "10")


def test_what_another_instance_uses_is_replaced_by_what_that_ones_claim_holds() -> None:
    """Ray was started anew: the instance that uses 0 has its claim on 1 now, and the new one that on 0."""
    mine, others = Shares(("0",)), Shares(("1",))
    assert hand_out(mine, [mine, others], [Shares(("0",))]) == ("1",)


def test_where_the_other_one_has_no_claim_yet_it_waits() -> None:
    mine = Shares(("0",))
    assert hand_out(mine, [mine], [Shares(("0",))]) is None


def test_halves_share_one() -> None:
    half = Shares(("0",), share_of(0.5))
    assert hand_out(half, [half, half], [half]) == ("0",)
    assert hand_out(half, [half, half], [half, half]) is None


@define(eq=False)
class Running:
    gpus: float
    claim: Shares
    uses: tuple[str, ...] = ()


COUNT = 6


def reserve(draw: random.Random, gpus: float, claims: list[Shares]) -> Shares | None:
    """As an engine does that knows of claims only."""
    held = {str(n): sum(it.share for it in claims if str(n) in it.gpu_ids) for n in range(COUNT)}
    free = [it for it, amount in held.items() if amount + share_of(gpus) <= 1 + 1e-6]
    count = math.ceil(gpus)
    return Shares(tuple(draw.sample(free, count)), share_of(gpus)) if len(free) >= count else None


@given(
    st.lists(st.sampled_from(["start 1", "start 2", "start 3", "start", "end", "engine"]), max_size=40),
    st.sampled_from([0.25, 0.5, 1.0]),
    st.randoms(use_true_random=False),
)
def test_no_gpu_is_used_twice_and_whole_ones_never_run_out(
    history: list[str], part: float, draw: random.Random
) -> None:
    running: list[Running] = []
    for what in history:
        if what == "end" and running:
            running.remove(draw.choice(running))
        elif what == "engine":
            claims: list[Shares] = []
            for each in running:
                claim = reserve(draw, each.gpus, claims)
                if claim is None:  # fractions may fit less well than before: it goes on without one
                    claim = Shares(())
                each.claim = claim
                claims.append(claim)
        elif what.startswith("start"):
            gpus = float(what[6:] or part)
            claim = reserve(draw, gpus, [it.claim for it in running])
            if claim is None:
                continue
            held = [claim, *(it.claim for it in running)]
            used = [Shares(it.uses, share_of(it.gpus)) for it in running]
            found = hand_out(claim, held, used)
            if part == 1.0:
                assert found is not None
            if found is not None:
                assert len(found) == math.ceil(gpus)
                running.append(Running(gpus, claim, found))
        for n in range(COUNT):
            assert sum(share_of(it.gpus) for it in running if str(n) in it.uses) <= 1 + 1e-6
