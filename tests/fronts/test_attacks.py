"""Clients that mean no good, or do not behave: what they get, and that nothing is left of them."""

from __future__ import annotations

import gc
from itertools import count
from pathlib import Path

import pytest
import trio

from agentmgr.agent.limits import SessionLimits
from agentmgr.fronts import http
from agentmgr.models.host_config import OnDisconnect
from agentmgr.proxy import GatewayLimits
from tests.fronts.conftest import Stage, request

HELLO = {"model": "echo", "messages": [{"role": "user", "content": "hi"}]}
CHAT = "/v1/chat/completions"
CLOSE = {"Connection": "close"}
CANCEL = SessionLimits(on_disconnect=OnDisconnect.CANCEL)
MODELS = request("GET", "/v1/models", None, CLOSE)


def status(answer: bytes) -> int:
    return int(answer.split()[1])


class Base:
    """How much of everything there is; `reached` waits until it is no more than that."""

    def __init__(self, stage: Stage, *, tasks: bool = True) -> None:
        """`tasks`: also of the host, where each session that stays has some."""
        self._stage = stage
        self._tasks = tasks
        self._now = self._count()

    def _count(self) -> tuple[int, int]:
        gc.collect()
        tasks = trio.lowlevel.current_statistics().tasks_living
        return len(list(Path("/proc/self/fd").iterdir())), tasks if self._tasks else 0

    async def reached(self) -> None:
        await self._stage.at_base()
        with trio.fail_after(30):
            while any(now > before for now, before in zip(self._count(), self._now, strict=True)):  # noqa: ASYNC110
                await trio.sleep(0.01)


async def warm(stage: Stage, *, tasks: bool = True) -> Base:
    assert (await stage.say("first"))[0] == 200
    await stage.at_base()
    await trio.sleep(0.1)  # sockets that close
    return Base(stage, tasks=tasks)


@pytest.mark.parametrize("keyed", [False, True])
async def test_of_a_client_that_leaves_at_any_byte_nothing_is_left(stage_of, keyed):
    sessions = []
    numbers = count(10_000)

    def whole() -> bytes:
        key = {"X-Session-Id": str(next(numbers))} if keyed else {}
        return request("POST", CHAT, HELLO | {"stream": True}, CLOSE | key)

    async def agent(message, session):
        sessions.append(session)
        yield "one "
        yield "two"

    async with stage_of(agent) as stage:
        base = await warm(stage, tasks=not keyed)
        answer = await stage.raw(whole())

        async def leave_behind(received: int) -> None:
            async with await stage.send(whole()) as stream:
                got = 0
                while got < received and (more := await stream.receive_some(received - got)):
                    got += len(more)

        async def leave_within(sent: int) -> None:
            async with await stage.send(whole()[:sent]):
                pass

        for leave, size in ((leave_within, len(whole())), (leave_behind, len(answer))):
            cuts = range(1, size, 11 if keyed else 3)  # each end of a line or of a chunk is cut somewhere
            for begin in range(0, len(cuts), 20):
                async with trio.open_nursery() as nursery:
                    for cut in cuts[begin : begin + 20]:
                        nursery.start_soon(leave, cut)
        await base.reached()
        with trio.fail_after(60):
            for session in sessions:
                if session.name is None:
                    await session.gone.wait()
        assert (await stage.say())[0] == 200


async def test_half_a_connection_is_as_good_as_none(stage_of):
    async def slow(message, session):
        if message != "first":
            await trio.sleep_forever()
        yield ""

    async with stage_of(slow, host={"limits": CANCEL}) as stage:
        base = await warm(stage)
        async with await stage.send(request("POST", CHAT, HELLO)) as stream:
            while not stage.gateway.connections():  # noqa: ASYNC110
                await trio.sleep(0.005)
            await stream.send_eof()
            with trio.fail_after(60):
                assert await stream.receive_some() == b""
        await base.reached()


