"""Routing rules, and a rehearsal of what they would do."""

from __future__ import annotations

from typing import Any

from attrs import Attribute, Factory, field, frozen

from ...core.bodies import NewRule
from ...core.request import ClientRequest
from ...core.routing import RoutingDecision
from ...models import RoutingRule
from ...models.fields import between, invalid, rule
from ..operations import BASE, Answer, Call, Operations
from ..queries import Page, PageQuery, page

api = Operations("routing")


_EXAMPLE = {
    "name": "vip-routing",
    "priority": 1,
    "conditions": [{"field": "user_agent", "operator": "contains", "value": "VIP", "case_sensitive": False}],
    "target_strategy": "least_connections",
    "target_tags": ["premium"],
}


def _answer(rule: RoutingRule, status: int = 200, **headers: str) -> Answer:
    return Answer(rule, status, {"ETag": f'"{rule.version}"', **headers})


@api.add("GET", "/routing/rules", query=PageQuery, gives={200: Page[RoutingRule]}, problems=(400,))
async def list_routing_rules(call: Call, query: PageQuery) -> Answer:
    """The rules, in the order in which they are tried."""
    rules = list(call.manager.list_routing_rules())
    return Answer(
        page(rules, query, key=lambda r: f"{r.priority + 10**6:07} {r.created_at.isoformat()} {r.rule_id}")
    )


@api.add(
    "POST",
    "/routing/rules",
    body=NewRule,
    gives={201: RoutingRule},
    problems=(400, 409, 413, 415, 422),
    example=_EXAMPLE,
)
async def create_routing_rule(call: Call, body: NewRule) -> Answer:
    """Adds a rule; it holds for the next client."""
    rule = await call.carry_out(lambda: call.manager.create_routing_rule(body.rule))
    return _answer(rule, 201, Location=f"{BASE}/routing/rules/{rule.rule_id}")


@api.add("GET", "/routing/hits", gives={200: dict[str, Any]})
async def get_routing_hits(call: Call) -> Answer:
    """How many connections each rule has chosen an instance for, in the last hour."""
    return Answer(call.manager.get_routing_hits())


@api.add("GET", "/routing/rules/{ref}", gives={200: RoutingRule}, problems=(404,))
async def get_routing_rule(call: Call) -> Answer:
    """One rule, by name or id."""
    return _answer(call.manager.get_routing_rule(call.ref))


@api.add(
    "PATCH",
    "/routing/rules/{ref}",
    body=NewRule,
    partial_body=True,
    gives={200: RoutingRule},
    problems=(400, 404, 409, 412, 413, 415, 422),
    example={"enabled": False},
)
async def update_routing_rule(call: Call, body: dict[str, Any]) -> Answer:
    """Changes the fields that are given; no session moves because of it."""
    rule = await call.carry_out(
        lambda: call.manager.update_routing_rule(call.ref, body, expected_version=call.expected_version)
    )
    return _answer(rule)


@api.add("DELETE", "/routing/rules/{ref}", gives={204: None}, problems=(404, 412))
async def delete_routing_rule(call: Call) -> Answer:
    """Deletes a rule."""
    call.check_version(call.manager.get_routing_rule(call.ref).version)
    await call.carry_out(lambda: call.manager.delete_routing_rule(call.ref))
    return Answer(None, 204)


@rule(pattern="^/")
def _begins_with_a_slash(_: Any, attribute: Attribute[Any], path: str) -> None:
    if not path.startswith("/"):
        raise invalid(attribute.name, "must begin with '/', as that of every request does")


@frozen(kw_only=True)
class SampleRequest:
    """A client's handshake as it might come."""

    path: str = field(default="/", validator=_begins_with_a_slash)
    client_ip: str = "127.0.0.1"
    client_port: int = field(default=0, validator=between(0, 65535))
    headers: dict[str, str] = Factory(dict)


@api.add(
    "POST",
    "/routing/test",
    body=SampleRequest,
    gives={200: RoutingDecision},
    problems=(400, 413, 415),
    example={"path": "/?lang=zh", "headers": {"User-Agent": "VIP"}},
)
async def test_routing(call: Call, body: SampleRequest) -> Answer:
    """Says which rule a client would meet, who could take it, and who would."""
    sample = ClientRequest(
        path=body.path, client_ip=body.client_ip, client_port=body.client_port, headers=body.headers
    )
    return Answer(call.manager.test_routing(sample))
