"""How one of several candidates is chosen."""

from __future__ import annotations

import random
from collections import Counter

from attrs import frozen
from hypothesis import given
from hypothesis import strategies as st

from agentmgr.core.strategies import Rotation, choose
from agentmgr.models import RoutingStrategy as Strategy


@frozen
class One:
    instance_id: str
    weight: int = 1


ABC = [One("a"), One("b"), One("c")]


def pick(
    strategy: Strategy, candidates: list[One], *, rotation: Rotation | None = None, **more: object
) -> str:
    more.setdefault("live", {})
    more.setdefault("rand", random.Random(7).random)
    return choose(strategy, candidates, rotation=rotation or Rotation(), **more).instance_id  # type: ignore[arg-type]


def turns(
    rotation: Rotation, candidates: list[One], count: int, strategy: Strategy = Strategy.ROUND_ROBIN
) -> str:
    return "".join(pick(strategy, candidates, rotation=rotation) for _ in range(count))


def test_round_robin_takes_turns() -> None:
    assert turns(Rotation(), ABC, 7) == "abcabca"


def test_round_robin_is_smooth_with_weights() -> None:
    assert turns(Rotation(), [One("a", 5), One("b"), One("c")], 7) == "aabacaa"


def test_round_robin_does_not_flood_one_that_was_away() -> None:
    rotation = Rotation()
    turns(rotation, ABC[:2], 100)
    assert sorted(turns(rotation, ABC, 3)) == ["a", "b", "c"]


def test_a_rotation_forgets_those_that_are_gone() -> None:
    rotation = Rotation()
    turns(rotation, ABC, 2)
    rotation.forget_all_but({"a"})
    assert rotation._credit.keys() == {"a"}


@given(st.lists(st.integers(1, 50), min_size=1, max_size=8), st.integers(1, 4))
def test_round_robin_gives_everybody_exactly_their_share(weights: list[int], rounds: int) -> None:
    candidates = [One(str(i), weight) for i, weight in enumerate(weights)]
    rotation = Rotation()
    counts = Counter(
        pick(Strategy.ROUND_ROBIN, candidates, rotation=rotation) for _ in range(sum(weights) * rounds)
    )
    assert counts == {str(i): weight * rounds for i, weight in enumerate(weights)}


def test_least_connections_takes_the_least_loaded() -> None:
    assert pick(Strategy.LEAST_CONNECTIONS, ABC, live={"a": 2, "b": 1, "c": 2}) == "b"


def test_least_connections_counts_over_weight() -> None:
    assert pick(Strategy.LEAST_CONNECTIONS, [One("a", 10), One("b")], live={"a": 5, "b": 1}) == "a"
    assert pick(Strategy.LEAST_CONNECTIONS, [One("b"), One("a", 10)]) == "a"


def test_least_connections_is_random_among_equals() -> None:
    rand = random.Random(7).random
    assert {pick(Strategy.LEAST_CONNECTIONS, ABC, rand=rand) for _ in range(50)} == {"a", "b", "c"}


def test_weighted_random_follows_the_weights() -> None:
    rand = random.Random(7).random
    candidates = [One("a", 3), One("b", 1)]
    counts = Counter(pick(Strategy.WEIGHTED_RANDOM, candidates, rand=rand) for _ in range(4000))
    assert 2850 < counts["a"] < 3150


@given(st.lists(st.integers(1, 1000), min_size=1, max_size=9), st.floats(0, 1, exclude_max=True))
def test_weighted_random_always_chooses_somebody(weights: list[int], point: float) -> None:
    candidates = [One(str(i), weight) for i, weight in enumerate(weights)]
    assert pick(Strategy.WEIGHTED_RANDOM, candidates, rand=lambda: point) in {
        c.instance_id for c in candidates
    }


def test_manual_takes_the_first() -> None:
    assert turns(Rotation(), ABC, 3, Strategy.MANUAL) == "aaa"


def test_tag_based_takes_turns_among_those_with_the_tags() -> None:
    assert turns(Rotation(), ABC, 3, Strategy.TAG_BASED) == "abc"


def test_hashing_without_a_key_takes_turns() -> None:
    assert turns(Rotation(), ABC, 3, Strategy.HASH_BASED) == "abc"


@given(st.sets(st.integers(0, 10_000), min_size=2, max_size=12), st.text(), st.data())
def test_hashing_moves_only_the_share_of_the_one_that_left(
    ids: set[int], key: str, data: st.DataObject
) -> None:
    candidates = [One(f"ins_{i}") for i in sorted(ids)]
    before = pick(Strategy.HASH_BASED, candidates, key=key)
    gone = data.draw(st.sampled_from(candidates))
    if gone.instance_id != before:
        rest = [c for c in candidates if c is not gone]
        assert pick(Strategy.HASH_BASED, rest, key=key) == before


@given(st.permutations([One(f"ins_{i}", weight) for i, weight in enumerate((1, 1, 2, 3, 5))]), st.text())
def test_hashing_does_not_depend_on_the_order(candidates: list[One], key: str) -> None:
    assert pick(Strategy.HASH_BASED, candidates, key=key) == pick(
        Strategy.HASH_BASED, sorted(candidates, key=lambda c: c.instance_id), key=key
    )


def test_hashing_spreads_clients_by_weight() -> None:
    equal = Counter(pick(Strategy.HASH_BASED, ABC, key=f"10.0.{i % 250}.{i // 250}") for i in range(3000))
    assert all(900 < count < 1100 for count in equal.values())
    weighted = Counter(
        pick(Strategy.HASH_BASED, [One("a", 3), One("b", 1)], key=f"client {i}") for i in range(4000)
    )
    assert 2850 < weighted["a"] < 3150


def test_hashing_is_the_same_in_every_process() -> None:
    # Several gateways, and one after its restart, must agree; Python's string hashes would not.
    assert [pick(Strategy.HASH_BASED, ABC, key=f"10.0.0.{i}") for i in range(8)] == [*"bacacbbb"]


@given(st.sampled_from(Strategy), st.lists(st.integers(1, 9), min_size=1, max_size=5), st.randoms())
def test_warming_weights_are_taken_by_every_strategy(
    strategy: Strategy, weights: list[int], rand: random.Random
) -> None:
    candidates = [One(str(i), weight) for i, weight in enumerate(weights)]
    warming = {"0": 0.1}
    assert pick(strategy, candidates, rand=rand.random, key="k", weights=warming) in {
        c.instance_id for c in candidates
    }


def test_an_instance_that_is_being_warmed_in_gets_less() -> None:
    warming = {"a": 0.1}
    rotation = Rotation()
    chosen = [pick(Strategy.ROUND_ROBIN, ABC, rotation=rotation, weights=warming) for _ in range(21)]
    assert chosen.count("a") == 1
    live = {"b": 5, "c": 5}
    assert pick(Strategy.LEAST_CONNECTIONS, ABC, live=live, weights=warming) != "a"
