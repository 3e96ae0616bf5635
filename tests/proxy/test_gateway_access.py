"""Who may come in: origins, tokens and tickets."""

from __future__ import annotations

import pytest
import trio

from agentmgr.proxy import Identity


class Door:
    """An authenticator that knows a token, a narrower token, and one ticket."""

    def __init__(self) -> None:
        self.tickets = {"t1": Identity("ticketed")}

    required = True

    async def bearer(self, token: str) -> Identity | None:
        await trio.lowlevel.checkpoint()
        return {"good": Identity("ann"), "narrow": Identity("bob", frozenset({"echo"}))}.get(token)

    async def ticket(self, ticket: str) -> Identity | None:
        await trio.lowlevel.checkpoint()
        return self.tickets.pop(ticket, None)


@pytest.fixture
def heads() -> list[str]:
    return []


@pytest.fixture
async def instance(lab, heads: list[str]):
    async def handler(stream: trio.SocketStream) -> None:
        peer = lab.Peer(stream)
        heads.append((await peer.until(b"\r\n\r\n")).decode())
        await stream.send_all(lab.switching())
        await peer.rest()

    return await lab.raw(handler, "echo")


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        (None, 101),
        ("https://app.example", 101),
        ("HTTPS://APP.example", 101),
        ("https://evil.example", 403),
        ("http://app.example", 403),
        ("null", 403),
    ],
)
async def test_only_listed_origins(lab, instance, origin: str | None, status: int) -> None:
    async with lab.gateway(instance, allowed_origins=["https://app.example/"]) as stage:
        peer = await stage.connect(lab.upgrade("/", *([f"Origin: {origin}"] if origin else [])))
        assert (await peer.until(b"\r\n")).startswith(f"HTTP/1.1 {status} ".encode())


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        (None, 101),
        ("http://localhost:3000", 101),
        ("http://app.localhost", 101),
        ("http://127.0.0.1", 101),
        ("http://[::1]:8000", 101),
        ("https://evil.example", 403),
        ("http://localhost.evil.example", 403),
        ("null", 403),
        ("http://[", 403),
    ],
)
async def test_without_a_list_only_pages_of_this_machine(
    lab, instance, origin: str | None, status: int
) -> None:
    async with lab.gateway(instance) as stage:
        peer = await stage.connect(lab.upgrade("/", *([f"Origin: {origin}"] if origin else [])))
        assert (await peer.until(b"\r\n")).startswith(f"HTTP/1.1 {status} ".encode())


async def test_a_star_lets_every_page_in(lab, instance) -> None:
    async with lab.gateway(instance, allowed_origins=["*"]) as stage:
        await stage.open("/", "Origin: https://anything.example")


async def test_null_is_an_origin_that_can_be_listed(lab, instance) -> None:
    async with lab.gateway(instance, allowed_origins=["null"]) as stage:
        await stage.open("/", "Origin: null")


@pytest.mark.parametrize(
    ("path", "lines"),
    [
        ("/", ()),
        ("/", ("Authorization: Bearer bad",)),
        ("/", ("Authorization: Basic good",)),
        ("/", ("Sec-WebSocket-Protocol: chat, bearer.bad",)),
        ("/?ticket=bad", ()),
        ("/?token=good", ()),
    ],
)
async def test_without_a_valid_credential_nobody_comes_in(lab, instance, heads, path: str, lines) -> None:
    async with lab.gateway(instance, authenticator=Door()) as stage:
        status, code, headers = await stage.refusal(lab.upgrade(path, *lines))
        assert (status, code) == (401, "unauthorized")
        assert headers["www-authenticate"] == 'bearer realm="agentmgr"'
        assert heads == []


@pytest.mark.parametrize(
    ("path", "lines", "name"),
    [
        ("/a?x=1", ("Authorization: Bearer good",), "ann"),
        ("/a?x=1", ("authorization: bearer good",), "ann"),
        ("/a?x=1", ("Sec-WebSocket-Protocol: chat, bearer.good",), "ann"),
        ("/a?ticket=t1&x=1", (), "ticketed"),
        ("/a?x=1&ticket=%741", (), "ticketed"),
    ],
)
async def test_a_credential_opens_the_door_and_goes_no_further(
    lab, instance, heads, path: str, lines: tuple[str, ...], name: str
) -> None:
    async with lab.gateway(instance, authenticator=Door()) as stage:
        peer = await stage.connect(lab.upgrade(path, "X-Agentmgr-Identity: root", *lines))
        answer = await peer.until(b"\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 101 ")
        assert b"bearer" not in answer
    (head,) = heads
    assert head.startswith("GET /a?x=1 HTTP/1.1\r\n")
    assert f"X-Agentmgr-Identity: {name}\r\n" in head
    assert not any(secret in head for secret in ("good", "t1", "%741", "uthorization", "bearer", "root"))
    if lines and "chat" in lines[0]:
        assert "Sec-WebSocket-Protocol: chat\r\n" in head


async def test_a_credential_goes_no_further_where_none_is_asked_for_either(lab, instance, heads) -> None:
    door = Door()
    door.required = False
    async with lab.gateway(instance, authenticator=door) as stage:
        await stage.open("/?ticket=t1")
        await stage.open("/?ticket=theirs", "Authorization: Bearer theirs")
    assert heads[0].startswith("GET / HTTP/1.1\r\n")
    assert "X-Agentmgr-Identity: ticketed\r\n" in heads[0]
    assert heads[1].startswith("GET /?ticket=theirs HTTP/1.1\r\n")
    assert "Authorization: Bearer theirs\r\n" in heads[1]
    assert "X-Agentmgr-Identity" not in heads[1]


async def test_a_ticket_is_good_once(lab, instance) -> None:
    async with lab.gateway(instance, authenticator=Door()) as stage:
        await stage.open("/?ticket=t1")
        assert (await stage.refusal(lab.upgrade("/?ticket=t1")))[0] == 401


async def test_a_token_for_named_services_opens_those_only(lab, instance) -> None:
    other = await lab.instance("other")
    async with lab.gateway(other, instance, authenticator=Door()) as stage:
        token = "Authorization: Bearer narrow"
        await stage.open("/services/echo", token)
        status = await stage.refusal(lab.upgrade("/services/other", token))
        assert status[:2] == (403, "forbidden")
        for _ in range(3):
            await stage.open("/", token)
        assert {c.service_name for c in stage.witness.opened} == {"echo"}


async def test_credentials_of_others_pass_when_the_gateway_asks_for_none(lab, instance, heads) -> None:
    async with lab.gateway(instance) as stage:
        await stage.open("/?ticket=theirs", "Authorization: Bearer theirs")
    assert "Authorization: Bearer theirs\r\n" in heads[0]
    assert "GET /?ticket=theirs " in heads[0]
