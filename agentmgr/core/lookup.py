"""Finding what a user named, and the order in which rules are tried: the same for every interface."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

from ..errors import RuleNotFound, ServiceNotFound
from ..models import RoutingRule, Service, ServiceSpec

S = TypeVar("S", Service, ServiceSpec)


def service(services: Iterable[S], ref: str) -> S:
    """The one with this id or name; raises `ServiceNotFound`."""
    for found in services:
        if ref in (found.service_id, found.name):
            return found
    raise ServiceNotFound(f"no service is called {ref!r}; `agentmgr list` shows those there are")


def rule(rules: Iterable[RoutingRule], ref: str) -> RoutingRule:
    """The one with this id or name; raises `RuleNotFound`."""
    for found in rules:
        if ref in (found.rule_id, found.name):
            return found
    raise RuleNotFound(f"no routing rule is called {ref!r}; `agentmgr routes list` shows those there are")


def in_order(rules: Iterable[RoutingRule]) -> tuple[RoutingRule, ...]:
    """As they are tried: by priority, then age."""
    return tuple(sorted(rules, key=lambda rule: (rule.priority, rule.created_at, rule.rule_id)))
