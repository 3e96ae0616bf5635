"""A client that names a session goes to the instance that holds it, as long as that one's process lives."""

from __future__ import annotations

import pytest
import trio
from attrs import evolve

from agentmgr.core.affinity import Affinity
from agentmgr.core.request import ClientRequest
from agentmgr.core.routing import BackendState, RoutingTable
from agentmgr.models import ConditionOperator, RoutingCondition, RoutingRule, RoutingStrategy
from agentmgr.proxy import GatewayLimits
from agentmgr.proxy.access import Identity
from agentmgr.websocket.refusal import Refusal, RefusalCode

TO_OTHER = RoutingRule(
    "all-to-other",
    conditions=(RoutingCondition("path", ConditionOperator.STARTS_WITH, "/"),),
    target_services=("other",),
)
SESSION = "ses_77.ins_home"


async def pair(lab, **facts):
    """Two instances of two services; the first holds `SESSION`."""
    return await lab.instance("home", instance_id="ins_home", **facts), await lab.instance("other")


def opened(stage) -> list[str]:
    return [connection.service_name for connection in stage.witness.opened]


@pytest.mark.parametrize("named", ["query", "header", "cookie"])
@pytest.mark.parametrize("path", ["/", "/?tag=elsewhere", "/services/renamed"])
async def test_rules_tags_and_names_that_changed_do_not_part_it_from_its_session(lab, named, path) -> None:
    home, other = await pair(lab)
    other = evolve(other, tags=frozenset({"elsewhere"}))
    async with lab.gateway(home, other, table={"rules": (TO_OTHER,)}) as stage:
        query = f"{'&' if '?' in path else '?'}session_id={SESSION}" if named == "query" else ""
        lines = {"header": [f"X-Session-Id: {SESSION}"], "cookie": [f"Cookie: session_id={SESSION}"]}
        await stage.open(path + query, *lines.get(named, []))
        assert opened(stage) == ["home"]


async def test_a_rule_that_is_made_later_does_not_part_it_from_an_id_of_the_applications_own(lab) -> None:
    home, other = await pair(lab)
    manual = {"default_strategy": RoutingStrategy.MANUAL}
    async with lab.gateway(home, other, table=manual) as stage:
        await stage.open("/?session_id=42")
        stage.gateway.update(RoutingTable((home, other), rules=(TO_OTHER,)))
        await stage.open("/?session_id=42")
        await stage.open("/")
        assert opened(stage) == ["home", "home", "other"]


async def test_one_that_fails_its_checks_is_not_for_new_clients_and_for_its_own_all_the_same(lab) -> None:
    home, other = await pair(lab)
    async with lab.gateway(evolve(home, state=BackendState.SUSPECT), other) as stage:
        await stage.open("/")
        await stage.open(f"/?session_id={SESSION}")
        assert opened(stage) == ["other", "home"]


async def test_one_that_is_full_is_waited_for_and_its_limit_holds(lab) -> None:
    home, other = await pair(lab, max_sessions=1)
    async with lab.gateway(home, other) as stage:
        first = await stage.open(f"/?session_id={SESSION}")
        waiting = await stage.connect(lab.upgrade(f"/?session_id={SESSION}"))
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert stage.gateway.active_connections("ins_home") == 1
        await first.stream.aclose()
        assert (await waiting.until(b"\r\n")).startswith(b"HTTP/1.1 101 ")
        assert opened(stage) == ["home", "home"]


async def test_one_that_drains_and_is_full_is_waited_for(lab) -> None:
    home, other = await pair(lab, max_sessions=1)
    async with lab.gateway(home, other) as stage:
        first = await stage.open(f"/?session_id={SESSION}")
        stage.gateway.update(RoutingTable((evolve(home, state=BackendState.DRAINING), other)))
        waiting = await stage.connect(lab.upgrade(f"/?session_id={SESSION}"))
        await trio.testing.wait_all_tasks_blocked(0.01)
        await first.stream.aclose()
        assert (await waiting.until(b"\r\n")).startswith(b"HTTP/1.1 101 ")


async def test_a_dial_that_fails_is_tried_again_and_counts_once(lab) -> None:
    home, other = await pair(lab)
    dials = []

    async def dial(host: str, port: int) -> trio.SocketStream:
        dials.append(port)
        if dials.count(home.port) < 3 and port == home.port:
            raise ConnectionRefusedError
        return await trio.open_tcp_stream(host, port)

    async with lab.gateway(home, other, dial=dial) as stage:
        await stage.open(f"/?session_id={SESSION}")
        assert opened(stage) == ["home"]
        assert dials == [home.port] * 3


async def test_one_that_cannot_be_reached_is_given_up_in_time_and_not_for_another(lab) -> None:
    home, other = await pair(lab)

    async def dial(host: str, port: int) -> trio.SocketStream:
        if port == home.port:
            raise ConnectionRefusedError
        return await trio.open_tcp_stream(host, port)

    async with lab.gateway(home, other, dial=dial, limits=GatewayLimits(queue_timeout_s=0.8)) as stage:
        assert (await stage.refusal(lab.upgrade(f"/?session_id={SESSION}")))[:2] == (502, "bad_gateway")
        assert opened(stage) == []


