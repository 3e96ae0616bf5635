"""Who may connect to an agent's own port, and what is believed of them: real sockets, a real other user."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import pytest
import trio

from agentmgr.agent import server
from agentmgr.agent.door import Door
from agentmgr.core.proof import HEALTH_PATH, PROOF_HEADER, proof, sender_proof
from agentmgr.core.routing import Backend, RoutingTable
from agentmgr.proxy import Gateway, Identity
from agentmgr.testing.agents import bare_client, hosted
from agentmgr.websocket.head import RequestHead
from agentmgr.websocket.refusal import Refusal
from tests.conditions import read_to

KEY = "dGhlIHNhbXBsZSBub25jZQ=="
STRANGER = 54321
CLAIMS = (
    "X-Agentmgr-Identity: alice", "x_agentmgr_identity: alice", "X-Forwarded-For: 203.0.113.9",
    "X-Real-IP: 203.0.113.9", "X-Request-Id: mine", "X-Colour: red",
)  # fmt: skip

#: Made when the test runs: a proof is good for a minute, and the suite takes longer than that.
Lines = Callable[[], tuple[str, ...]]


async def reporting(message: str, session: Any) -> str:
    client = session.client
    return json.dumps([client.identity, client.address, sorted(client.headers)])


def upgrade(*lines: str, host: str = "localhost", target: str = "/", key: str = KEY) -> bytes:
    first = (f"GET {target} HTTP/1.1", f"Host: {host}", "Upgrade: websocket", "Connection: Upgrade")
    return "\r\n".join(
        (*first, f"Sec-WebSocket-Key: {key}", "Sec-WebSocket-Version: 13", *lines, "", "")
    ).encode()


def proven(token: str = "secret", subject: str = KEY, salt: str = "1") -> str:
    return f"{PROOF_HEADER}: {sender_proof(token, subject, now=time.monotonic(), salt=salt)}"


async def connect(url: str) -> trio.SocketStream:
    return await trio.open_tcp_stream("127.0.0.1", int(url.rpartition(":")[2]))


async def answer(url: str, request: bytes) -> tuple[int, dict[str, Any]]:
    """Status, and the body where there is one."""
    async with await connect(url) as stream:
        await stream.send_all(request)
        received = b""
        with trio.fail_after(30):
            while b"\r\n\r\n" not in received:
                received += await stream.receive_some()
            head, _, body = received.partition(b"\r\n\r\n")
            status = int(head.split()[1])
            while status != 101 and (data := await stream.receive_some()):
                body += data
        return status, json.loads(body) if status != 101 else {}


async def believes(stream: trio.SocketStream) -> list[Any]:
    """What the agent knows of the client of this WebSocket, whose handshake is done."""
    text = b'{"event":"user.message","content":"hi"}'
    await stream.send_all(bytes([0x81, 0x80 | len(text)]) + bytes(4) + text)
    received = b""
    with trio.fail_after(30):
        while not (found := re.search(rb'\{[^{}]*"agent.final_answer".*\}', received)):
            received += await stream.receive_some()
    reported: list[Any] = json.loads(json.loads(found[0])["content"])
    return reported


async def switched(url: str, request: bytes) -> trio.SocketStream:
    stream = await connect(url)
    await stream.send_all(request)
    received = b""
    with trio.fail_after(30):
        while not received.endswith(b"\r\n\r\n"):
            received += await stream.receive_some()
    assert received.startswith(b"HTTP/1.1 101 "), received
    return stream


async def test_the_gateway_is_believed_and_its_proof_goes_no_further() -> None:
    async with hosted(reporting, door=Door("secret")) as url:
        async with await switched(url, upgrade(proven(), *CLAIMS)) as stream:
            identity, address, headers = await believes(stream)
    assert (identity, address) == ("alice", "203.0.113.9")
    assert {"x-colour", "x-request-id"} < set(headers)
    assert PROOF_HEADER.lower() not in headers


async def test_a_direct_client_of_this_user_has_no_identity_and_no_other_address() -> None:
    async with hosted(reporting, door=Door("secret")) as url:
        async with await switched(url, upgrade(*CLAIMS)) as stream:
            identity, address, headers = await believes(stream)
    assert (identity, address) == (None, "127.0.0.1")
    assert "x-colour" in headers
    assert not {"x-forwarded-for", "x-real-ip", "x-request-id"} & set(headers)
    assert not [name for name in headers if "agentmgr" in name]


@pytest.mark.parametrize(
    ("lines", "shown"),
    [
        (lambda: (proven(), "X-Agentmgr-Connection: con_00ff"), "con_00ff"),
        (lambda: ("X-Agentmgr-Connection: con_00ff",), "lnk_"),
        (lambda: (proven(), 'X-Agentmgr-Connection: con_"'), "lnk_"),
        (lambda: (), "lnk_"),
    ],
    ids=["the gateway's", "not proven", "not an id", "without a gateway"],
)
async def test_a_client_sees_the_gateways_id_of_its_connection(lines: Lines, shown: str) -> None:
    ping = b'{"event":"ping"}'
    async with hosted(reporting, door=Door("secret")) as url, await connect(url) as stream:
        await stream.send_all(upgrade(*lines()) + bytes([0x81, 0x80 | len(ping)]) + bytes(4) + ping)
        received = b""
        with trio.fail_after(30):
            while b'"pong"' not in received:
                received += (data := await stream.receive_some())
                assert data, received
    greeting, of_event, of_pong = re.findall(rb'"connection_id":"(\w+)"', received)
    assert greeting == of_event == of_pong
    assert greeting.decode().startswith(shown)


@pytest.mark.parametrize(
    "line",
    [
        lambda: proven(token="another"),
        lambda: proven(subject="another key"),
        lambda: f"{PROOF_HEADER}: nonsense",
    ],
    ids=["another instance's", "another handshake's", "nonsense"],
)
async def test_a_wrong_proof_is_not_taken_for_a_direct_client(line: Callable[[], str]) -> None:
    async with hosted(reporting, door=Door("secret")) as url:
        status, body = await answer(url, upgrade(line(), *CLAIMS))
    assert (status, body["code"]) == (421, "wrong_proof")


async def test_a_handshake_that_was_observed_cannot_be_made_again() -> None:
    request = upgrade(proven(), *CLAIMS)
    async with hosted(reporting, door=Door("secret")) as url:
        assert (await answer(url, request))[0] == 101
        assert (await answer(url, request))[0] == 421


@pytest.mark.parametrize(
    ("lines", "host", "code"),
    [
        ((), "localhost:8081", None),
        ((), "127.0.0.1", None),
        ((), "[::1]:8081", None),
        (("Origin: http://localhost:3000",), "localhost", None),
        (("Origin: http://evil.example",), "localhost", "origin_not_allowed"),
        (("Origin: null",), "localhost", "origin_not_allowed"),
        (("Origin: http://evil.example",), "evil.example", "origin_not_allowed"),
        ((), "evil.example", "host_not_allowed"),
        ((), "localhost.evil.example", "host_not_allowed"),
        ((), "", "bad_request"),
    ],
)
async def test_pages_of_elsewhere_are_refused(lines: tuple[str, ...], host: str, code: str | None) -> None:
    async with hosted(reporting, door=Door("secret")) as url:
        status, body = await answer(url, upgrade(*lines, host=host))
    statuses = {None: 101, "bad_request": 400}
    assert (status, body.get("code")) == (statuses.get(code, 403), code)


async def test_its_user_may_allow_more() -> None:
    allowing = Door(allowed_origins=["https://app.example/"])
    async with hosted(reporting, door=allowing) as url:
        assert (await answer(url, upgrade("Origin: https://app.example")))[0] == 101
        assert (await answer(url, upgrade("Origin: https://evil.example")))[0] == 403
    async with hosted(reporting, door=Door(any_machine=True)) as url:
        assert (await answer(url, upgrade(host="this.machine.example")))[0] == 101
        assert (await answer(url, upgrade("Origin: https://evil.example")))[0] == 403


@contextmanager
def another_user(url: str, request: bytes) -> Iterator[subprocess.Popen[bytes]]:
    """A process of another user that sends this and prints what it gets."""
    script = f"""
