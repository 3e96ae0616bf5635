"""Both handshakes: what the instance is told, what the client is told, and bytes that come early."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
import trio

from agentmgr.models import ConditionOperator, RoutingCondition, RoutingRule


def answering(
    lab, *lines: str, late: bytes = b"", heads: list[bytes] | None = None
) -> Callable[..., Awaitable[None]]:
    """A backend that answers 101 with those lines, and then stays."""

    async def handler(stream: trio.SocketStream) -> None:
        peer = lab.Peer(stream)
        head = await peer.until(b"\r\n\r\n")
        if heads is not None:
            heads.append(head)
        await stream.send_all(lab.switching(*lines) + late)
        await peer.rest()

    return handler


async def head_seen(
    lab, *lines: str, path: str = "/services/raw/chat?x=%0a1", **options: object
) -> list[str]:
    """The lines that the instance gets for a client's."""
    heads: list[bytes] = []
    instances = await lab.raw(answering(lab, heads=heads)), await lab.instance("echo")
    async with lab.gateway(*instances, **options) as stage, lab.neighbour(stage, "/services/echo"):
        await stage.open("/services/raw/chat?x=%0a1", *lines)
    return heads[0].decode("latin-1").split("\r\n")


async def test_path_query_and_end_to_end_fields_reach_the_instance(lab) -> None:
    sent = (
        "Cookie: a=1; b=2",
        "Origin: http://app.localhost",
        "Authorization: Bearer theirs",
        "Sec-WebSocket-Protocol: chat.v2, chat.v1",
        "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits",
        "X-Team: blue",
        "X-Obs: caf\u00e9",
    )
    lines = await head_seen(lab, *sent)
    assert lines[0] == "GET /chat?x=%0a1 HTTP/1.1"
    assert "Host: gateway.test" in lines
    assert set(sent) <= set(lines)
    assert lines.count("Connection: Upgrade") == lines.count("Upgrade: websocket") == 1


@pytest.mark.parametrize(
    ("sent", "left"),
    [
        ("Cookie: a=1; agentmgr_console_8080=agm_key; b=2", "Cookie: a=1; b=2"),
        ("Cookie: agentmgr_console=agm_key;c=3", "Cookie: c=3"),
        ("Cookie: agentmgr_console_8080=agm_key; agentmgr_console_443=agm_key", None),
    ],
)
async def test_no_instance_gets_the_key_that_a_browser_has_for_the_console(lab, sent, left) -> None:
    """Browsers send the cookies of a host to each of its ports."""
    lines = await head_seen(lab, sent)
    assert not [line for line in lines if "agm_key" in line]
    assert [line for line in lines if line.lower().startswith("cookie")] == ([left] if left else [])


async def test_fields_for_this_hop_do_not(lab) -> None:
    lines = await head_seen(lab, "Connection: X-Hop, keep-alive", "X-Hop: 1", "Keep-Alive: 5", "TE: trailers")
    assert not [line for line in lines if line.startswith(("X-Hop", "Keep-Alive", "TE"))]


async def test_forwarding_fields_are_ours_not_the_clients(lab) -> None:
    spoofed = (
        "X-Forwarded-For: 10.0.0.1",
        "X_Forwarded_For: 10.0.0.1",
        "X-Real-IP: 10.0.0.1",
        "Forwarded: for=10.0.0.1",
        "X-Forwarded-User: admin",
        "X-Forwarded-Prefix: /admin",
        "X-Request-Id: mine",
        "X-Agentmgr-Identity: admin",
        "X.Agentmgr.Identity: admin",
    )
    lines = await head_seen(lab, *spoofed)
    assert not set(spoofed) & set(lines)
    assert {"X-Forwarded-For: 127.0.0.1", "X-Forwarded-Proto: http", "X-Forwarded-Host: gateway.test"} <= set(
        lines
    )
    (request_id,) = [line for line in lines if line.startswith("X-Request-Id: ")]
    assert request_id.startswith("X-Request-Id: con_")


async def test_a_trusted_proxy_is_believed(lab) -> None:
    lines = await head_seen(
        lab,
        "X-Forwarded-For: 192.0.2.7",
        "X-Forwarded-Proto: https",
        "X-Forwarded-Host: agents.example",
        "X-Request-Id: theirs",
        "X-Forwarded-User: ann",
        "X-Agentmgr-Identity: admin",
        trusted_proxies=["127.0.0.0/8"],
    )
    assert "X-Agentmgr-Identity: admin" not in lines
    assert {
        "X-Forwarded-For: 192.0.2.7, 127.0.0.1",
        "X-Forwarded-Proto: https",
        "X-Forwarded-Host: agents.example",
        "X-Request-Id: theirs",
        "X-Forwarded-User: ann",
    } <= set(lines)