async def test_heads_and_bodies_that_trickle_are_cut_off_in_time(stage_of):
    limits = GatewayLimits(head_timeout_s=0.3, stall_timeout_s=0.3, close_timeout_s=0.3)

    async def trickle(data: bytes) -> bytes:
        async with await stage.send(data) as stream:

            async def send() -> None:
                while True:
                    await stream.send_all(b"a")
                    await trio.sleep(0.02)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(send)
                try:
                    return await stream.receive_some()
                except trio.BrokenResourceError:
                    return b""
                finally:
                    nursery.cancel_scope.cancel()

    async with stage_of(limits=limits) as stage:
        base = await warm(stage)
        with trio.fail_after(60):
            assert status(await trickle(b"GET /v1/models HTTP/1.1\r\nHost: a\r\nX: ")) == 408
            body = request("POST", CHAT, None, {"Content-Type": "application/json", "Content-Length": "9999"})
            assert status(await trickle(body)) == 408
            async with await stage.send(request("GET", "/v1/models")) as stream:
                assert status(await stream.receive_some()) == 200
                await stream.send_all(b"GET /v1/mod")  # the next one never comes
                assert await stream.receive_some() == b""
        await base.reached()


async def test_idle_connections_are_closed_after_a_while(stage_of, monkeypatch):
    monkeypatch.setattr(http, "IDLE_S", 0.3)
    async with stage_of() as stage:
        base = await warm(stage)

        async def idle() -> None:
            async with await stage.send(request("GET", "/v1/models")) as stream:
                assert status(await stream.receive_some()) == 200
                assert await stream.receive_some() == b""

        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                for _ in range(300):
                    nursery.start_soon(idle)
        await base.reached()


async def test_many_requests_at_once_on_one_connection_are_answered_in_turn(stage_of):
    async with stage_of() as stage:
        base = await warm(stage)
        answer = await stage.raw(request("GET", "/v1/models") * 999 + MODELS)
        assert answer.count(b"HTTP/1.1 200 ") == 1000
        talk = request("POST", CHAT, HELLO | {"stream": True}) + request("POST", CHAT, HELLO, CLOSE)
        answer = await stage.raw(talk)
        assert answer.count(b"HTTP/1.1 200 ") == 2
        assert answer.index(b"[DONE]") < answer.rindex(b"HTTP/1.1 200 ")
        await base.reached()


