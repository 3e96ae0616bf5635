"""When a service that starts on demand is asleep, and when it may fall asleep."""

from __future__ import annotations

import math

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from agentmgr.core.on_demand import Use, is_asleep, sleeps_at
from agentmgr.core.routing import BackendState
from agentmgr.core.view import routing_table, service_view
from agentmgr.errors import InvalidRequest
from agentmgr.models import (
    DesiredStatus,
    Instance,
    RestartMode,
    ServiceConfig,
    ServiceSpec,
    ServiceStatus,
    StartMode,
)

S = ServiceStatus
SPEC = ServiceSpec(
    "echo",
    ServiceConfig("a.py", start=StartMode.ON_DEMAND, idle_stop=60, startup_timeout=25, max_sessions=3),
    desired_status=DesiredStatus.RUNNING,
)
IDLE = Use(instances=(S.RUNNING,), connections=0, free_since=1000)


@pytest.mark.parametrize(
    ("use", "now", "at"),
    [
        (IDLE, 1010, 1060),
        (IDLE, 1060, 1060),
        (evolve(IDLE, quiet_s=20), 1060, 1100),  # a turn went on after its client had left
        (evolve(IDLE, quiet_s=500), 1060, 1060),  # a client came and did nothing
        (evolve(IDLE, quiet_s=0), 1060, 1120),
        (evolve(IDLE, connections=1), 1060, 1120),
        (evolve(IDLE, needed=True), 1060, 1120),
        (evolve(IDLE, instances=(S.RUNNING, S.UNHEALTHY, S.ERROR)), 1060, 1060),
        (evolve(IDLE, instances=(S.RUNNING, S.BACKOFF)), 1060, math.inf),
        (evolve(IDLE, instances=(S.RUNNING, S.DRAINING)), 1060, math.inf),
        (evolve(IDLE, instances=(S.STARTING,)), 1060, math.inf),
        (evolve(IDLE, instances=(S.ERROR,)), 1060, math.inf),  # given up: it stays so
        (evolve(IDLE, instances=()), 1060, math.inf),
    ],
)
def test_it_falls_asleep_when_nothing_has_used_it_for_so_long(use: Use, now: float, at: float) -> None:
    assert sleeps_at(use, 60, now) == at


@given(st.floats(0, 1e6), st.floats(0, 1e6), st.floats(0.1, 1e6), st.integers(0, 2), st.booleans())
def test_it_never_falls_asleep_sooner(
    free_s: float, quiet_s: float, idle_stop_s: float, connections: int, needed: bool
) -> None:
    now = 1e7
    use = Use((S.RUNNING,), connections, now - free_s, quiet_s, needed)
    if sleeps_at(use, idle_stop_s, now) <= now:
        assert min(free_s, quiet_s) >= idle_stop_s * (1 - 1e-6)
        assert not connections
        assert not needed


def test_it_is_asleep_while_it_should_run_and_nothing_of_it_is_there() -> None:
    assert is_asleep(SPEC, [])
    assert is_asleep(SPEC, [S.STOPPED])  # a command that has ended well
    for status in set(ServiceStatus) - {S.STOPPED}:
        assert not is_asleep(SPEC, [S.STOPPED, status])
    assert not is_asleep(evolve(SPEC, desired_status=DesiredStatus.STOPPED), [])
    assert not is_asleep(evolve(SPEC, config=ServiceConfig("a.py")), [])


def test_one_that_is_asleep_is_as_it_should_be_and_does_not_alarm() -> None:
    service = service_view(SPEC, (), 0)
    assert (service.status, service.is_wanted, service.error_message) == ("asleep", False, None)
    assert service.is_offered
    service = service_view(evolve(SPEC, desired_status=DesiredStatus.STOPPED), (), 0)
    assert (service.status, service.is_offered) == ("stopped", False)


def test_the_gateway_has_one_backend_for_it_that_a_client_may_wait_for() -> None:
    (backend,) = routing_table([SPEC], (), ()).backends
    assert (backend.state, backend.instance_id) == (BackendState.ASLEEP, SPEC.service_id)
    assert (backend.starts_within, backend.max_sessions, backend.state.worth_waiting) == (25, 3, True)
    (backend,) = routing_table([SPEC], (), (), kept_ids={SPEC.service_id: "ins_1"}).backends
    assert backend.instance_id == "ins_1"  # by which its sessions find it
    instance = Instance("ins_1", SPEC.service_id, 0, S.RUNNING, port=1, serves=True)
    for status in (S.RUNNING, S.DRAINING, S.STOPPING, S.STOPPED):
        found = [evolve(instance, status=status)]
        (backend,) = routing_table([SPEC], (), found, falling_asleep={SPEC.service_id}).backends
        assert (backend.state, backend.instance_id) == (BackendState.ASLEEP, "ins_1")
    stopped = evolve(SPEC, desired_status=DesiredStatus.STOPPED)
    (backend,) = routing_table([stopped], (), [instance], falling_asleep={SPEC.service_id}).backends
    assert backend.state is BackendState.ROUTABLE  # a stop is under way, and wins


@pytest.mark.parametrize(
    "config",
    [
        {"command": ("job",), "schedule": "0 3 * * *"},
        {"command": ("job",), "restart": RestartMode.NEVER},
        {"command": ("serve",), "auto_restart": False},
        {"agent_factory_path": "a.py", "idle_stop": 0},
    ],
)
def test_what_no_client_starts_is_refused(config: dict[str, object]) -> None:
    with pytest.raises(InvalidRequest):
        ServiceSpec("echo", ServiceConfig(start=StartMode.ON_DEMAND, **config))  # type: ignore[arg-type]


def test_it_waits_five_minutes_where_nothing_else_is_said() -> None:
    config = ServiceConfig("a.py", start=StartMode.ON_DEMAND)
    assert (config.on_demand, config.idle_stop_s) == (True, 300)
    assert not ServiceConfig("a.py", idle_stop=5).on_demand
