"""Instances that misbehave before their 101: relayed, refused or failed over; nothing leaks."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable

import pytest
import trio
from attrs import evolve

from agentmgr.core.routing import BackendState, RoutingTable
from agentmgr.models import RoutingStrategy
from agentmgr.proxy import GatewayLimits

IN_ORDER = {"default_strategy": RoutingStrategy.MANUAL}
QUICK = GatewayLimits(connect_timeout_s=0.2, handshake_timeout_s=0.2, dial_timeout_s=0.5, close_timeout_s=60)


def saying(lab, data: bytes, *, stay: bool = False) -> Callable[..., Awaitable[None]]:
    """A backend that gives that for an answer, and closes or stays."""

    async def handler(stream: trio.SocketStream) -> None:
        await lab.Peer(stream).until(b"\r\n\r\n")
        await stream.send_all(data)
        if stay:
            await trio.sleep_forever()

    return handler


async def closing(stream: trio.SocketStream) -> None:
    """Accepts, and leaves."""


async def test_its_own_refusal_reaches_the_client(lab) -> None:
    body = b'{"why": "full"}'
    answer = (
        b"HTTP/1.1 418 I'm a teapot\r\nX-Why: full\r\nContent-Length: 15\r\n"
        b"Set-Cookie: a=1\r\nSet-Cookie: agentmgr_console_8080=agm_theirs\r\n\r\n"
    )
    refusing = await lab.raw(saying(lab, answer + body, stay=True))
    async with lab.gateway(await lab.instance("echo"), refusing) as stage:
        async with lab.neighbour(stage, "/services/echo"):
            peer = await stage.connect(lab.upgrade("/services/raw"))
            head, _, got = (await peer.rest()).partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 418 ")
            assert b"X-Why: full" in head
            assert b"Set-Cookie: a=1" in head
            assert b"agentmgr_console" not in head, "no agent logs a browser in to the console, or out"
            assert json.loads(got) == {"why": "full"}
            assert len(stage.witness.opened) == 1


@pytest.mark.parametrize(
    ("answer", "body"),
    [
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n", b"abcde"),
        (b"HTTP/1.1 200 OK\r\n\r\nuntil the end", b"until the end"),
        (b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n", b""),
        (b"HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 503 No\r\nContent-Length: 2\r\n\r\nno", b"no"),
    ],
)
async def test_however_its_body_ends(lab, answer: bytes, body: bytes) -> None:
    async with lab.gateway(await lab.raw(saying(lab, answer))) as stage:
        peer = await stage.connect(lab.upgrade())
        head, _, got = (await peer.rest()).partition(b"\r\n\r\n")
        assert got == body
        assert f"Content-Length: {len(body)}".encode() in head


async def test_an_endless_refusal_is_cut(lab) -> None:
    async def endless(stream: trio.SocketStream) -> None:
        await stream.send_all(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            await stream.send_all(b"x" * 10_000)

    async with lab.gateway(await lab.instance("echo"), await lab.raw(endless)) as stage:
        async with lab.neighbour(stage, "/services/echo"):
            peer = await stage.connect(lab.upgrade("/services/raw"))
            _, _, body = (await peer.rest()).partition(b"\r\n\r\n")
            assert len(body) == 64 * 1024


@pytest.mark.parametrize(
    ("answer", "status", "code"),
    [
        (b"HTTP/1.1 101 Switching\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n", 502, "bad_gateway"),
        (b"HTTP/1.1 101 Switching\r\n\r\n", 502, "bad_gateway"),
        (b"HTTP/1.1 200 OK\nX: 1\r\n\r\n", 502, "bad_gateway"),
        (b"SSH-2.0-OpenSSH_9\r\n\r\n", 502, "bad_gateway"),
        (b"\x00" * 20_000, 502, "bad_gateway"),
        (b"X: 1\r\n" * 4000, 502, "bad_gateway"),
        (b"HTTP/1.1 101 Sw", 502, "bad_gateway"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nshort", 502, "bad_gateway"),
        (b"", 502, "bad_gateway"),
    ],
)
async def test_a_false_answer_is_a_bad_gateway(lab, answer: bytes, status: int, code: str) -> None:
    healthy, faulty = await lab.instance("echo"), await lab.raw(saying(lab, answer))
    async with lab.gateway(healthy, faulty) as stage:
        async with lab.neighbour(stage, "/services/echo"):
            base = lab.open_descriptors()
            assert (await stage.refusal(lab.upgrade("/services/raw")))[:2] == (status, code)
            await lab.eventually(lambda: stage.gateway.active_connections(faulty.instance_id) == 0)
            await lab.eventually(lambda: lab.open_descriptors() <= base)


@pytest.mark.parametrize("begin", [b"", b"HTTP/1.1 1"])
async def test_one_that_never_answers_is_a_timeout(lab, begin: bytes) -> None:
    healthy, mute = await lab.instance("echo"), await lab.raw(saying(lab, begin, stay=True))
    async with lab.gateway(healthy, mute, limits=QUICK) as stage:
        async with lab.neighbour(stage, "/services/echo"):
            assert (await stage.refusal(lab.upgrade("/services/raw")))[:2] == (504, "backend_timeout")
            await lab.eventually(lambda: stage.gateway.active_connections(mute.instance_id) == 0)


async def test_the_next_one_is_tried_at_once_and_none_twice(lab) -> None:
    dials = []

    async def counting(stream: trio.SocketStream) -> None:
        dials.append(1)

    async with lab.gateway(
        lab.backend(1, "a"),  # nobody listens there
        await lab.raw(counting, "b"),
        await lab.instance("c"),
        table=IN_ORDER,
    ) as stage:
        peer = await stage.open()
        await peer.stream.send_all(lab.frame(1, b"hi"))
        assert await peer.exactly(4) == lab.frame(1, b"hi", masked=False)
        assert stage.gateway.connections()[0].service_name == "c"
        assert dials == [1]


async def test_at_most_three_tries(lab) -> None:
    backends = [await lab.raw(closing, f"s{i}") for i in range(4)]
    async with lab.gateway(*backends, await lab.instance("good"), table=IN_ORDER) as stage:
        assert (await stage.refusal(lab.upgrade()))[:2] == (502, "bad_gateway")


async def test_no_second_try_once_an_answer_has_begun(lab) -> None:
    half = await lab.raw(saying(lab, b"HTTP/1.1 1"), "half")
    async with lab.gateway(half, await lab.instance("good"), table=IN_ORDER) as stage:
        assert (await stage.refusal(lab.upgrade()))[:2] == (502, "bad_gateway")


async def test_a_failing_instance_is_ejected_and_tried_again_later(lab) -> None:
    tries = 0

    async def failing(stream: trio.SocketStream) -> None:
        nonlocal tries
        tries += 1

    bad, good = await lab.raw(failing, "bad"), await lab.instance("good")
    async with lab.gateway(bad, good, table=IN_ORDER) as stage:
        for _ in range(8):
            await stage.open()
        assert tries == 3


async def test_when_everybody_is_ejected_they_are_tried_all_the_same(lab) -> None:
    broken = True

    async def flaky(stream: trio.SocketStream) -> None:
        if not broken:
            await saying(lab, lab.switching(), stay=True)(stream)

    async with lab.gateway(await lab.raw(flaky)) as stage:
        for _ in range(4):
            assert (await stage.refusal(lab.upgrade()))[0] == 502
        broken = False
        await stage.open()


async def test_a_client_whose_only_instance_has_just_died_waits_for_the_next(lab) -> None:
    """The connect is refused before the table knows of the death: the client waits for the news."""
    gone = lab.backend(1, "echo", instance_id="one")
    coming = evolve(gone, state=BackendState.COMING)
    async with lab.gateway(gone) as stage:
        peer = await stage.connect(lab.upgrade())
        await trio.sleep(0.05)
        stage.gateway.update(RoutingTable((coming,)))
        await trio.sleep(0.55)
        stage.gateway.update(RoutingTable((await lab.instance("echo", instance_id="two"),)))
        assert (await peer.until(b"\r\n")).startswith(b"HTTP/1.1 101 ")


async def test_a_rule_deleted_in_the_middle_of_a_handshake_changes_nothing(lab) -> None:
    asked, go = trio.Event(), trio.Event()

    async def waiting(stream: trio.SocketStream) -> None:
        await lab.Peer(stream).until(b"\r\n\r\n")
        asked.set()
        await go.wait()
        await stream.send_all(lab.switching())
        await trio.sleep_forever()

    instance, healthy = await lab.raw(waiting), await lab.instance("echo")
    async with lab.gateway(instance, healthy) as stage, lab.neighbour(stage, "/services/echo"):
        peer = await stage.connect(lab.upgrade("/services/raw"))
        await asked.wait()
        stage.gateway.update(RoutingTable())
        go.set()
        assert (await peer.until(b"\r\n")).startswith(b"HTTP/1.1 101 ")
        await peer.stream.aclose()
        await stage.witness.ends()
        assert stage.gateway.active_connections(instance.instance_id) == 0


async def test_an_instance_killed_during_its_dial_costs_its_client_nothing(lab) -> None:
    asked, die = trio.Event(), trio.Event()

    async def killed(stream: trio.SocketStream) -> None:
        await lab.Peer(stream).until(b"\r\n\r\n")
        asked.set()
        await die.wait()

    doomed, good = await lab.raw(killed, "doomed"), await lab.instance("good")
    async with lab.gateway(doomed, good, table=IN_ORDER) as stage:
        async with lab.neighbour(stage, "/services/good"):
            peer = await stage.connect(lab.upgrade())
            await asked.wait()
            assert stage.gateway.active_connections(doomed.instance_id) == 1
            die.set()
            assert (await peer.until(b"\r\n")).startswith(b"HTTP/1.1 101 ")
            assert stage.gateway.active_connections(doomed.instance_id) == 0
            assert stage.gateway.active_connections(good.instance_id) == 2
