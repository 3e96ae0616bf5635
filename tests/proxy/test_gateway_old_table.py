"""A gateway that goes on by its last table sends nothing of a client to a stranger on an instance's port."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from typing import Any

import pytest
import trio

from agentmgr.agent.door import Door
from agentmgr.core.proof import HEALTH_PATH, proof
from agentmgr.core.routing import Backend, RoutingTable
from agentmgr.process.peer import listener_uid
from agentmgr.testing.agents import bare_client, hosted
from tests.conditions import read_to

from .conftest import Lab

SECRETS = ("Authorization: Bearer good", "Cookie: login=secret", "X-Session-Id: ses_x.ins_y")
STRANGER = 54321


async def echo(message: str) -> str:
    return message


def answering(body: str, *, stays: bool = True) -> bytes:
    connection = "keep-alive" if stays else "close"
    return (
        f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\nConnection: {connection}\r\n\r\n{body}".encode()
    )


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 101 S\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
        answering(json.dumps({"proof": proof("another token", "00ff"), "status": "healthy"})),
        answering(json.dumps({"proof": None})),
        answering("[" * 3000),
        answering("nonsense"),
        b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 9999999999\r\n\r\n" + b"x" * 20_000,
        b"x" * 20_000,
        b"",
    ],
)
async def test_a_stranger_in_the_place_of_an_agent_gets_a_challenge_and_no_more(
    lab: Lab, answer: bytes
) -> None:
    heard = b""

    async def stranger(stream: trio.SocketStream) -> None:
        nonlocal heard
        heard += await read_to(stream, b"\r\n\r\n")
        await stream.send_all(answer)
        await stream.send_eof()
        async for data in stream:
            heard += data

    backend = await lab.raw(stranger, token="secret")
    async with lab.gateway(backend) as stage:
        stage.gateway.table_is_old()
        status, code, _ = await stage.refusal(lab.upgrade("/my/path?ticket=1", *SECRETS))
        assert (status, code) == (502, "bad_gateway")
    challenge = rf"GET {re.escape(HEALTH_PATH)}\?challenge=[0-9a-f]{{32}}&only=proof HTTP/1.1\r\n"
    asked = rf"{challenge}Host: localhost\r\nConnection: keep-alive\r\n\r\n"
    assert re.fullmatch(f"(?:{asked})+", heard.decode())


async def test_the_agent_itself_takes_clients_on_the_connection_on_which_it_proved_itself(lab: Lab) -> None:
    async with hosted(echo, token="secret", door=Door("secret")) as url:
        backend = Backend.at("127.0.0.1", int(url.rpartition(":")[2]), token="secret")
        async with lab.gateway(backend) as stage:
            stage.gateway.table_is_old()
            async with bare_client(stage.url) as client:
                assert (await client.ask("hi"))["content"] == "hi"


async def test_an_agent_of_an_older_version_closes_after_its_proof_and_is_dialled_again(lab: Lab) -> None:
    async def old(stream: trio.SocketStream) -> None:
        peer = lab.Peer(stream)
        head = (await peer.until(b"\r\n\r\n")).decode()
        if challenge := re.search(r"challenge=([0-9a-f]+)", head):
            body = json.dumps({"proof": proof("secret", challenge[1]), "status": "healthy", "turns": 0})
            await stream.send_all(answering(body, stays=False))
        else:
            await stream.send_all(lab.switching())
            await peer.rest()

    backend = await lab.raw(old, token="secret")
    async with lab.gateway(backend) as stage:
        stage.gateway.table_is_old()
        await stage.open()


async def test_with_a_new_table_nothing_has_to_be_proved(lab: Lab) -> None:
    backend = await lab.instance(token="secret")  # it knows of no proofs
    async with lab.gateway(backend) as stage:
        stage.gateway.table_is_old()
        assert (await stage.refusal(lab.upgrade()))[0] == 502
        stage.gateway.update(RoutingTable((backend,)))
        await stage.open()


async def test_a_command_whose_port_still_has_its_owner_is_dialled(lab: Lab) -> None:
    async with lab.gateway(await lab.instance()) as stage:
        stage.gateway.table_is_old()
        await stage.open()


async def test_a_commands_port_with_another_owner_is_not_talked_to(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[bytes] = []

    async def stranger(stream: trio.SocketStream) -> None:
        heard.append(await stream.receive_some())

    async with lab.gateway(await lab.raw(stranger)) as stage:
        stage.gateway.table_is_old()
        monkeypatch.setattr("agentmgr.proxy.proving.listener_uid", lambda host, port: STRANGER)
        assert (await stage.refusal(lab.upgrade("/", *SECRETS)))[0] == 502
    assert not any(heard)


def test_whose_a_listening_socket_is() -> None:
    script = """
import os, socket, sys
os.setuid(int(sys.argv[1]))
with socket.socket() as sock:
    sock.bind(("127.0.0.1", 0))
    sock.listen()
    print(sock.getsockname()[1], flush=True)
    sys.stdin.read()
"""
    for uid in {os.getuid(), STRANGER if os.getuid() == 0 else os.getuid()}:
        command: list[Any] = [sys.executable, "-c", script, str(uid)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            port = int(process.stdout.readline())
            assert listener_uid("127.0.0.1", port) == uid
            process.stdin.close()
            process.wait()
            assert listener_uid("127.0.0.1", port) is None
    assert listener_uid("no address", 1) is None
