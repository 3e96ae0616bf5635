"""What is asked for an instance, in Ray's words: no Ray is needed for that."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentmgr.cluster.engine import Demand, Machine
from agentmgr.cluster.ray_demands import NODE_ID, bundle, described, selector
from agentmgr.errors import InvalidRequest
from agentmgr.models.nodes import selectors

B = Machine("e-b", "nod_b", "10.0.0.2", {"zone": "b", "ray.io/accelerator-type": "H100"})
C = Machine("e-c", "nod_c", "10.0.0.3", {"zone": "c"})


def test_a_bundle_has_what_is_asked_for_and_nothing_else() -> None:
    demand = Demand(cpus=2, gpus=0.5, memory_mb=3, resources={"licence": 1})
    assert bundle(demand) == {"CPU": 2, "GPU": 0.5, "memory": 3 * 2**20, "licence": 1}
    assert bundle(Demand(cpus=0.25)) == {"CPU": 0.25}


@pytest.mark.parametrize("gpus", [1.5, 2.25])
def test_several_gpus_are_whole_ones(gpus: float) -> None:
    with pytest.raises(InvalidRequest, match="whole number"):
        bundle(Demand(gpus=gpus))


def test_a_key_without_rays_prefix_means_rays_own_label_too() -> None:
    asked = Demand(place_on=("accelerator-type=H100", "zone=!c", "market-type=spot"))
    assert selector(asked, [B, C], []) == {
        "ray.io/accelerator-type": "in(H100)",
        "zone": "!in(c)",
        "ray.io/market-type": "in(spot)",  # no machine has it yet
    }
    plain = Machine("e", "nod_e", "10.0.0.9", {"accelerator-type": "H100"})
    assert selector(Demand(place_on=("accelerator-type=H100",)), [plain], []) == {
        "accelerator-type": "in(H100)"
    }


def test_nodes_are_named_to_ray_by_its_own_ids_of_now() -> None:
    assert selector(Demand(only_on=frozenset({"nod_b", "nod_c"})), [B, C], ["e-c"]) == {NODE_ID: "in(e-b)"}
    assert selector(Demand(not_on=frozenset({"nod_b"})), [B, C], ["e-x"]) == {NODE_ID: "!in(e-b,e-x)"}
    assert selector(Demand(only_on=frozenset({"nod_gone"})), [B, C], []) is None


values = st.sampled_from("abcd")
conditions = st.builds(
    lambda negated, some: f"zone={'!' if negated else ''}in({','.join(some)})",
    st.booleans(),
    st.lists(values, min_size=1, max_size=3),
)


@given(st.lists(conditions, min_size=1, max_size=4), values)
def test_several_conditions_on_a_label_become_one_that_allows_the_same(texts: list[str], value: str) -> None:
    allowed = all(each.matches({"zone": value}) for each in selectors(texts))
    try:
        one = selector(Demand(place_on=tuple(texts)), [], [])
    except InvalidRequest:
        assert not allowed
        return
    assert one is not None
    (merged,) = selectors([f"zone={one['zone']}"])
    assert merged.matches({"zone": value}) is allowed
    # A machine without the label matches refusals only.
    assert merged.matches({}) is all(each.matches({}) for each in selectors(texts))


def test_a_demand_reads_as_a_sentence_has_it() -> None:
    demand = Demand(gpus=1, cpus=4, memory_mb=512, resources={"licence": 1}, place_on=("zone=b",))
    assert described(demand) == "1 GPU, 4 CPUs, 512 MiB of memory and 1 licence (zone=b)"
