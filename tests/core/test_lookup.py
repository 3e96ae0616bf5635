"""What a user named is found the same way everywhere."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentmgr.core import lookup
from agentmgr.errors import RuleNotFound, ServiceNotFound
from agentmgr.models import RoutingRule, ServiceConfig, ServiceSpec

NOW = datetime(2031, 5, 7, tzinfo=UTC)


def _rule(number: int, priority: int, days: int) -> RoutingRule:
    at = NOW + timedelta(days=days)
    return RoutingRule(f"r{number}", priority=priority, rule_id=str(number), created_at=at)


rules = st.lists(
    st.builds(_rule, st.integers(0, 10**6), st.integers(-2, 2), st.integers(0, 3)),
    max_size=8,
    unique_by=lambda rule: rule.rule_id,
)


@given(rules)
def test_rules_are_tried_by_priority_and_age_however_they_came(found: list[RoutingRule]) -> None:
    ordered = lookup.in_order(found)
    assert lookup.in_order(reversed(found)) == ordered
    for one, following in pairwise(ordered):
        assert (one.priority, one.created_at) <= (following.priority, following.created_at)


def test_services_and_rules_are_found_by_name_and_by_id() -> None:
    spec = ServiceSpec(name="a", config=ServiceConfig(command=("x",)))
    rule = RoutingRule("a")
    assert lookup.service([spec], "a") is lookup.service([spec], spec.service_id) is spec
    assert lookup.rule([rule], "a") is lookup.rule([rule], rule.rule_id) is rule
    with pytest.raises(ServiceNotFound, match="'b'"):
        lookup.service([spec], "b")
    with pytest.raises(RuleNotFound, match="'b'"):
        lookup.rule([rule], "b")