import encodings.idna, os, socket, sys  # later it may not read the standard library
os.setuid({STRANGER})
sock = socket.create_connection(("127.0.0.1", {int(url.rpartition(":")[2])}))
sock.sendall({request!r})
sock.settimeout(10)
while data := sock.recv(4096):
    os.write(1, data)
    if b" 101 " in data:
        break
"""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as process:
        yield process


async def answer_to_another_user(url: str, request: bytes) -> bytes:
    with another_user(url, request) as process:
        said, _ = await trio.to_thread.run_sync(process.communicate)
    assert isinstance(said, bytes)
    return said


needs_root = pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")


@needs_root
async def test_another_user_cannot_take_all_the_places_of_those_whose_request_is_on_its_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(server, "MANY_WAITING", 2)
    half = upgrade()[:30]
    async with hosted(reporting, door=Door("secret")) as url:
        async with await connect(url) as one, await connect(url) as another:
            await one.send_all(half)
            await another.send_all(half)
            assert await answer_to_another_user(url, upgrade()) == b""
            async with await switched(url, upgrade(proven())):
                pass
        assert (await answer_to_another_user(url, upgrade())).startswith(b"HTTP/1.1 403 ")


@needs_root
async def test_another_user_of_the_machine_is_refused_and_hears_where_to_go() -> None:
    async with hosted(reporting, door=Door("secret")) as url:
        said = await answer_to_another_user(url, upgrade(*CLAIMS))
        assert said.startswith(b"HTTP/1.1 403 ")
        assert b"user_not_allowed" in said
        assert b"use the gateway" in said
        assert (await answer_to_another_user(url, upgrade(proven(), *CLAIMS))).startswith(b"HTTP/1.1 101 ")
    async with hosted(reporting, door=Door(any_machine=True)) as url:
        assert (await answer_to_another_user(url, upgrade())).startswith(b"HTTP/1.1 101 ")


async def test_where_the_kernel_does_not_say_whose_it_is_the_connection_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("agentmgr.agent.door.peer_uid", lambda sock: None)
    async with hosted(reporting, token="secret", door=Door("secret")) as url:
        status, body = await answer(url, upgrade())
        assert (status, body["code"]) == (403, "user_not_allowed")
        # A probe gets its proof all the same: by the challenge of a manager of today, or of yesterday.
        target = f"{HEALTH_PATH}?challenge=00ff"
        plain = f"GET {target} HTTP/1.1\r\nHost: x\r\n"
        _, report = await answer(url, f"{plain}\r\n".encode())
        assert report == {"proof": proof("secret", "00ff"), "status": "healthy"}
        _, report = await answer(url, f"{plain}{proven(subject=target)}\r\n\r\n".encode())
        assert report["sessions"] == 0


async def test_only_hexadecimal_challenges_are_answered() -> None:
    async with hosted(reporting, token="secret", door=Door("secret")) as url:
        nonce = sender_proof("secret", KEY, now=1.0, salt="s").partition(" ")[0]
        target = f"{HEALTH_PATH}?challenge={nonce}%20{KEY}"
        _, report = await answer(url, f"GET {target} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    assert report["proof"] is None


async def test_a_plain_probe_keeps_its_connection_if_it_asks_for_that() -> None:
    class NeverSays:
        def on_message(self, session: Any, message: str) -> str:
            return message

        async def check_health(self) -> None:
            await trio.sleep_forever()

    target = f"{HEALTH_PATH}?challenge=00ff&only=proof"
    async with hosted(NeverSays(), token="secret", door=Door("secret")) as url, await connect(url) as stream:
        await stream.send_all(
            f"GET {target} HTTP/1.1\r\nHost: localhost\r\nConnection: keep-alive\r\n\r\n".encode()
        )
        assert proof("secret", "00ff").encode() in await read_to(stream, b"}")
        await stream.send_all(upgrade(proven()))
        assert (await read_to(stream, b"\r\n\r\n")).startswith(b"HTTP/1.1 101 ")


class Doors:
    """An authenticator that knows one token."""

    required = True

    async def bearer(self, token: str) -> Identity | None:
        await trio.lowlevel.checkpoint()
        return Identity("alice") if token == "good" else None

    async def ticket(self, ticket: str) -> Identity | None:
        raise NotImplementedError


@asynccontextmanager
async def served(gateway: Gateway) -> AsyncIterator[str]:
    """Its address."""
    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listener, trio.open_nursery() as nursery:
        await nursery.start(gateway.serve, [listener])
        yield f"ws://127.0.0.1:{listener.socket.getsockname()[1]}"
        nursery.cancel_scope.cancel()


async def test_a_gateway_proves_itself_with_the_token_of_its_table() -> None:
    claims = dict(line.split(": ") for line in CLAIMS)
    claims |= {"Authorization": "Bearer good", PROOF_HEADER: "made up"}
    async with hosted(reporting, door=Door("secret")) as url:
        port = int(url.rpartition(":")[2])
        for token, identity in (("secret", "alice"), ("", None)):
            table = RoutingTable((Backend.at("127.0.0.1", port, token=token),))
            async with served(Gateway(table, authenticator=Doors())) as front:
                async with bare_client(front, claims) as client:
                    found = json.loads((await client.ask("hi"))["content"])
            assert found[:2] == [identity, "127.0.0.1"]


async def test_an_instance_that_was_started_anew_takes_the_client_as_soon_as_the_table_knows(
    nursery: trio.Nursery,
) -> None:
    refused = trio.Event()

    class Refusing(Door):
        def admit(self, request: RequestHead, sock: trio.socket.SocketType, subject: str) -> bool:
            try:
                return super().admit(request, sock, subject)
            except Refusal:
                refused.set()
                raise

    async with hosted(reporting, door=Refusing("the new one's")) as url:
        port = int(url.rpartition(":")[2])
        gateway = Gateway(RoutingTable((Backend.at("127.0.0.1", port, token="the old one's"),)))

        async def news() -> None:
            await refused.wait()
            gateway.update(RoutingTable((Backend.at("127.0.0.1", port, token="the new one's"),)))

        async with served(gateway) as front:
            nursery.start_soon(news)
            async with bare_client(front) as client:
                assert (await client.ask("hi"))["event"] == "agent.final_answer"


def test_a_token_is_never_shown() -> None:
    assert "secret" not in repr(Backend.at("127.0.0.1", 1, token="secret"))


async def test_headers_that_a_client_repeats_are_joined_for_the_agent() -> None:
    async def teams(message: str, session: Any) -> str:
        return json.dumps([session.client.headers["x-team"]])

    async with hosted(teams, door=Door("secret")) as url:
        async with await switched(url, upgrade("X-Team: blue", "x-team: red")) as stream:
            assert await believes(stream) == ["blue, red"]
