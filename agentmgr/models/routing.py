"""Which clients go where."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from enum import StrEnum

from attrs import Factory, field, frozen

from .fields import between, check_name, check_printable, check_tags, new_id, to_word_set, to_words, utc_now


class RoutingStrategy(StrEnum):
    """Which of several suitable instances gets a client."""

    ROUND_ROBIN = "round_robin"
    LEAST_CONNECTIONS = "least_connections"
    WEIGHTED_RANDOM = "weighted_random"
    HASH_BASED = "hash_based"
    TAG_BASED = "tag_based"
    MANUAL = "manual"


class ConditionOperator(StrEnum):
    """How a condition compares the request's field with its value."""

    EQUALS = "equals"
    NOT_EQUALS = "not_equals"
    CONTAINS = "contains"
    NOT_CONTAINS = "not_contains"
    STARTS_WITH = "starts_with"
    ENDS_WITH = "ends_with"
    REGEX_MATCH = "regex_match"
    IN_LIST = "in_list"
    NOT_IN_LIST = "not_in_list"
    IN_CIDR = "in_cidr"
    EXISTS = "exists"
    NOT_EXISTS = "not_exists"


@frozen
class RoutingCondition:
    """One test of a client's request; a rule's conditions must all hold.

    `field` is `client_ip`, `client_port`, `user_agent`, `path`, `host`, `origin`, `subprotocol`,
    `query.NAME`, `header.NAME` or `cookie.NAME`.
    """

    field: str
    operator: ConditionOperator
    value: str | tuple[str, ...] = ""  #: several for `in_list`, `not_in_list` and `in_cidr`
    case_sensitive: bool = True


def _to_conditions(given: Iterable[RoutingCondition]) -> tuple[RoutingCondition, ...]:
    return tuple(given)  # a function, because mypy takes `tuple` itself for one of any types


@frozen
class RoutingRule:
    """Sends the clients that meet all conditions to some of the services. Lowest priority number first."""

    name: str = field(validator=check_name)
    conditions: tuple[RoutingCondition, ...] = field(default=(), converter=_to_conditions)
    priority: int = field(default=100, validator=between(-1_000_000, 1_000_000))
    target_services: tuple[str, ...] = field(default=(), converter=to_words)  #: names or ids, in order
    target_tags: frozenset[str] = field(default=frozenset(), converter=to_word_set, validator=check_tags)
    match_all_tags: bool = False
    target_strategy: RoutingStrategy = RoutingStrategy.ROUND_ROBIN
    fallback_strategy: RoutingStrategy | None = (
        None  #: over all services, when no target has a routable instance
    )
    hash_key: str | None = None  #: a condition field; None: the client's address
    enabled: bool = True
    description: str = field(default="", validator=check_printable)
    rule_id: str = Factory(lambda: new_id("rule"))
    version: int = 1
    created_at: datetime = Factory(utc_now)
