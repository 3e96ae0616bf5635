"""From a request and a table to the candidates."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentmgr.core.request import ClientRequest
from agentmgr.core.routing import Backend, BackendState, Pool, Router, RoutingTable
from agentmgr.errors import ServiceNotFound
from agentmgr.models import ConditionOperator, RoutingCondition, RoutingRule, RoutingStrategy


def instance(name: str, tags: str = "", state: BackendState = BackendState.ROUTABLE, n: int = 0) -> Backend:
    return Backend(f"{name}-{n}", f"svc_{name}", name, "localhost", 1, frozenset(tags.split()), state=state)


ZH = instance("zh", "support chinese")
EN = instance("en", "support english")
ML = instance("ml", "ai")
LANG_ZH = RoutingCondition("query.lang", ConditionOperator.EQUALS, "zh")


def rule(name: str, *conditions: RoutingCondition, **more: object) -> RoutingRule:
    return RoutingRule(name, conditions, **more)  # type: ignore[arg-type]


def pool(request: ClientRequest | str, *rules: RoutingRule, **more: object) -> Pool:
    request = ClientRequest(request) if isinstance(request, str) else request
    hints = bool(more.pop("hints", True))
    more.setdefault("backends", (ZH, EN, ML))
    return Router(RoutingTable(rules=rules, **more), hints=hints).pool(request)  # type: ignore[arg-type]


def names(found: Pool) -> list[str]:
    return [backend.service_name for backend in found.backends]


def test_without_rules_everybody_is_a_candidate() -> None:
    found = pool("/", default_strategy=RoutingStrategy.LEAST_CONNECTIONS)
    assert names(found) == ["zh", "en", "ml"]
    assert found.strategy is RoutingStrategy.LEAST_CONNECTIONS
    assert found.rule is None


def test_http_services_and_those_without_a_port_must_be_named() -> None:
    any_rule, zh_rule = rule("any"), rule("zh", target_services=("zh",))
    apart = {"http_services": frozenset({"zh"}), "portless_services": frozenset({"ml", "en"})}
    waits = instance("ml", "ai", state=BackendState.COMING)
    for rules in ((), (any_rule,)):
        assert names(pool("/", *rules, backends=(ZH, EN, waits), **apart)) == ["en"]  # en is seen to listen
    assert names(pool("/", zh_rule, **apart)) == names(pool("/services/zh", **apart)) == ["zh"]
    assert names(pool("/services/ml", backends=(waits,), **apart)) == ["ml"]


@pytest.mark.parametrize(
    ("path", "left"),
    [
        ("/services/zh", "/"),
        ("/services/zh/", "/"),
        ("/services/zh/chat?x=1", "/chat?x=1"),
        ("/services/zh?x=1", "/?x=1"),
        ("/services/%7Ah/a%20b", "/a%20b"),
    ],
)
def test_the_path_names_a_service_and_its_prefix_is_stripped(path: str, left: str) -> None:
    request = ClientRequest(path)
    assert names(pool(request)) == ["zh"]
    assert request.address[1] == left


@pytest.mark.parametrize("path", ["/", "/services", "/services/", "/service/zh", "/x/services/zh"])
def test_other_paths_are_left_as_they_are(path: str) -> None:
    assert ClientRequest(path).address == (None, path)


def test_the_path_comes_before_hints_and_rules() -> None:
    assert names(pool("/services/zh?service=en&lang=zh", rule("r", LANG_ZH, target_services=["ml"]))) == [
        "zh"
    ]


def test_hints_come_before_rules() -> None:
    to_ml = rule("r", target_services=["ml"])
    assert names(pool("/?service=en", to_ml)) == ["en"]
    assert names(pool("/?tag=support", to_ml)) == ["zh", "en"]


def test_hints_can_be_switched_off() -> None:
    assert names(pool("/?service=en", hints=False)) == ["zh", "en", "ml"]


@pytest.mark.parametrize(
    "path", ["/services/nobody", "/?service=nobody", "/services/zh%0d%0a", "/services/../zh"]
)
def test_an_unknown_name_is_not_found(path: str) -> None:
    with pytest.raises(ServiceNotFound):
        pool(path)


def test_a_known_service_without_an_instance_is_not_unknown() -> None:
    found = pool("/services/off", service_names=frozenset({"off"}))
    assert found.backends == ()
    assert not found.coming


def test_an_unknown_tag_has_nobody() -> None:
    assert pool("/?tag=nothing").backends == ()


def test_rules_go_by_priority_then_age() -> None:
    def made(day: int) -> datetime:
        return datetime(2026, 1, day, tzinfo=UTC)

    late = rule("late", priority=5, created_at=made(2))
    early = rule("early", priority=5, created_at=made(1))
    last = rule("last", priority=9, created_at=made(1))
    assert pool("/", last, late, early).rule == "early"


def test_disabled_rules_are_skipped() -> None:
    assert pool("/", rule("off", enabled=False), rule("on", priority=200)).rule == "on"


def test_a_rule_that_cannot_be_applied_does_not_stop_the_others() -> None:
    broken = rule("broken", RoutingCondition("path", ConditionOperator.REGEX_MATCH, "("))
    assert pool("/", broken, rule("good", priority=200)).rule == "good"


def test_scenario_one_routes_by_language() -> None:
    by_language = rule("chinese", LANG_ZH, target_tags=["chinese"])
    assert names(pool("/?lang=zh", by_language)) == ["zh"]
    assert names(pool("/?lang=en", by_language, rule("rest", target_tags=["english"], priority=200))) == [
        "en"
    ]


def test_targets_by_name_or_id_keep_their_order() -> None:
    assert names(pool("/", rule("r", target_services=["ml", "svc_zh"]))) == ["ml", "zh"]


@pytest.mark.parametrize(("match_all", "expected"), [(False, ["zh", "en"]), (True, ["zh"])])
def test_tags_any_of_or_all_of(match_all: bool, expected: list[str]) -> None:
    found = pool("/", rule("r", target_tags=["support", "chinese"], match_all_tags=match_all))
    assert names(found) == expected


def test_the_fallback_applies_when_the_targets_have_nobody() -> None:
    down = instance("zh", "chinese", BackendState.DOWN)
    to_zh = rule("r", target_services=["zh"], fallback_strategy=RoutingStrategy.LEAST_CONNECTIONS)
    found = pool("/", to_zh, backends=(down, EN))
    assert (names(found), found.strategy) == (["zh", "en"], RoutingStrategy.LEAST_CONNECTIONS)
    assert names(pool("/", to_zh)) == ["zh"]


def test_no_fallback_while_a_target_is_coming() -> None:
    coming = instance("zh", "chinese", BackendState.COMING)
    to_zh = rule("r", target_services=["zh"], fallback_strategy=RoutingStrategy.ROUND_ROBIN)
    assert names(pool("/", to_zh, backends=(coming, EN))) == ["zh"]


@pytest.mark.parametrize(
    ("state", "routable", "coming"),
    [
        ("routable", True, True),
        ("coming", False, True),
        ("suspect", False, True),
        ("draining", False, False),
        ("down", False, False),
    ],
)
def test_only_the_routable_get_clients_and_only_the_coming_are_waited_for(
    state: str, routable: bool, coming: bool
) -> None:
    found = pool("/", backends=(instance("a", state=BackendState(state)),))
    assert (bool(found.routable), found.coming) == (routable, coming)


def test_a_hash_key_is_taken_from_the_request() -> None:
    keyed = rule("r", target_strategy=RoutingStrategy.HASH_BASED, hash_key="cookie.user")
    request = ClientRequest("/", "10.0.0.9", headers={"Cookie": "user=ann"})
    assert pool(request, keyed).key_of(request) == "ann"
    assert pool("/", keyed).key_of(ClientRequest("/", "10.0.0.9")) is None
    assert pool("/").key_of(ClientRequest("/", "10.0.0.9")) == "10.0.0.9"


def test_the_address_cannot_be_named_by_the_client() -> None:
    inside = rule("inside", RoutingCondition("client_ip", ConditionOperator.IN_CIDR, "10.0.0.0/8"))
    outsider = ClientRequest("/?client_ip=10.0.0.1", "192.0.2.1", headers={"client_ip": "10.0.0.1"})
    assert pool(outsider, inside).rule is None


def test_turns_go_on_when_the_table_changes() -> None:
    table = RoutingTable((ZH, EN, ML))
    router = Router(table)
    rotation = router.pool(ClientRequest()).rotation
    assert Router(table, rotations=router.rotations).pool(ClientRequest()).rotation is rotation


_paths = st.sampled_from(["/", "/?lang=zh", "/services/zh", "/?service=en", "/?tag=ai", "/?tag=none"])
_states = st.lists(st.sampled_from(BackendState), min_size=3, max_size=3)
_rules = st.lists(
    st.builds(
        RoutingRule,
        st.sampled_from(["a", "b", "c"]),
        st.sampled_from([(), (LANG_ZH,)]),
        st.integers(0, 3),
        target_services=st.sampled_from([(), ("zh",), ("en", "ml"), ("gone",)]),
        target_tags=st.sampled_from([frozenset(), frozenset({"support"}), frozenset({"ai", "support"})]),
        fallback_strategy=st.sampled_from([None, RoutingStrategy.ROUND_ROBIN]),
        enabled=st.booleans(),
    ),
    max_size=4,
)


@given(_paths, _states, _rules)
def test_a_pool_holds_only_backends_of_the_table_and_says_who_chose(
    path: str, states: list[BackendState], rules: list[RoutingRule]
) -> None:
    backends = tuple(
        instance(name, "ai", state) for name, state in zip(("zh", "en", "ml"), states, strict=True)
    )
    found = pool(path, *rules, backends=backends)
    assert set(found.backends) <= set(backends)
    assert all(b.state is BackendState.ROUTABLE for b in found.routable)
    assert found.rule is None or found.rule in {r.name for r in rules if r.enabled}
    assert found.reason
