"""What a cluster refuses of a registration, and what has no effect without one."""

from __future__ import annotations

import pytest

from agentmgr.core import cluster_fields
from agentmgr.core.placement import Candidate
from agentmgr.errors import InvalidRequest
from agentmgr.models import Instance, ServiceConfig, ServiceSpec, ServiceStatus
from agentmgr.models.nodes import NodeState, OnNodeLoss


def spec(port: int | None = None, **config: object) -> ServiceSpec:
    return ServiceSpec("svc", ServiceConfig(agent_factory_path="agent.py", **config), port=port)  # type: ignore[arg-type]


def test_what_is_at_its_default_has_no_remark() -> None:
    assert cluster_fields.ignored(spec().config) == ()


def test_without_a_cluster_a_remark_names_what_has_no_effect() -> None:
    (remark,) = cluster_fields.ignored(spec(place_on=["zone=b"]).config)
    assert remark == "place_on has no effect: this manager has no cluster (`--cluster`)"
    given = spec(gpus=0.5, resources=["licence=1"], on_node_loss=OnNodeLoss.WAIT)
    (remark,) = cluster_fields.ignored(given.config)
    assert remark.startswith("gpus, resources, on_node_loss have no effect")


@pytest.mark.parametrize("claim", [{"cpus": 2}, {"gpus": 1}, {"memory_mb": 9}, {"resources": ["licence=1"]}])
def test_joined_nodes_reserve_nothing(claim: dict[str, object]) -> None:
    with pytest.raises(InvalidRequest, match=r"cannot be reserved.*place_on") as caught:
        cluster_fields.check(spec(**claim), reserves=False)
    assert [field.path for field in caught.value.fields] == list(claim)


def test_a_fixed_port_is_on_one_node() -> None:
    cluster_fields.check(spec(9000, place_on=["node=vm-2", "zone=b"]), reserves=False)
    for several in ([], ["zone=b"], ["node=in(a,b)"], ["node=!a"]):
        with pytest.raises(InvalidRequest, match=r"port 9000 is fixed.*node=NAME, or leave the port out"):
            cluster_fields.check(spec(9000, place_on=several), reserves=False)


def test_labels_that_no_node_has_are_a_remark() -> None:
    nodes = [Candidate("", "head", NodeState.LINKED), Candidate("n1", "b", NodeState.LINKED, {"zone": "b"})]
    assert cluster_fields.unplaceable(spec(), nodes) == ()
    assert cluster_fields.unplaceable(spec(place_on=["zone=b"]), nodes) == ()
    lost = [Candidate("n1", "b", NodeState.LOST, {"zone": "b"})]
    assert cluster_fields.unplaceable(spec(place_on=["zone=b"]), lost) == (), (
        "its instances say that they wait"
    )
    (remark,) = cluster_fields.unplaceable(spec(place_on=["zone=c"]), nodes)
    assert remark.startswith("it waits for a node with zone=c: ")


@pytest.mark.parametrize("resources", [["licence"], ["licence=many"], ["=1"], ["a=1", "a=2"], ["a=-1"]])
def test_a_resource_is_a_name_and_an_amount(resources: list[str]) -> None:
    with pytest.raises(InvalidRequest, match="resources cannot be read"):
        spec(resources=resources)


def test_durable_sessions_on_several_nodes_are_remarked_on() -> None:
    agent = ServiceConfig("agent.py")
    instances = [
        Instance(f"ins_{n}", "svc", n, ServiceStatus.RUNNING, node=node) for n, node in enumerate("bcb")
    ]
    (remark,) = cluster_fields.scattered(ServiceSpec("a", agent), instances)
    assert "kept on b, c," in remark
    assert cluster_fields.scattered(ServiceSpec("a", agent), instances[::2]) == ()
    assert (
        cluster_fields.scattered(ServiceSpec("a", ServiceConfig("agent.py", sessions="memory")), instances)
        == ()
    )
    assert cluster_fields.scattered(ServiceSpec("a", ServiceConfig(command=("x",))), instances) == ()
    assert cluster_fields.scattered(ServiceSpec("a", agent), instances, "redis://h") == ()
    in_redis = ServiceConfig("agent.py", sessions="redis://h")
    assert cluster_fields.scattered(ServiceSpec("a", in_redis), instances) == ()
