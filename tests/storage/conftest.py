from datetime import UTC, datetime, timedelta

import pytest
from attrs import evolve

from agentmgr.models import (
    ConnectionEnd,
    HealthCheck,
    HealthStatus,
    InstanceRecord,
    RoutingRule,
    ServiceConfig,
    ServiceSpec,
)

NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)

INSTANCE = InstanceRecord(
    instance_id="inst_1",
    service_id="",
    slot=0,
    pid=4711,
    process_start=12,
    boot_id="boot",
    token="secret",
    host="localhost",
    port=8081,
    spec_version=1,
    started_at=NOON,
)
CHECK = HealthCheck("", "inst_1", HealthStatus.HEALTHY, checked_at=NOON, ok=True, latency_s=0.002)
SESSION_END = ConnectionEnd(
    connection_id="conn_1",
    service_id="",
    instance_id="inst_1",
    started_at=NOON,
    ended_at=NOON,
    ended_by="client",
    code=1000,
    reason="",
    bytes_from_client=10,
    bytes_to_client=20,
    messages_from_client=1,
    messages_to_client=2,
)


class Make:
    """Values with whatever the test does not care about filled in; `second` counts from noon."""

    noon = NOON

    @staticmethod
    def service(name: str = "weather", **changes) -> ServiceSpec:
        return ServiceSpec(name=name, config=ServiceConfig(agent_factory_path="agent.py"), **changes)

    @staticmethod
    def rule(name: str = "chinese", **changes) -> RoutingRule:
        return RoutingRule(name=name, **changes)

    @staticmethod
    def instance(service_id: str, instance_id: str = "inst_1", **changes) -> InstanceRecord:
        return evolve(INSTANCE, service_id=service_id, instance_id=instance_id, **changes)

    @staticmethod
    def check(service_id: str, second: float = 0, **changes) -> HealthCheck:
        at = NOON + timedelta(seconds=second)
        return evolve(CHECK, service_id=service_id, checked_at=at, **changes)

    @staticmethod
    def session_end(service_id: str, second: float = 0, *, lasted_s: float = 10, **changes) -> ConnectionEnd:
        end = NOON + timedelta(seconds=second)
        start = end - timedelta(seconds=lasted_s)
        return evolve(SESSION_END, service_id=service_id, started_at=start, ended_at=end, **changes)


@pytest.fixture(scope="session")
def make() -> type[Make]:
    return Make
