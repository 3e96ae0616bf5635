"""What a registration and its instances look like together."""

from typing import Any

from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from agentmgr.codec import from_plain
from agentmgr.core.routing import BackendState
from agentmgr.core.view import Backends, overall_health, overall_status, routing_table, service_view
from agentmgr.models import (
    DesiredStatus,
    HealthStatus,
    Instance,
    RestartMode,
    ServiceConfig,
    ServiceSpec,
    ServiceStatus,
)

SPEC = ServiceSpec(name="echo", config=ServiceConfig(command=("serve",), weight=3), tags={"a"})

instances = st.lists(
    st.builds(
        Instance,
        instance_id=st.uuids().map(str),
        service_id=st.just(SPEC.service_id),
        slot=st.integers(0, 9),
        status=st.sampled_from(ServiceStatus),
        health=st.sampled_from(HealthStatus),
        port=st.none() | st.integers(1, 65535),
        host=st.sampled_from(["localhost", "::1"]),
    ),
    max_size=4,
)


def test_without_instances_a_service_is_stopped_and_its_health_unknown() -> None:
    service = service_view(SPEC, (), 0)
    assert (service.status, service.health, service.endpoint) == ("stopped", "unknown", None)


@given(instances)
def test_a_service_that_serves_somewhere_is_running(found: list[Instance]) -> None:
    serves = any(i.status is ServiceStatus.RUNNING for i in found)
    assert (overall_status(found) is ServiceStatus.RUNNING) == serves


@given(instances)
def test_a_service_is_healthy_only_when_all_of_it_is(found: list[Instance]) -> None:
    all_well = bool(found) and all(i.health is HealthStatus.HEALTHY for i in found)
    assert (overall_health(found) is HealthStatus.HEALTHY) == all_well


@given(instances)
def test_the_endpoint_is_that_of_a_running_instance(found: list[Instance]) -> None:
    service = service_view(SPEC, found, 0)
    hosts = {"localhost": "localhost", "::1": "[::1]"}
    running = {
        f"ws://{hosts[i.host]}:{i.port}" for i in found if i.status is ServiceStatus.RUNNING and i.port
    }
    assert service.endpoint in running if running else service.endpoint is None


def test_an_instance_of_another_node_has_no_address_that_reaches_it() -> None:
    afar = Instance("ins_1", SPEC.service_id, 0, ServiceStatus.RUNNING, port=9, node_id="nod_1", node="b")
    here = Instance("ins_2", SPEC.service_id, 1, ServiceStatus.RUNNING, port=10, node="vm")
    assert service_view(SPEC, [afar], 0).endpoint is None
    assert service_view(SPEC, [afar, here], 0).endpoint == "ws://localhost:10"


@given(instances)
def test_the_gateway_learns_of_each_instance_and_may_use_the_running(found: list[Instance]) -> None:
    table = routing_table([SPEC], [], found)
    routable = {b.instance_id for b in table.backends if b.state is BackendState.ROUTABLE}
    assert routable == {i.instance_id for i in found if i.status is ServiceStatus.RUNNING}
    assert all((b.service_name, b.weight, b.tags) == ("echo", 3, {"a"}) for b in table.backends)
    assert len(table.backends) == len(found)


_SPECS = [
    SPEC,
    SPEC.changed(config=evolve(SPEC.config, weight=4)),
    SPEC.changed(config=evolve(SPEC.config, start="on-demand"), desired_status=DesiredStatus.RUNNING),
]
_moments = st.tuples(
    st.sampled_from(_SPECS),
    st.lists(st.sampled_from(["ins_1", "ins_2"]), unique=True),
    st.sampled_from([ServiceStatus.RUNNING, ServiceStatus.DRAINING]),
    st.sampled_from([1, 2]),
    st.sampled_from(["", "secret"]),
    st.sampled_from(["", "nod_1"]),
    st.booleans(),
)


