"""What each routing rule makes of a client's request: for people who want to know why theirs is not taken."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum

from attrs import frozen

from ..errors import InvalidRequest
from ..models import ConditionOperator, RoutingCondition, RoutingRule
from .conditions import compile_conditions
from .lookup import in_order
from .request import ClientRequest, reader


class Verdict(StrEnum):
    DECIDES = "decides"  #: it says where this client goes
    COMES_LATER = "comes_later"  #: its conditions hold, and something before it decides
    NO_MATCH = "no_match"
    DISABLED = "disabled"  #: whether its conditions hold or not
    UNUSABLE = "unusable"  #: a condition cannot be understood; the rule is skipped


@frozen
class ConditionVerdict:
    field: str
    operator: ConditionOperator
    value: str | tuple[str, ...]
    seen: tuple[str, ...]  #: what the request has there; empty: nothing
    holds: bool


@frozen
class RuleVerdict:
    rule_id: str
    name: str
    verdict: Verdict
    conditions: tuple[ConditionVerdict, ...]


def verdicts(
    rules: Iterable[RoutingRule], request: ClientRequest, *, decided: str | None
) -> tuple[RuleVerdict, ...]:
    """Of all rules, in the order in which they are tried. `decided`: the name of the one that was taken."""
    return tuple(_verdict(rule, request, decided) for rule in in_order(rules))


def _verdict(rule: RoutingRule, request: ClientRequest, decided: str | None) -> RuleVerdict:
    try:
        conditions = tuple(_condition(condition, request) for condition in rule.conditions)
    except InvalidRequest:
        return RuleVerdict(rule.rule_id, rule.name, Verdict.UNUSABLE, ())
    if not rule.enabled:
        verdict = Verdict.DISABLED
    elif not all(condition.holds for condition in conditions):
        verdict = Verdict.NO_MATCH
    else:
        verdict = Verdict.DECIDES if rule.name == decided else Verdict.COMES_LATER
    return RuleVerdict(rule.rule_id, rule.name, verdict, conditions)


def _condition(condition: RoutingCondition, request: ClientRequest) -> ConditionVerdict:
    holds = compile_conditions([condition])
    read = reader(condition.field)
    seen = read(request) if read else ()
    return ConditionVerdict(condition.field, condition.operator, condition.value, seen, holds(request))
