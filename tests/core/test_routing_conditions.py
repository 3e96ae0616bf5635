"""What a rule's condition looks at, and when it holds."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentmgr.core.conditions import check_rule, compile_conditions
from agentmgr.core.request import ClientRequest, normal_path
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


def meets(field: str, operator: str, value: str, request: ClientRequest, **more: bool) -> bool:
    return compile_conditions([RoutingCondition(field, ConditionOperator(operator), value, **more)])(request)


@pytest.mark.parametrize(
    "spelling",
    ["/vip/x", "/%76ip/x", "/%76%69%70%2Fx", "//vip///x", "/./vip/x", "/a/../vip/x", "/a/%2e%2e/vip/x",
     "/a/%2E./vip/x", "/a%2f..%2fvip/x", "/../../vip/x", "/vip/y/../x", "/vip/./x?path=/other"],
)  # fmt: skip
@pytest.mark.parametrize(
    ("operator", "value"),
    [("equals", "/vip/x"), ("equals", "/%76ip//x"), ("in_list", "/b, /vip/x"), ("starts_with", "/vip"),
     ("ends_with", "p/x"), ("contains", "vip/"), ("regex_match", "^/vip/x$")],
)  # fmt: skip
def test_a_path_is_the_same_path_however_it_is_spelled(spelling: str, operator: str, value: str) -> None:
    assert meets("path", operator, value, ClientRequest(spelling))


@pytest.mark.parametrize(
    ("sent", "seen"),
    [("/%2576ip", "/%76ip"), ("/vip/", "/vip/"), ("/vip/.", "/vip/"), ("/vip/a/..", "/vip/"), ("/..", "/"),
     ("/VIP", "/VIP"), ("/.vip/..a/b...", "/.vip/..a/b..."), ("/caf%C3%A9", "/caf\u00e9"),
     ("/%ff", "/\ufffd"), ("/a;b=c/d", "/a;b=c/d"), ("/%zz", "/%zz")],
)  # fmt: skip
def test_a_path_is_decoded_once_and_keeps_what_tells_it_from_others(sent: str, seen: str) -> None:
    assert normal_path(ClientRequest(sent).bare_path) == seen


def test_a_part_of_a_path_is_decoded_and_never_resolved() -> None:
    assert meets("path", "contains", "a%20b", ClientRequest("/x/a%20b"))
    assert not meets("path", "contains", "/..", ClientRequest("/x/../y"))
    assert not meets("path", "starts_with", "/..", ClientRequest("/x"))


@pytest.mark.parametrize(
    "host",
    ["agents.example", "Agents.EXAMPLE", "agents.example.", "agents.example:9090", "AGENTS.example.:80"],
)
@pytest.mark.parametrize("value", ["agents.example", "Agents.Example."])
@pytest.mark.parametrize("field", ["host", "header.Host"])
def test_a_host_is_the_same_host_in_any_case_with_any_port(host: str, value: str, field: str) -> None:
    request = ClientRequest(headers={"Host": host})
    assert meets(field, "equals", value, request)
    assert not meets(field, "not_equals", value, request)
    assert meets(field, "regex_match", "^agents[.]EXAMPLE$", request)


def test_a_condition_may_name_the_port_of_a_host() -> None:
    assert meets("host", "equals", "a.example:90", ClientRequest(headers={"Host": "A.example:90"}))
    assert not meets("host", "equals", "a.example:90", ClientRequest(headers={"Host": "a.example:91"}))
    assert meets("host", "equals", "[::1]", ClientRequest(headers={"Host": "[::1]:90"}))
    assert not meets("host", "exists", "", ClientRequest())


def test_an_origin_is_the_same_in_any_case() -> None:
    request = ClientRequest(headers={"Origin": "HTTPS://App.example"})
    assert meets("origin", "equals", "https://app.example", request)
    assert meets("header.origin", "starts_with", "https://APP.", request)


@pytest.mark.parametrize("sent", ["10.1.2.3", "::ffff:10.1.2.3", "::FFFF:a01:203"])
def test_an_address_is_the_same_in_any_spelling(sent: str) -> None:
    request = ClientRequest(client_ip=sent)
    assert meets("client_ip", "equals", "10.1.2.3", request)
    assert meets("client_ip", "in_list", "::1, ::ffff:10.1.2.3", request)
    assert meets("client_ip", "in_cidr", "10.0.0.0/8", request)


def test_a_query_value_is_decoded_once() -> None:
    request = ClientRequest("/?a=%2576&b=x%20y+z&%63=1")
    assert meets("query.a", "equals", "%76", request)
    assert meets("query.b", "equals", "x y z", request)
    assert meets("query.c", "equals", "1", request)


def test_a_cookie_that_comes_twice_has_both_values() -> None:
    request = ClientRequest(headers={"Cookie": "plan=free; plan=gold"})
    assert meets("cookie.plan", "equals", "gold", request)
    assert not meets("cookie.plan", "not_equals", "free", request)


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
        (RoutingCondition("header.a\r\nb", ConditionOperator.EXISTS), "conditions[0].field"),
        (RoutingCondition("query.\0", ConditionOperator.EXISTS), "conditions[0].field"),
        (RoutingCondition("header.a", ConditionOperator.EQUALS, "x\r\ny"), "conditions[0].value"),
        (RoutingCondition("header.a", ConditionOperator.IN_LIST, ("x", "\x1b]0;P\7")), "conditions[0].value"),
        (RoutingCondition("header.a", ConditionOperator.REGEX_MATCH, "a\x85"), "conditions[0].value"),
        (RoutingCondition("header.a", ConditionOperator.EQUALS, "a\u2028b"), "conditions[0].value"),
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


@pytest.mark.parametrize("field", ["hash_key", "target_services"])
def test_a_rule_has_no_control_characters_anywhere(field: str) -> None:
    rule = RoutingRule("r", **{field: "header.a\nb" if field == "hash_key" else ("a\x1b[2J",)})
    with pytest.raises(InvalidRequest, match=field):
        check_rule(rule)


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
