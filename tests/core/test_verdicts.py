"""What each rule makes of a request: in their order, with what the request has where a condition looks."""

from __future__ import annotations

from agentmgr.core.request import ClientRequest
from agentmgr.core.verdicts import Verdict, verdicts
from agentmgr.models import ConditionOperator as Op
from agentmgr.models import RoutingCondition, RoutingRule

ZH = RoutingCondition("query.lang", Op.EQUALS, "zh")
MOBILE = RoutingCondition("user_agent", Op.CONTAINS, "Mobile")


def rule(name: str, *conditions: RoutingCondition, **facts: object) -> RoutingRule:
    return RoutingRule(name=name, conditions=conditions, **facts)  # type: ignore[arg-type]


def test_one_rule_decides_and_others_say_why_they_do_not() -> None:
    rules = [
        rule("late", priority=9),
        rule("mobile", ZH, MOBILE, priority=1),
        rule("off", ZH, priority=2, enabled=False),
        rule("chinese", ZH, priority=3),
        rule("broken", RoutingCondition("path", Op.REGEX_MATCH, "("), priority=4),
    ]
    request = ClientRequest(path="/?lang=zh", headers={"User-Agent": "curl"})
    found = verdicts(rules, request, decided="chinese")
    assert [(each.name, each.verdict) for each in found] == [
        ("mobile", Verdict.NO_MATCH),
        ("off", Verdict.DISABLED),
        ("chinese", Verdict.DECIDES),
        ("broken", Verdict.UNUSABLE),
        ("late", Verdict.COMES_LATER),
    ]
    lang, agent = found[0].conditions
    assert (lang.holds, lang.seen) == (True, ("zh",))
    assert (agent.holds, agent.seen) == (False, ("curl",))


def test_where_the_path_names_the_service_no_rule_decides() -> None:
    (found,) = verdicts([rule("all")], ClientRequest(path="/services/echo"), decided=None)
    assert found.verdict is Verdict.COMES_LATER
