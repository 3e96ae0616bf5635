"""What users may say of services and rules, over HTTP and in a declaration file; the rest is ours."""

from __future__ import annotations

import attrs
from attrs import frozen

from ..models import RoutingCondition, RoutingRule, RoutingStrategy, ServiceConfig


@frozen(kw_only=True)
class NewService(ServiceConfig):
    """A registration in one flat object: what it is called, and every field of its configuration."""

    name: str
    description: str = ""
    tags: frozenset[str] = frozenset()
    host: str = "localhost"
    port: int | None = None

    @property
    def config(self) -> ServiceConfig:
        names = [field.name for field in attrs.fields(ServiceConfig)]
        return ServiceConfig(**{name: getattr(self, name) for name in names})


@frozen(kw_only=True)
class Registration(NewService):
    auto_start: bool = False


@frozen(kw_only=True)
class NewRule:
    """What a client may say of a rule; the rest is ours."""

    name: str
    conditions: tuple[RoutingCondition, ...] = ()
    priority: int = 100
    target_services: tuple[str, ...] = ()
    target_tags: frozenset[str] = frozenset()
    match_all_tags: bool = False
    target_strategy: RoutingStrategy = RoutingStrategy.ROUND_ROBIN
    fallback_strategy: RoutingStrategy | None = None
    hash_key: str | None = None
    enabled: bool = True
    description: str = ""

    @property
    def rule(self) -> RoutingRule:
        return RoutingRule(**{field.name: getattr(self, field.name) for field in attrs.fields(NewRule)})