@given(st.lists(_moments, min_size=2, max_size=5))
def test_a_table_is_the_same_whatever_was_made_for_the_tables_before(moments: list[Any]) -> None:
    backends = Backends()
    for spec, ids, status, port, token, node, is_falling_asleep in moments:
        found = [
            Instance(each, SPEC.service_id, 0, status, port=port, serves=True, node_id=node) for each in ids
        ]
        told: Any = {"falling_asleep": {SPEC.service_id} if is_falling_asleep else frozenset()}
        tokens = dict.fromkeys(ids, token)
        table = routing_table([spec], (), found, tokens, **told, backends=backends)
        assert table == routing_table([spec], (), found, tokens, **told)
        assert {each.node_id for each in table.backends if each.instance_id in ids} == (
            {node} if ids else set()
        )
        again = routing_table([spec], (), found, tokens, **told, backends=backends)
        assert all(one is other for one, other in zip(table.backends, again.backends, strict=True))


def test_the_gateway_may_use_what_was_seen_to_serve_and_waits_for_what_may_serve_yet() -> None:
    def state(status: ServiceStatus, serves: bool | None) -> BackendState:
        instance = Instance("ins_1", SPEC.service_id, 0, status, port=1, serves=serves)
        (backend,) = routing_table([SPEC], [], [instance]).backends
        has_endpoint = service_view(SPEC, [instance], 0).endpoint is not None
        assert has_endpoint == (backend.state is BackendState.ROUTABLE)
        return backend.state

    assert state(ServiceStatus.RUNNING, True) is BackendState.ROUTABLE
    assert state(ServiceStatus.RUNNING, None) is BackendState.COMING
    assert state(ServiceStatus.STARTING, None) is BackendState.COMING
    for status in (ServiceStatus.RUNNING, ServiceStatus.UNHEALTHY, ServiceStatus.BACKOFF):
        assert state(status, False) is BackendState.NO_LISTENER
    assert state(ServiceStatus.ERROR, False) is BackendState.DOWN
    assert state(ServiceStatus.DRAINING, False) is BackendState.DRAINING


@given(instances)
def test_what_was_unregistered_is_in_no_table(found: list[Instance]) -> None:
    assert routing_table([], [], found).backends == ()


def test_what_a_former_manager_started_keeps_its_sessions_before_it_has_answered_to_this_one() -> None:
    found = [
        Instance("ins_new", SPEC.service_id, 0, ServiceStatus.STARTING),
        Instance("ins_old", SPEC.service_id, 1, ServiceStatus.STARTING, adopted=True),
    ]
    states = {b.instance_id: b.state for b in routing_table([SPEC], [], found).backends}
    assert not states["ins_new"].keeps_sessions
    assert states["ins_old"].keeps_sessions
    assert states["ins_old"] is not BackendState.ROUTABLE


def test_a_registration_that_says_only_session_timeout_means_the_gateways_idle_limit_too() -> None:
    def limits(**plain: object) -> tuple[float, int]:
        document = {"name": "echo", "config": {"command": ["serve"], **plain}}
        spec = from_plain(document, ServiceSpec)  # as a database or file of the version before has it
        instance = Instance("ins_1", spec.service_id, 0, ServiceStatus.RUNNING, port=1)
        (backend,) = routing_table([spec], [], [instance]).backends
        return backend.idle_timeout, backend.max_sessions

    assert limits() == (1800.0, 0)
    assert limits(session_timeout=60, max_sessions=3) == (60, 3)
    assert limits(session_timeout=60, idle_timeout=5) == (5, 0)
    assert limits(session_timeout=60, idle_timeout=0, max_sessions=3, max_conversations=9) == (0, 3)


def test_a_service_that_speaks_http_or_needs_no_port_is_known_as_such() -> None:
    configs = {
        "web": ServiceConfig(command=("x",), ready="http:/"),
        "job": ServiceConfig(command=("x",), restart=RestartMode.NEVER),
        "nightly": ServiceConfig(command=("x",), schedule="0 3 * * *"),
        "worker": ServiceConfig(command=("x",), ready="started"),
        "server": ServiceConfig(command=("x",)),
        "once": ServiceConfig(agent_factory_path="a.py:a", restart=RestartMode.NEVER),
    }
    table = routing_table([ServiceSpec(name, config) for name, config in configs.items()], [], [])
    assert table.http_services == {"web"}
    assert table.portless_services == {"job", "nightly", "worker"}
    spec = ServiceSpec("web", configs["web"])
    up = Instance("i", spec.service_id, 0, ServiceStatus.RUNNING, host="localhost", port=9, serves=True)
    assert service_view(spec, [up], 0).endpoint == "http://localhost:9"
    assert service_view(spec, [evolve(up, node_id="nod_1")], 0).endpoint is None  # behind a gate
