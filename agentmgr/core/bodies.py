"""What users may say of services and rules, over HTTP and in a declaration file; the rest is ours."""

from __future__ import annotations

from typing import Any

import attrs
from attrs import frozen

from ..codec import to_plain
from ..models import RoutingCondition, RoutingRule, RoutingStrategy, Service, ServiceConfig, ServiceSpec
from ..models.fields import as_in

#: What a service has besides its configuration.
OWN_FIELDS = ("name", "description", "tags", "host", "port")


@frozen(kw_only=True)
class NewService(ServiceConfig):
    """A registration in one flat object: what it is called, and every field of its configuration."""

    name: str = as_in(ServiceSpec, "name")
    description: str = as_in(ServiceSpec, "description")
    tags: frozenset[str] = as_in(ServiceSpec, "tags")
    host: str = as_in(ServiceSpec, "host")
    port: int | None = as_in(ServiceSpec, "port")

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

    name: str = as_in(RoutingRule, "name")
    conditions: tuple[RoutingCondition, ...] = ()
    priority: int = as_in(RoutingRule, "priority")
    target_services: tuple[str, ...] = ()
    target_tags: frozenset[str] = as_in(RoutingRule, "target_tags")
    match_all_tags: bool = False
    target_strategy: RoutingStrategy = RoutingStrategy.ROUND_ROBIN
    fallback_strategy: RoutingStrategy | None = None
    hash_key: str | None = None
    enabled: bool = True
    description: str = as_in(RoutingRule, "description")

    @property
    def rule(self) -> RoutingRule:
        return RoutingRule(**{field.name: getattr(self, field.name) for field in attrs.fields(NewRule)})


def service_fields(service: Service | ServiceSpec) -> dict[str, Any]:
    """What `NewService` would say of this one, as plain data."""
    fields = to_plain(service.config) | {name: to_plain(getattr(service, name)) for name in OWN_FIELDS}
    if isinstance(service, Service) and not service.port_is_fixed:
        fields["port"] = None
    return dict(fields)


def rule_fields(rule: RoutingRule) -> dict[str, Any]:
    """What `NewRule` would say of this one, as plain data."""
    plain = to_plain(rule)
    return {field.name: plain[field.name] for field in attrs.fields(NewRule)}
