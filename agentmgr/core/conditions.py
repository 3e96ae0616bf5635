"""A rule's conditions, compiled to predicates over a client's request.

A field may have several values (a repeated query parameter, the offered subprotocols). A condition holds
when one of them meets it; a negated one (`not_…`) when none does, so an absent field meets every negation.
`case_sensitive` applies to the comparison and never rewrites a pattern.

What has several spellings is compared in one of them, on both sides: the path decoded and normalised, host
and origin in lower case, addresses as Python writes them. The instance gets the request as it came.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from urllib.parse import unquote

from attrs import evolve

from ..errors import FieldProblem, InvalidRequest
from ..models import ConditionOperator as Op
from ..models import RoutingCondition, RoutingRule
from ..models.fields import searcher
from .request import ClientRequest, normal_address, normal_host, normal_path, reader

Predicate = Callable[[ClientRequest], bool]
_Test = Callable[[str], bool]

_NEGATED = {
    Op.NOT_EQUALS: Op.EQUALS,
    Op.NOT_CONTAINS: Op.CONTAINS,
    Op.NOT_IN_LIST: Op.IN_LIST,
    Op.NOT_EXISTS: Op.EXISTS,
}

_SAME_FIELD = {"header.host": "host", "header.origin": "origin"}
_ANY_CASE = frozenset({"host", "origin"})
_ONE_SPELLING: Mapping[str, Callable[[str], str]] = {
    "path": normal_path,
    "host": normal_host,
    "client_ip": normal_address,
}
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


def check_rule(rule: RoutingRule) -> None:
    """Raises `InvalidRequest`, with the path of the bad field, for a rule that could never be applied."""
    for index, condition in enumerate(rule.conditions):
        # Here and not in the model: a database may hold such a rule, made before this was refused.
        for name, text in (("field", condition.field), ("value", condition.value)):
            if any(map(_CONTROL.search, [text] if isinstance(text, str) else text)):
                raise _problem(f"conditions[{index}].{name}", "must have no control characters")
        _compile(condition, f"conditions[{index}].")
    for index, target in enumerate(rule.target_services):
        if not target.isprintable():
            raise _problem(f"target_services[{index}]", f"is no service's name: {target!r}")
    if rule.hash_key is not None and _CONTROL.search(rule.hash_key):
        raise _problem("hash_key", "must have no control characters")
    if rule.hash_key is not None and reader(rule.hash_key) is None:
        raise _problem("hash_key", f"is not something a request has: {rule.hash_key!r}")


def compile_conditions(conditions: Sequence[RoutingCondition]) -> Predicate:
    """One predicate for all of them, ANDed; raises `InvalidRequest` for one that cannot be compiled."""
    predicates = [_compile(condition, "") for condition in conditions]
    if len(predicates) == 1:
        return predicates[0]
    return lambda request: all(holds(request) for holds in predicates)


def _compile(condition: RoutingCondition, path: str) -> Predicate:
    name = _SAME_FIELD.get(condition.field.lower(), condition.field)
    read = reader(name)
    if read is None:
        raise _problem(
            f"{path}field",
            "must be client_ip, client_port, user_agent, path, host, origin, subprotocol, "
            f"query.NAME, header.NAME or cookie.NAME, not {name!r}",
        )
    operator = _NEGATED.get(condition.operator, condition.operator)
    test = _test(operator, _in_one_spelling(name, operator, condition), path)
    if operator is not condition.operator:
        return lambda request: not any(map(test, read(request)))
    return lambda request: any(map(test, read(request)))


def _in_one_spelling(name: str, operator: Op, condition: RoutingCondition) -> RoutingCondition:
    """The condition with its value spelled as the request's is read."""
    if name in _ANY_CASE:
        condition = evolve(condition, case_sensitive=False)
    spelled = _ONE_SPELLING.get(name)
    if spelled is None or operator in (Op.EXISTS, Op.IN_CIDR, Op.REGEX_MATCH):
        return condition
    if operator is Op.IN_LIST:
        return evolve(condition, value=tuple(map(spelled, _listed(condition))))
    if not isinstance(condition.value, str):  # refused in a moment
        return condition
    if operator is Op.EQUALS:
        return evolve(condition, value=spelled(condition.value))
    # Of a part of a path, `/..` in it is text: to resolve it would make a test of all paths of it.
    return evolve(condition, value=unquote(condition.value)) if name == "path" else condition


def _test(operator: Op, condition: RoutingCondition, path: str) -> _Test:
    if operator is Op.EXISTS:
        return lambda value: True
    if operator is Op.IN_CIDR:
        return _in_networks(_listed(condition), path)
    if operator is Op.REGEX_MATCH:
        return pattern(_single(condition, path), condition.case_sensitive, f"{path}value")
    fold = str if condition.case_sensitive else str.casefold
    if operator is Op.IN_LIST:
        members = frozenset(map(fold, _listed(condition)))
        return lambda value: fold(value) in members
    wanted = fold(_single(condition, path))
    if operator is Op.EQUALS:
        return lambda value: fold(value) == wanted
    if operator is Op.CONTAINS:
        return lambda value: wanted in fold(value)
    if operator is Op.STARTS_WITH:
        return lambda value: fold(value).startswith(wanted)
    assert operator is Op.ENDS_WITH
    return lambda value: fold(value).endswith(wanted)


def _single(condition: RoutingCondition, path: str) -> str:
    if isinstance(condition.value, str):
        return condition.value
    raise _problem(f"{path}value", f"must be one string for {condition.operator}, not a list")


def _listed(condition: RoutingCondition) -> tuple[str, ...]:
    """The values; one string may list several with commas, as it is typed on a command line."""
    if isinstance(condition.value, str):
        return tuple(part.strip() for part in condition.value.split(","))
    return tuple(condition.value)


def _in_networks(texts: Sequence[str], path: str) -> _Test:
    networks: list[IPv4Network | IPv6Network] = []
    for text in texts:
        try:
            networks.append(ip_network(text, strict=False))
        except ValueError:
            raise _problem(f"{path}value", f"is not a network such as 10.0.0.0/8: {text!r}") from None

    def test(value: str) -> bool:
        try:
            address = ip_address(value)
        except ValueError:
            return False
        return any(address in network for network in networks)

    return test


def pattern(text: str, case_sensitive: bool, field: str) -> _Test:
    """Whether a text matches the regular expression somewhere. Raises `InvalidRequest` about `field`."""
    try:
        return searcher(text, case_sensitive=case_sensitive)
    except ValueError as error:
        raise _problem(field, f"is not a usable pattern: {error}") from None


def _problem(path: str, message: str) -> InvalidRequest:
    return InvalidRequest(f"{path} {message}", fields=[FieldProblem(path, message)])
