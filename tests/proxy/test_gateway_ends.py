"""How a session ends: who says so, with which code, and what each side and the observer see."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Awaitable, Callable
from functools import partial

import pytest
import trio
from attrs import evolve

from agentmgr.core.routing import Backend, BackendState, RoutingTable
from agentmgr.errors import ConnectionNotFound
from agentmgr.proxy import Gateway, GatewayLimits

RESET = struct.pack("ii", 1, 0)  # SO_LINGER: closing is a reset


def open_ended(
    lab, then: Callable[[object], Awaitable[None]], opened: trio.Event | None = None
) -> Callable[[trio.SocketStream], Awaitable[None]]:
    """A backend that answers 101, does something with its peer, and closes."""

    async def handler(stream: trio.SocketStream) -> None:
        peer = lab.Peer(stream)
        await peer.until(b"\r\n\r\n")
        await stream.send_all(lab.switching())
        if opened is not None:
            opened.set()
        await then(peer)

    return handler


async def stay(peer) -> None:
    await peer.rest()


async def test_a_backends_close_frame_arrives_unchanged(lab) -> None:
    async def close(peer) -> None:
        await peer.stream.send_all(lab.frame(8, b"\x0f\xa1own words", masked=False))
        assert await peer.exactly(6 + 2) == lab.frame(8, b"\x0f\xa1")

    async with lab.gateway(await lab.raw(open_ended(lab, close))) as stage:
        peer = await stage.open()
        assert await peer.exactly(2 + 11) == lab.frame(8, b"\x0f\xa1own words", masked=False)
        await peer.stream.send_all(lab.frame(8, b"\x0f\xa1"))
        assert await peer.rest() == b""
        await peer.stream.aclose()
        (end,) = await stage.witness.ends()
        assert (end.ended_by, end.code, end.reason) == ("backend", 4001, "own words")


async def test_a_clients_close_frame_arrives_unchanged(lab) -> None:
    got = []

    async def answer(peer) -> None:
        got.append(await peer.exactly(6 + 5))
        await peer.stream.send_all(lab.frame(8, b"\x03\xe8", masked=False))

    async with lab.gateway(await lab.raw(open_ended(lab, answer))) as stage:
        peer = await stage.open()
        await peer.stream.send_all(lab.frame(8, b"\x03\xe8bye"))
        assert await peer.close_code() == 1000
        await peer.stream.aclose()
        (end,) = await stage.witness.ends()
        assert (end.ended_by, end.code, end.reason) == ("client", 1000, "bye")
    assert got == [lab.frame(8, b"\x03\xe8bye")]


@pytest.mark.parametrize(
    ("after", "code"),
    [
        (BackendState.COMING, 1012),
        (BackendState.DOWN, 1011),
        (BackendState.ROUTABLE, 1011),  # alive, and it just dropped the connection
        (None, 1011),
    ],
)
@pytest.mark.parametrize("how", ["end of stream", "reset"])
async def test_a_lost_instance(lab, after: BackendState | None, code: int, how: str) -> None:
    lose = trio.Event()

    async def drop(peer) -> None:
        await lose.wait()
        if how == "reset":
            peer.stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)

    instance = await lab.raw(open_ended(lab, drop))
    async with lab.gateway(instance) as stage:
        peer = await stage.open()
        lose.set()
        left = () if after is None else (evolve(instance, state=after),)
        stage.gateway.update(RoutingTable(left))
        assert await peer.close_code() == code
        await peer.stream.aclose()
        (end,) = await stage.witness.ends()
        assert (end.ended_by, end.code) == ("backend", code)
        assert stage.gateway.active_connections(instance.instance_id) == 0


async def test_an_instance_replaced_by_another_is_worth_coming_back(lab) -> None:
    async def drop(peer) -> None:
        pass

    old = await lab.raw(open_ended(lab, drop))
    async with lab.gateway(old) as stage:
        peer = await stage.open()
        stage.gateway.update(RoutingTable((evolve(old, instance_id="the next"),)))
        assert await peer.close_code() == 1012


async def test_all_that_a_lost_instance_said_is_delivered_first(lab) -> None:
    async def talk(peer) -> None:
        await peer.stream.send_all(lab.frame(1, b"last words", masked=False) * 1000)

    async with lab.gateway(await lab.raw(open_ended(lab, talk))) as stage:
        peer = await stage.open()
        assert await peer.exactly(12 * 1000) == lab.frame(1, b"last words", masked=False) * 1000
        assert await peer.close_code() == 1011


async def test_nothing_is_injected_into_the_middle_of_a_frame(lab) -> None:
    async def half(peer) -> None:
        await peer.stream.send_all(
            lab.frame(1, b"whole", masked=False) + lab.frame(1, b"broken off", masked=False)[:5]
        )

    async with lab.gateway(await lab.raw(open_ended(lab, half))) as stage:
        peer = await stage.open()
        assert await peer.rest() == lab.frame(1, b"whole", masked=False) + b"\x81\x0abro"
        (end,) = await stage.witness.ends()
        assert (end.ended_by, end.code) == ("backend", None)


@pytest.mark.parametrize("sent", [b"", b"\x81\x84\0\0\0\0ab"], ids=["between frames", "in a frame"])
async def test_a_client_that_is_reset_is_gone_for_the_instance_too(lab, sent: bytes) -> None:
    gone = trio.Event()
    got = []

    async def until_gone(peer) -> None:
        got.append(await peer.rest())
        gone.set()

    instance = await lab.raw(open_ended(lab, until_gone))
    async with lab.gateway(await lab.instance("echo"), instance) as stage:
        async with lab.neighbour(stage, "/services/echo"):
            peer = await stage.open("/services/raw")
            await peer.stream.send_all(sent)
            await lab.eventually(lambda: stage.gateway.connections()[1].bytes_from_client == len(sent))
            peer.stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            await peer.stream.aclose()
            with trio.fail_after(60):
                await gone.wait()
            (end,) = await stage.witness.ends()
        assert (end.ended_by, end.code) == ("client", None)
        assert stage.gateway.active_connections(instance.instance_id) == 0
    assert got == [sent]


async def test_half_close_is_propagated_and_the_rest_is_delivered(lab) -> None:
    async def late(peer) -> None:
        assert await peer.rest() == lab.frame(1, b"last question")
        await peer.stream.send_all(lab.frame(1, b"late answer", masked=False))

    async with lab.gateway(await lab.raw(open_ended(lab, late))) as stage:
        peer = await stage.open()
        await peer.stream.send_all(lab.frame(1, b"last question"))
        await peer.stream.send_eof()
        assert await peer.rest() == lab.frame(1, b"late answer", masked=False)


async def test_disconnect_really_closes(lab) -> None:
    got = []

    async def listen(peer) -> None:
        got.append(await peer.rest())

    async with lab.gateway(await lab.raw(open_ended(lab, listen))) as stage:
        peer = await stage.open()
        (connection,) = stage.gateway.connections()
        stage.gateway.disconnect(connection.connection_id, reason="be gone")
        assert await peer.rest() == lab.frame(8, b"\x03\xf0be gone", masked=False)
        await peer.stream.aclose()
        (end,) = await stage.witness.ends()
        assert (end.ended_by, end.code, end.reason) == ("gateway", 1008, "be gone")
        with pytest.raises(ConnectionNotFound):
            stage.gateway.disconnect(connection.connection_id)
    # The instance sees a client that goes away; its frames are masked, with a key nobody can foresee.
    assert (got[0][:2], len(got[0])) == (b"\x88\x89", 15)


async def test_once_a_session_is_cut_its_instance_is_heard_no_more(lab) -> None:
    backends = []

    async def listen(peer) -> None:
        backends.append(peer)
        await peer.rest()

    instance = await lab.raw(open_ended(lab, listen))
    async with lab.gateway(instance) as stage:
        peers = [await stage.open() for _ in range(20)]
        while len(backends) < len(peers):
            await trio.lowlevel.checkpoint()
        stage.gateway.cut(instance.instance_id, for_good=True)
        for backend in backends:  # before anybody else has had a turn, as on a busy machine
            os.write(backend.stream.socket.fileno(), lab.frame(8, b"\x03\xf4", masked=False))
        assert {await peer.close_code() for peer in peers} == {1001}


async def test_disconnect_refuses_codes_that_must_not_be_sent(lab) -> None:
    async with lab.gateway(await lab.instance()) as stage:
        await stage.open()
        (connection,) = stage.gateway.connections()
        with pytest.raises(ValueError, match="close code"):
            stage.gateway.disconnect(connection.connection_id, code=1006)
        assert len(stage.gateway.connections()) == 1


async def test_a_close_that_falls_into_a_frame_comes_after_it(lab) -> None:
    rest = trio.Event()

    async def slow(peer) -> None:
        whole = lab.frame(1, b"a long message", masked=False)
        await peer.stream.send_all(whole[:6])
        await rest.wait()
        await peer.stream.send_all(whole[6:] + lab.frame(1, b"broken off", masked=False)[:4])
        await peer.rest()

    async with lab.gateway(await lab.raw(open_ended(lab, slow))) as stage:
        peer = await stage.open()
        await peer.exactly(6)
        stage.gateway.disconnect(stage.gateway.connections()[0].connection_id, code=4000)
        rest.set()
        assert await peer.rest() == b"ng message" + lab.frame(8, b"\x0f\xa0", masked=False)


@pytest.mark.parametrize("before", [b"", b"\x81\x82\0\0\0\0hi"], ids=["alone", "with a message"])
async def test_a_peer_that_does_not_answer_a_close_is_cut(lab, before: bytes) -> None:
    async def deaf(peer) -> None:
        await trio.sleep_forever()

    limits = GatewayLimits(close_timeout_s=0.1)
    healthy, mute = await lab.instance("echo"), await lab.raw(open_ended(lab, deaf))
    async with lab.gateway(healthy, mute, limits=limits) as stage:
        async with lab.neighbour(stage, "/services/echo"):
            peer = await stage.open("/services/raw")
            await peer.stream.send_all(before + lab.frame(8, b"\x03\xe8"))
            with trio.fail_after(60):
                assert await peer.rest() == b""
            (end,) = await stage.witness.ends()
        assert (end.ended_by, end.code) == ("client", 1000)


async def test_the_gateways_end_is_1001_for_all_in_batches(lab) -> None:
    limits = GatewayLimits(close_timeout_s=60, close_batch=10, close_pause_s=0.05)
    ended = []
    async with lab.gateway(await lab.instance(), limits=limits) as stage:

        async def collect(peer) -> None:
            ended.append((await peer.close_code(), trio.current_time()))
            await peer.stream.aclose()

        async with trio.open_nursery() as nursery:
            for _ in range(40):
                nursery.start_soon(collect, await stage.open())
            began = trio.current_time()
            await stage.shut_down()
        assert {code for code, _ in ended} == {1001}
        assert max(at for _, at in ended) - began > 0.1
        assert [end.code for end in stage.witness.closed] == [1001] * 40


async def test_sessions_relay_while_they_wait_for_their_farewell(lab) -> None:
    limits = GatewayLimits(close_timeout_s=60, close_batch=1, close_pause_s=0.3)
    async with lab.gateway(await lab.instance(), limits=limits) as stage:
        peers = [await stage.open() for _ in range(4)]
        still = 0

        async def talk(peer) -> None:
            nonlocal still
            await peer.stream.send_all(lab.frame(1, b"still"))
            rest = await peer.rest()
            still += rest.startswith(lab.frame(1, b"still", masked=False))
            assert rest.endswith(b"\x88\x1e\x03\xe9the gateway is shutting down"), rest
            await peer.stream.aclose()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(stage.shut_down)
            for peer in peers:
                nursery.start_soon(talk, peer)
        assert still >= 1


async def test_the_end_does_not_wait_for_those_who_do_not_answer(lab) -> None:
    async with lab.gateway(await lab.instance(), limits=GatewayLimits(close_timeout_s=0.2)) as stage:
        await stage.open()
        with trio.fail_after(60):
            await stage.shut_down()


async def test_drain_ends_the_idle_first_and_the_rest_at_the_deadline(lab) -> None:
    limits = GatewayLimits(drain_idle_s=0.4, close_timeout_s=60)
    instance, other = await lab.instance(), await lab.instance("other")
    ended = {}

    async def drain() -> None:
        await stage.gateway.drain(instance.instance_id, timeout_s=1.5)
        ended["drain"] = trio.current_time()

    async def idle(peer) -> None:
        assert await peer.close_code() == 1012
        await peer.stream.aclose()
        ended["idle"] = trio.current_time()

    async def busy(peer) -> None:
        talk = lab.frame(1, b"busy", masked=False)
        while True:
            await peer.stream.send_all(lab.frame(1, b"busy"))
            got = await peer.exactly(6)
            if got != talk:
                assert got[:4] == lab.frame(8, b"\x03\xf4" + bytes(got[1] - 2), masked=False)[:4]
                break
            await trio.sleep(0.02)
        await peer.stream.aclose()
        ended["busy"] = trio.current_time()

    async with lab.gateway(instance, other, limits=limits) as stage:
        async with lab.neighbour(stage, "/services/other"), trio.open_nursery() as nursery:
            began = trio.current_time()
            nursery.start_soon(busy, await stage.open("/services/echo"))
            nursery.start_soon(idle, await stage.open("/services/echo"))
            nursery.start_soon(drain)
        assert ended["idle"] - began < 1.4
        assert ended["busy"] - began > 1.4
        assert ended["drain"] - began > 1.4
        assert [end.code for end in stage.witness.closed[:2]] == [1012, 1012]


async def test_all_who_come_back_after_a_drain_find_a_place_and_no_instance_gets_too_many(lab) -> None:
    """Closed in batches, they come back as they are told, and nobody is refused."""
    limits = GatewayLimits(drain_idle_s=0, close_batch=5, close_pause_s=0.1, close_timeout_s=60)
    old = await lab.instance(instance_id="old", max_sessions=30)
    new = await lab.instance(instance_id="new", max_sessions=30)
    told, back = [], []
    async with lab.gateway(old, limits=limits) as stage:

        async def come_back(peer) -> None:
            assert await peer.close_code() == 1012
            told.append(trio.current_time())
            await peer.stream.aclose()
            back.append(await stage.open())
            assert stage.gateway.active_connections("new") <= 30

        async with trio.open_nursery() as nursery:
            for _ in range(30):
                nursery.start_soon(come_back, await stage.open())
            stage.gateway.update(RoutingTable((evolve(old, state=BackendState.DRAINING), new)))
            await stage.gateway.drain("old", timeout_s=60)
        assert stage.gateway.active_connections("old") == 0
        assert stage.gateway.active_connections("new") == len(back) == 30
        # Six batches have five pauses, of half their length at least; some of that is lost on a busy machine.
        assert max(told) - min(told) > 5 * limits.close_pause_s / 2 / 2


async def test_silence_ends_no_session_of_an_instance_that_knows_better(lab) -> None:
    instance = await lab.instance()
    async with lab.gateway(instance, limits=GatewayLimits(drain_idle_s=0)) as stage:
        peer = await stage.open()
        drain = partial(stage.gateway.drain, instance.instance_id, timeout_s=600, by_itself=True)
        stage.nursery.start_soon(drain)
        with trio.move_on_after(1) as patience:
            await peer.stream.receive_some()
        assert patience.cancelled_caught


async def test_a_drain_waits_for_connections_that_are_about_to_open(lab) -> None:
    asked, may_answer = trio.Event(), trio.Event()

    async def slow(request) -> None:
        asked.set()
        await may_answer.wait()
        websocket = await request.accept()
        await websocket.get_message()
        await websocket.aclose(1012)

    instance = await lab.instance(handler=slow)
    done = []

    async def drain() -> None:
        await stage.gateway.drain(instance.instance_id, timeout_s=60, by_itself=True)
        done.append(True)

    async with lab.gateway(instance) as stage, trio.open_nursery() as nursery:

        async def client() -> None:
            peer = await stage.open()
            await peer.stream.send_all(lab.frame(1, b"its turn"))
            assert await peer.close_code() == 1012

        nursery.start_soon(client)
        await asked.wait()
        nursery.start_soon(drain)
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert not done
        may_answer.set()


async def test_draining_nobody_is_done_at_once(lab) -> None:
    async with lab.gateway(await lab.instance()) as stage:
        with trio.fail_after(60):
            await stage.gateway.drain("nobody", timeout_s=600)


async def test_a_change_of_the_table_drops_no_session(lab) -> None:
    instance: Backend = await lab.instance()
    async with lab.gateway(instance) as stage, lab.neighbour(stage):
        for table in (
            RoutingTable(),
            RoutingTable((evolve(instance, state=BackendState.DOWN),)),
            RoutingTable((instance,)),
        ):
            stage.gateway.update(table)
            await trio.sleep(0.01)
        assert len(stage.gateway.connections()) == 1


async def test_a_gateway_that_is_cancelled_before_it_is_up_ends() -> None:
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    try:
        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(Gateway(RoutingTable()).serve, listeners)
                nursery.cancel_scope.cancel()
    finally:
        for listener in listeners:
            await listener.aclose()
