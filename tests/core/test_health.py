"""Verdicts over arbitrary sequences of checks; the rules are those of the module's docstring."""

from hypothesis import given
from hypothesis import strategies as st

from agentmgr.core.health import ProbeResult, Vitals, judge
from agentmgr.core.proof import proof
from agentmgr.models import HealthStatus, ServiceConfig

results = st.builds(ProbeResult, ok=st.booleans(), degraded=st.booleans())
configs = st.builds(
    ServiceConfig,
    agent_factory_path=st.just("agent.py"),
    unhealthy_threshold=st.integers(1, 5),
    recovery_threshold=st.floats(0, 60),
)
GAP_S = 20.0
tokens = st.binary(min_size=16, max_size=32).map(bytes.hex)


def watch(config, checks):
    """Verdicts over a list of (seconds since the one before, result)."""
    vitals, now = Vitals(), 0.0
    for pause, result in checks:
        now += pause
        vitals = judge(vitals, result, config, now=now, gap_s=GAP_S)
        yield vitals


checks = st.lists(st.tuples(st.floats(0, 100), results), max_size=40)


@given(configs, checks)
def test_the_verdict_depends_only_on_the_failures_in_a_row(config, checks):
    failures = 0
    for (_, result), vitals in zip(checks, watch(config, checks), strict=True):
        failures = 0 if result.ok else failures + 1
        if failures >= config.unhealthy_threshold:
            expected = HealthStatus.UNHEALTHY
        elif failures or result.degraded:
            expected = HealthStatus.DEGRADED
        else:
            expected = HealthStatus.HEALTHY
        assert vitals.status is expected


@given(configs, checks)
def test_one_success_clears_everything(config, checks):
    *_, vitals = watch(config, [*checks, (1.0, ProbeResult(True))])
    assert vitals.status is HealthStatus.HEALTHY
    assert (vitals.failures, vitals.unhealthy_for_s) == (0, 0)


@given(configs, checks)
def test_overdue_means_unhealthy_for_longer_than_the_threshold(config, checks):
    unhealthy_since = now = 0.0
    before = HealthStatus.UNKNOWN
    for (pause, _), vitals in zip(checks, watch(config, checks), strict=True):
        now += pause
        if vitals.status is HealthStatus.UNHEALTHY and before is not HealthStatus.UNHEALTHY:
            unhealthy_since = now
        if vitals.overdue(config):
            assert vitals.status is HealthStatus.UNHEALTHY
            assert now - unhealthy_since > config.recovery_threshold
        before = vitals.status


def test_time_that_nobody_watched_does_not_count():
    config = ServiceConfig(agent_factory_path="agent.py", unhealthy_threshold=1, recovery_threshold=30)
    failed = ProbeResult(False)
    *_, vitals = watch(config, [(0, failed), (3600, failed)])
    assert vitals.unhealthy_for_s == GAP_S
    assert not vitals.overdue(config)


def test_flapping_at_the_threshold_is_never_overdue():
    config = ServiceConfig(agent_factory_path="agent.py", unhealthy_threshold=3, recovery_threshold=0)
    flapping = [(10.0, ProbeResult(i % 3 == 2)) for i in range(300)]
    assert all(vitals.status is not HealthStatus.UNHEALTHY for vitals in watch(config, flapping))


@given(tokens, tokens, tokens)
def test_a_proof_is_good_for_one_token_and_one_challenge(token, other, challenge):
    assert (proof(token, challenge) == proof(other, challenge)) == (token == other)