async def test_what_comes_behind_a_stream_without_end_waits_in_the_kernel(stage_of):
    async def endless(message, session):
        while message != "first":
            yield "."
            await trio.sleep(0.01)

    limits = GatewayLimits(early_bytes=10_000, close_timeout_s=0.5)
    async with stage_of(endless, limits=limits, host={"limits": CANCEL}) as stage:
        base = await warm(stage)
        async with await stage.send(request("POST", CHAT, HELLO | {"stream": True})) as stream:
            with trio.move_on_after(0.5) as patience:
                await stream.send_all(request("GET", "/v1/models") * 300_000)
            assert patience.cancelled_caught
            assert b"HTTP/1.1 200 " in await stream.receive_some()
        await base.reached()


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        (b"HEAD /v1/models HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", 200),
        (b"TRACE /v1/models HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", 405),
        (b"CONNECT /v1/models HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", 405),
        (b"OPTIONS /v1/models HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", 200),
        (b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET http://a/v1/models HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET /v1/models HTTP/1.0\r\nHost: a\r\n\r\n", 400),
        (b"GET /v1/models HTTP/2.0\r\nHost: a\r\n\r\n", 400),
        (b"GET /v1/models HTTP/1.1\r\n\r\n", 400),
        (b"GET /v1/models HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
        (b"GET /v1/models HTTP/1.1\r\nHost: a\r\nX-Session-Id: a\nb\r\n\r\n", 400),
        (b"GET /v1/models HTTP/1.1\r\nHost: a\r\nX-Session-Id: a\rb\r\n\r\n", 400),
        (b"GET /v1/models HTTP/1.1\r\nHost: a\r\nX-Session-Id: a\0b\r\n\r\n", 400),
        (b"GET /v1/models HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 20_000 + b"\r\n\r\n", 431),
        (b"GET /v1/models HTTP/1.1\r\nHost: a\r\n" + b"X: a\r\n" * 200 + b"\r\n", 431),
        (b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
         b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}", 400),
        (b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
         b"Content-Length: +2\r\n\r\n{}", 400),
        (b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
         b"Content-Length: " + b"9" * 5000 + b"\r\n\r\n{}", 400),
        (b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
         b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 400),
        (b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
         b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
         b"Transfer-Encoding: chunked\r\n\r\nxyz\r\n", 400),
        (b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
         b"Transfer-Encoding: chunked\r\n\r\n2;" + b"a" * 100_000 + b"\r\n{}\r\n0\r\n\r\n", 400),
    ],
)  # fmt: skip
async def test_requests_that_could_be_read_in_two_ways_are_refused(stage_of, asked, expected, caplog):
    async with stage_of() as stage:
        assert status(await stage.raw(asked)) == expected
        assert status(await stage.raw(MODELS)) == 200
    assert "internal error" not in caplog.text


async def test_a_chunked_body_may_have_trailers_and_is_followed_by_the_next_request(stage_of):
    async with stage_of() as stage:
        data = request("POST", CHAT, HELLO).partition(b"\r\n\r\n")[2]
        head = request(
            "POST", CHAT, None, {"Content-Type": "application/json", "Transfer-Encoding": "chunked"}
        )
        chunks = b"".join(b"1;a=b\r\n%b\r\n" % data[at : at + 1] for at in range(len(data)))
        body = head + chunks + b"0\r\nX-Trailer: GET /v1/smuggled HTTP/1.1\r\n\r\n"
        answer = await stage.raw(body + MODELS)
        assert answer.count(b"HTTP/1.1 200 ") == answer.count(b"HTTP/1.1 ") == 2
        assert b"you said hi" in answer


async def test_no_answer_to_a_head_request_has_a_body(stage_of):
    async with stage_of() as stage:
        for path in ("/v1/models", "/v1/nothing"):
            head = b"HEAD %b HTTP/1.1\r\nHost: a\r\n\r\n" % path.encode()
            answer = await stage.raw(head + MODELS)
            first, _, rest = answer.partition(b"\r\n\r\n")
            assert b"content-length" in first.lower()
            assert rest.startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize(
    "key",
    ["\r\nX-Evil: 1", "a\0b", "\x1b[31m", "é中\U0001f600", "\ud800", "x" * 10_000, "../..", "'; --", " "],
)
async def test_a_key_may_be_any_text_and_is_nothing_but_a_name(stage_of, key):
    heads = []

    async def agent(message, session):
        heads.append(session.client.headers)
        yield f"{len(session.history)} before"

    async with stage_of(agent) as stage:
        messages = []
        for turn in range(2):
            messages.append({"role": "user", "content": "hi"})
            body = HELLO | {"messages": messages, "metadata": {"session_id": key}}
            found, _, said = await stage.ask("POST", CHAT, body)
            if found == 400:
                assert said["error"]["code"] in ("invalid_json", "invalid_name")
                break
            assert (found, said["choices"][0]["message"]["content"]) == (200, f"{2 * turn} before")
            messages.append(said["choices"][0]["message"])
        assert not any("x-evil" in head for head in heads)
        await stage.at_base()


@pytest.mark.parametrize(
    "model", ["\r\nX-Evil: 1", "a?b=c", "../echo", "echo/../echo", "é", "\0", "x" * 50_000]
)
async def test_a_model_may_be_any_text_and_names_a_service_or_none(stage_of, model):
    async with stage_of() as stage:
        for name in (model, f"tag:{model}"):
            found, _, body = await stage.say(model=name)
            assert found in (400, 404, 431, 503), body
            assert body["error"]["message"]
        await stage.at_base()


async def test_a_browser_that_is_led_here_by_another_page_cannot_ask(stage_of):
    data = HELLO
    async with stage_of() as stage:
        for headers in (
            {"Origin": "http://evil.example"},
            {"Origin": "http://evil.example", "Content-Type": "text/plain"},
            {"Origin": "null"},
            {"Host": "evil.example", "Origin": "http://evil.example"},
            {"Host": "localhost.evil.example", "User-Agent": "Mozilla/5.0"},
        ):
            found, answer, body = await stage.ask("POST", CHAT, data, headers)
            assert (found, body["error"]["code"]) == (403, "origin_not_allowed")
            assert not any(name.startswith("access-control-") for name in answer)
        found, _, body = await stage.ask("POST", CHAT, data, {"Content-Type": "text/plain"})
        assert (found, body["error"]["code"]) == (415, "unsupported_media_type")


async def test_the_consoles_cookie_opens_nothing_here_and_goes_to_no_agent(stage_of):
    seen = []

    async def agent(message, session):
        seen.append(session.client.headers.get("cookie"))
        yield "."

    async with stage_of(agent) as stage:
        cookie = {"Cookie": "agentmgr_console=secret; theme=dark"}
        assert (await stage.say(headers=cookie))[0] == 200
        assert seen == ["theme=dark"]