async def test_rules_see_the_resolved_address_only(lab) -> None:
    trusted = ["127.0.0.1", "10.9.0.0/16"]
    instances = await lab.instance("echo"), await lab.instance("other")
    for options, seen in (({"trusted_proxies": trusted}, "192.0.2.7"), ({}, "127.0.0.1")):
        async with lab.gateway(*instances, **options) as stage, lab.neighbour(stage, "/services/other"):
            spoofed = "X-Forwarded-For: 1.1.1.1, 192.0.2.7, 10.9.0.4"
            await stage.open("/services/echo?client_ip=1.1.1.1", spoofed)
            (connection,) = [c for c in stage.gateway.connections() if c.service_name == "echo"]
            assert connection.client_ip == seen


async def test_a_rule_is_not_passed_by_with_another_spelling_and_the_instance_gets_what_was_sent(lab) -> None:
    heads: list[bytes] = []
    instances = await lab.raw(answering(lab, heads=heads)), await lab.instance("echo")
    rules = (
        RoutingRule(
            "vip",
            [
                RoutingCondition("path", ConditionOperator.EQUALS, "/vip"),
                RoutingCondition("host", ConditionOperator.EQUALS, "Agents.example"),
            ],
            priority=1,
            target_services=("raw",),
        ),
        RoutingRule("others", target_services=("echo",)),
    )
    async with lab.gateway(*instances, table={"rules": rules}) as stage, lab.neighbour(stage):
        for target in ("/vip", "//vip", "/%76ip?x=%0a", "/a/%2e%2e/vip", "/a/..%2Fvip"):
            request = lab.upgrade(target, host="AGENTS.example.:9090")
            peer = await stage.connect(request)
            await peer.until(b"\r\n\r\n")
            assert heads.pop().startswith(f"GET {target} HTTP/1.1\r\n".encode())


async def test_the_instances_choices_reach_the_client(lab) -> None:
    chosen = (
        "Sec-WebSocket-Protocol: chat.v1",
        "Sec-WebSocket-Extensions: permessage-deflate; server_no_context_takeover",
        "Set-Cookie: a=1; Path=/",
        "Set-Cookie: b=2",
        "X-Agent: seven",
    )
    login = "Set-Cookie: agentmgr_console_8080=agm_theirs"
    async with lab.gateway(await lab.raw(answering(lab, *chosen, login))) as stage:
        peer = await stage.connect(
            lab.upgrade(
                "/",
                "Sec-WebSocket-Protocol: chat.v2, chat.v1",
                "Sec-WebSocket-Extensions: permessage-deflate",
            )
        )
        lines = (await peer.until(b"\r\n\r\n")).decode().split("\r\n")
        assert lines[0] == "HTTP/1.1 101 Switching Protocols"
        got = {line.lower() for line in lines}
        assert {line.lower() for line in chosen} <= got
        assert login.lower() not in got, "an instance logs no browser in or out"
        assert "sec-websocket-accept: s3ppLMBiTxaQ9kYGzzhZRbK+xOo=".lower() in got


async def test_what_the_instance_sends_along_with_its_101_is_delivered(lab) -> None:
    hello = lab.frame(1, b"hello", masked=False)
    async with lab.gateway(await lab.raw(answering(lab, late=hello))) as stage:
        peer = await stage.open()
        assert await peer.exactly(len(hello)) == hello


async def test_what_the_client_sends_along_with_its_request_is_delivered_after_the_101(lab) -> None:
    async with lab.gateway(await lab.instance()) as stage:
        peer = await stage.connect(lab.upgrade() + lab.frame(1, b"early") + lab.frame(1, b"bird")[:3])
        await peer.until(b"\r\n\r\n")
        assert await peer.exactly(7) == lab.frame(1, b"early", masked=False)
        await peer.stream.send_all(lab.frame(1, b"bird")[3:])
        assert await peer.exactly(6) == lab.frame(1, b"bird", masked=False)


async def test_nothing_past_the_head_is_sent_before_the_101(lab) -> None:
    answered = trio.Event()
    before: list[bytes] = []

    async def slow(stream: trio.SocketStream) -> None:
        peer = lab.Peer(stream)
        await peer.until(b"\r\n\r\n")
        with trio.move_on_after(0.05):
            before.append(await stream.receive_some())
        before.append(peer.received)
        await stream.send_all(lab.switching())
        answered.set()
        before.append(await peer.exactly(6 + 5))
        await peer.rest()

    async with lab.gateway(await lab.raw(slow)) as stage:
        peer = await stage.connect(lab.upgrade() + lab.frame(1, b"early"))
        await answered.wait()
        await peer.until(b"\r\n\r\n")
        await peer.stream.send_all(lab.frame(8, b"\x03\xe8"))
        await lab.eventually(lambda: len(before) == 2)
    assert before == [b"", lab.frame(1, b"early")]
