"""What a rule's condition looks at, and when it holds."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentmgr.core.conditions import check_rule, compile_conditions
from agentmgr.core.request import ClientRequest
from agentmgr.errors import InvalidRequest
from agentmgr.models import ConditionOperator, RoutingCondition, RoutingRule

REQUEST = ClientRequest(
    "/chat/room?lang=zh&tag=a&tag=b&empty=",
    client_ip="10.1.2.3",
    client_port=4711,
    headers={
        "User-Agent": "Mozilla/5.0 VIP",
        "Host": "agents.example",
        "Origin": "https://app.example",
        "X-Team": "Blue",
        "Sec-WebSocket-Protocol": "chat.v2, chat.v1",
        "Cookie": "plan=gold; bad[=x; session_id=s1",
    },
)


def holds(field: str, operator: str, value: str | tuple[str, ...] = "", **more: bool) -> bool:
    condition = RoutingCondition(field, ConditionOperator(operator), value, **more)
    return compile_conditions([condition])(REQUEST)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("client_ip", "10.1.2.3"),
        ("client_port", "4711"),
        ("user_agent", "Mozilla/5.0 VIP"),
        ("path", "/chat/room"),
        ("host", "agents.example"),
        ("origin", "https://app.example"),
        ("subprotocol", "chat.v1"),
        ("subprotocol", "chat.v2"),
        ("query.lang", "zh"),
        ("query.tag", "b"),
        ("query.empty", ""),
        ("header.x-team", "Blue"),
        ("header.X-TEAM", "Blue"),
        ("cookie.plan", "gold"),
    ],
)
def test_every_field_has_its_value(field: str, value: str) -> None:
    assert holds(field, "equals", value)
    assert not holds(field, "equals", value + "x")
    assert holds(field, "exists")


@pytest.mark.parametrize("field", ["query.absent", "header.absent", "cookie.absent"])
def test_an_absent_field_meets_the_negations_only(field: str) -> None:
    assert not any(holds(field, op, "x") for op in ("equals", "contains", "starts_with", "ends_with"))
    assert not any(holds(field, op, "x") for op in ("regex_match", "in_list", "exists"))
    assert all(holds(field, op, "x") for op in ("not_equals", "not_contains", "not_in_list", "not_exists"))


@pytest.mark.parametrize(
    ("operator", "value", "expected"),
    [
        ("contains", "VIP", True),
        ("contains", "vip", False),
        ("not_contains", "VIP", False),
        ("starts_with", "Mozilla", True),
        ("starts_with", "VIP", False),
        ("ends_with", "VIP", True),
        ("ends_with", "Mozilla", False),
        ("regex_match", r"^Mozilla/\d", True),
        ("regex_match", r"^\d", False),
        ("in_list", ("curl", "Mozilla/5.0 VIP"), True),
        ("in_list", "curl, Mozilla/5.0 VIP", True),
        ("in_list", ("curl",), False),
        ("not_in_list", ("curl",), True),
        ("not_equals", "curl", True),
    ],
)
def test_operators(operator: str, value: str | tuple[str, ...], expected: bool) -> None:
    assert holds("user_agent", operator, value) is expected


@pytest.mark.parametrize("operator", ["equals", "contains", "starts_with", "ends_with", "in_list"])
def test_case_is_ignored_on_request(operator: str) -> None:
    assert not holds("header.x-team", operator, "bLUE")
    assert holds("header.x-team", operator, "bLUE", case_sensitive=False)


def test_case_never_rewrites_a_pattern() -> None:
    # Lowering the pattern would turn \D (no digit) into \d (a digit).
    assert holds("header.x-team", "regex_match", r"^\Dlue$", case_sensitive=False)
    assert not holds("header.x-team", "regex_match", r"^blue$")
    assert holds("header.x-team", "regex_match", r"^blue$", case_sensitive=False)


@pytest.mark.parametrize(
    ("value", "expected"), [("10.0.0.0/8", True), ("11.0.0.0/8, 10.1.2.3", True), ("::/0", False)]
)
def test_networks(value: str, expected: bool) -> None:
    assert holds("client_ip", "in_cidr", value) is expected


def test_one_bad_cookie_does_not_hide_the_others() -> None:
    assert holds("cookie.session_id", "equals", "s1")


def test_conditions_are_anded() -> None:
    both = [
        RoutingCondition("query.lang", ConditionOperator.EQUALS, "zh"),
        RoutingCondition("path", ConditionOperator.STARTS_WITH, "/chat"),
    ]
    assert compile_conditions(both)(REQUEST)
    assert not compile_conditions([*both, RoutingCondition("host", ConditionOperator.EQUALS, "x")])(REQUEST)
    assert compile_conditions([])(REQUEST)


@pytest.mark.parametrize(
    ("condition", "path"),
    [
        (RoutingCondition("weather", ConditionOperator.EQUALS, "x"), "conditions[0].field"),
        (RoutingCondition("query.", ConditionOperator.EQUALS, "x"), "conditions[0].field"),
        (RoutingCondition("path", ConditionOperator.REGEX_MATCH, "(a"), "conditions[0].value"),
        (RoutingCondition("path", ConditionOperator.REGEX_MATCH, r"(a)\1"), "conditions[0].value"),
        (RoutingCondition("path", ConditionOperator.IN_CIDR, "10.0.0.0/33"), "conditions[0].value"),
        (RoutingCondition("path", ConditionOperator.EQUALS, ("a", "b")), "conditions[0].value"),
    ],
)
def test_a_condition_that_cannot_be_applied_is_refused_with_its_place(
    condition: RoutingCondition, path: str
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        check_rule(RoutingRule("r", [condition]))
    assert [problem.path for problem in caught.value.fields] == [path]


def test_a_bad_hash_key_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="hash_key"):
        check_rule(RoutingRule("r", hash_key="weather"))


def test_a_catastrophic_pattern_takes_linear_time() -> None:
    # With `re` this does not return in a lifetime.
    condition = RoutingCondition("path", ConditionOperator.REGEX_MATCH, r"^(a+)+$")
    assert not compile_conditions([condition])(ClientRequest("/" + "a" * 10_000 + "!"))


@given(st.text(), st.sampled_from(ConditionOperator), st.text(), st.booleans())
def test_every_operator_and_its_negation_disagree(
    value: str, operator: ConditionOperator, agent: str, case_sensitive: bool
) -> None:
    pairs = {"equals": "not_equals", "contains": "not_contains", "in_list": "not_in_list"}
    if operator not in pairs:
        return
    request = ClientRequest(headers={"User-Agent": agent})
    plain, negated = (
        compile_conditions(
            [RoutingCondition("user_agent", op, (value,) if "list" in op else value, case_sensitive)]
        )
        for op in (operator, ConditionOperator(pairs[operator]))
    )
    assert plain(request) is not negated(request)


@given(st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), max_size=200))
def test_no_target_makes_a_request_raise(target: str) -> None:
    request = ClientRequest("/" + target, headers={"Cookie": target, "Sec-WebSocket-Protocol": target})
    for name in ("path", "query.a", "cookie.a", "subprotocol", "client_ip"):
        assert all(isinstance(value, str) for value in request.values(name))
    assert request.address[1].startswith("/")
    assert request.session_id is None or request.session_id