async def test_one_that_dies_while_its_client_waits_leaves_it_to_another(lab) -> None:
    home, other = await pair(lab)

    async def dial(host: str, port: int) -> trio.SocketStream:
        if port == home.port:
            stage.gateway.update(RoutingTable((evolve(home, state=BackendState.COMING), other)))
            raise ConnectionRefusedError
        return await trio.open_tcp_stream(host, port)

    async with lab.gateway(home, other, dial=dial) as stage:
        await stage.open(f"/?session_id={SESSION}")
        assert opened(stage) == ["other"]


async def test_a_token_that_may_not_go_there_does_not(lab) -> None:
    class OnlyOther:
        async def bearer(self, token: str) -> Identity:
            return Identity("app", frozenset({"other"}))

        async def ticket(self, ticket: str) -> None:
            return None

    home, other = await pair(lab)
    bearer = "Authorization: Bearer key"
    async with lab.gateway(home, other, authenticator=OnlyOther()) as stage:
        refused = await stage.refusal(lab.upgrade(f"/?session_id={SESSION}", bearer))
        assert refused[:2] == (403, "forbidden")


async def test_an_address_that_names_another_service_contradicts_the_session(lab) -> None:
    home, other = await pair(lab)
    async with lab.gateway(home, other) as stage:
        for path in (f"/services/other?session_id={SESSION}", f"/?service=other&session_id={SESSION}"):
            assert (await stage.refusal(lab.upgrade(path)))[:2] == (409, "session_elsewhere")
        decision = stage.gateway.route(ClientRequest(f"/services/other?session_id={SESSION}"))
        assert decision.code == "session_elsewhere"
        assert "/services/home" in decision.reason


async def test_a_cookie_and_an_id_of_the_applications_own_are_no_such_contradiction(lab) -> None:
    home, other = await pair(lab)
    async with lab.gateway(home, other) as stage:
        await stage.open("/services/other", f"Cookie: session_id={SESSION}")
        await stage.open("/services/home?session_id=42")
        await stage.open("/services/other?session_id=42")
        assert opened(stage) == ["other", "home", "other"]


async def test_an_answer_of_another_instance_does_not_move_a_session_that_names_its_own(lab) -> None:
    home, other = await pair(lab)
    async with lab.gateway(evolve(home, state=BackendState.COMING), other) as stage:
        await stage.open(f"/?session_id={SESSION}")  # which is told that it is lost, and yet may be wrong
        stage.gateway.update(RoutingTable((home, other)))
        await stage.open(f"/?session_id={SESSION}")
        assert opened(stage) == ["other", "home"]


async def test_an_id_that_names_its_instance_takes_no_memory(lab) -> None:
    home, other = await pair(lab)
    affinity = Affinity()
    async with lab.gateway(home, other, affinity=affinity) as stage:
        await stage.open(f"/?session_id={SESSION}")
        assert not affinity.known
        await stage.open("/?session_id=42")
        assert len(affinity.known) == 1


async def test_route_shows_where_a_session_leads(lab) -> None:
    home, other = await pair(lab)
    async with lab.gateway(home, other, table={"rules": (TO_OTHER,)}) as stage:
        decision = stage.gateway.route(ClientRequest(f"/?session_id={SESSION}"))
        assert (decision.chosen, decision.rule) == ("ins_home", None)
        assert "names a session" in decision.reason


def elsewhere(holder: str) -> bytes:
    refusal = Refusal(421, RefusalCode.SESSION_ELSEWHERE, "it moved", details={"instance": holder})
    return refusal.response


@pytest.mark.parametrize("names", [SESSION, "42"])
async def test_an_instance_that_does_not_hold_the_session_says_which_one_does(lab, names) -> None:
    """As after a take-over: its own instance came back, and another one has it now."""
    asked = 0

    async def refuse(stream: trio.SocketStream) -> None:
        nonlocal asked
        asked += 1
        await stream.receive_some()
        await stream.send_all(elsewhere("ins_new"))

    home = await lab.raw(refuse, "home", instance_id="ins_home", token="t")
    new = evolve(await lab.instance("home", instance_id="ins_new"), service_id=home.service_id)
    manual = {"default_strategy": RoutingStrategy.MANUAL}
    async with lab.gateway(home, new, table=manual) as stage:
        await stage.open(f"/?session_id={names}")
        await stage.open(f"/?session_id={names}")
        assert [connection.instance_id for connection in stage.witness.opened] == ["ins_new"] * 2
        assert asked == 1  # it is remembered


async def test_a_draining_instance_that_has_given_the_session_up_leaves_it_to_any_other(lab) -> None:
    async def refuse(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        await stream.send_all(elsewhere(""))

    home = await lab.raw(refuse, "home", instance_id="ins_home", token="t")
    home = evolve(home, state=BackendState.DRAINING)
    new = evolve(await lab.instance("home", instance_id="ins_new"), service_id=home.service_id)
    async with lab.gateway(home, new) as stage:
        await stage.open(f"/?session_id={SESSION}")
        assert [connection.instance_id for connection in stage.witness.opened] == ["ins_new"]


async def test_an_instance_cannot_send_clients_to_another_service(lab) -> None:
    async def refuse(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        await stream.send_all(elsewhere("ins_other"))

    home = await lab.raw(refuse, "home", instance_id="ins_home", token="t")
    other = await lab.instance("other", instance_id="ins_other")
    async with lab.gateway(home, other, limits=GatewayLimits(queue_timeout_s=0.5)) as stage:
        refused = await stage.refusal(lab.upgrade(f"/services/home?session_id={SESSION}"))
        assert refused[:2] == (502, "bad_gateway")
        assert not stage.witness.opened
