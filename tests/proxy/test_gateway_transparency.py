"""Other people's WebSocket implementations hold the same conversation straight and through the gateway."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from functools import partial
from typing import Any

import pytest
import trio
from trio_websocket import ConnectionClosed, open_websocket_url
from websockets.asyncio.client import connect
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed as WebsocketsClosed
from websockets.exceptions import InvalidStatus
from websockets.http11 import Request, Response

LONG = "spam, eggs and ham; " * 20_000

Dialogue = Callable[[str], dict[str, Any]]


async def answer(websocket: ServerConnection) -> None:
    """Echoes; `close` closes with words of its own, `pieces` sends a message in three frames."""
    with suppress(WebsocketsClosed):
        await _answer(websocket)


async def _answer(websocket: ServerConnection) -> None:
    async for message in websocket:
        if message == "close":
            await websocket.close(4321, "own words, gr\u00fcn")
        elif message == "pieces":
            await websocket.send(["a", "b", "c"])
        else:
            await websocket.send(message)


def judge(websocket: ServerConnection, request: Request) -> Response | None:
    if request.path == "/forbidden":
        return websocket.respond(403, "not here\n")
    return None


def mark(websocket: ServerConnection, request: Request, response: Response) -> None:
    response.headers["Set-Cookie"] = "seen=1"
    response.headers["X-Path"] = request.path


@pytest.fixture
async def server_port(nursery: trio.Nursery) -> AsyncIterator[int]:
    """A server of the `websockets` library, on asyncio, in a thread of its own."""
    port: list[int] = []
    started, stop = trio.Event(), asyncio.Event()
    token, loop = trio.lowlevel.current_trio_token(), asyncio.new_event_loop()

    async def main() -> None:
        options = {"process_request": judge, "process_response": mark, "subprotocols": ["chat.v2"]}
        async with serve(answer, "127.0.0.1", 0, max_size=None, **options) as server:
            port.append(server.sockets[0].getsockname()[1])
            token.run_sync_soon(started.set)
            await stop.wait()

    nursery.start_soon(
        partial(trio.to_thread.run_sync, loop.run_until_complete, main(), abandon_on_cancel=True)
    )
    await started.wait()
    yield port[0]
    with trio.CancelScope(shield=True):
        loop.call_soon_threadsafe(stop.set)
        while loop.is_running():  # noqa: ASYNC110
            await trio.sleep(0.005)
        loop.close()


def with_websockets(url: str) -> dict[str, Any]:
    async def talk() -> dict[str, Any]:
        seen: dict[str, Any] = {}
        options: dict[str, Any] = {"subprotocols": ["chat.v1", "chat.v2"], "max_size": None, "proxy": None}
        async with connect(url + "/a%20b?x=%0a", **options) as websocket:
            assert websocket.response is not None
            seen["subprotocol"] = websocket.subprotocol
            seen["extensions"] = [extension.name for extension in websocket.protocol.extensions]
            seen["cookie"] = websocket.response.headers["Set-Cookie"]
            seen["path"] = websocket.response.headers["X-Path"]
            for message in ("gr\u00fcn", "", LONG, b"\x00\xff", b""):
                await websocket.send(message)
                assert await websocket.recv() == message
            await websocket.send(["frag", "men", "ted"])
            seen["fragmented"] = await websocket.recv()
            await websocket.send("pieces")
            seen["pieces"] = [part async for part in websocket.recv_streaming()]
            await (await websocket.ping(b"are you there"))
            await websocket.send("close")
            with pytest.raises(WebsocketsClosed) as caught:
                await websocket.recv()
            assert caught.value.rcvd is not None
            seen["close"] = (caught.value.rcvd.code, caught.value.rcvd.reason)
        async with connect(url, compression=None, **options) as websocket:
            seen["uncompressed"] = [extension.name for extension in websocket.protocol.extensions]
            await websocket.close(3001, "mine")
            seen["own close"] = (websocket.close_code, websocket.close_reason)
        with pytest.raises(InvalidStatus) as refused:
            await connect(url + "/forbidden", proxy=None)
        seen["refusal"] = (refused.value.response.status_code, refused.value.response.body)
        return seen

    return asyncio.run(talk())


def with_wsproto(url: str) -> dict[str, Any]:
    async def talk() -> dict[str, Any]:
        seen: dict[str, Any] = {}
        async with open_websocket_url(url + "/a?x=1", subprotocols=["chat.v2"]) as websocket:
            seen["subprotocol"] = websocket.subprotocol
            headers = dict(websocket.handshake_headers)
            seen["headers"] = (headers[b"set-cookie"], headers[b"x-path"])
            for message in ("gr\u00fcn", LONG, b"\x00\xff"):
                await websocket.send_message(message)
                assert await websocket.get_message() == message
            await websocket.ping(b"!")
            await websocket.send_message("close")
            with pytest.raises(ConnectionClosed) as caught:
                await websocket.get_message()
            seen["close"] = (caught.value.reason.code, caught.value.reason.reason)
            await websocket._close_stream()  # trio-websocket leaves it to the garbage collector
        return seen

    return trio.run(talk)


NODE = """
const seen = {}, url = process.argv[1], long = "spam, eggs and ham; ".repeat(20000);
const ws = new WebSocket(url + "/a%20b?x=1", ["chat.v1", "chat.v2"]);
ws.binaryType = "arraybuffer";
const bytes = new Uint8Array([0, 255]);
const steps = ["gr\\u00fcn", "", long, bytes, "pieces", "close"];
seen.echoes = [];
ws.onopen = () => {
  seen.protocol = ws.protocol;
  seen.deflate = ws.extensions.startsWith("permessage-deflate");
  ws.send(steps.shift());
};
ws.onmessage = ({data}) => {
  seen.echoes.push(typeof data === "string" ? data.length + data.slice(0, 5) : [...new Uint8Array(data)]);
  ws.send(steps.shift());
};
ws.onclose = ({code, reason, wasClean}) => {
  Object.assign(seen, {code, reason, wasClean});
  console.log(JSON.stringify(seen));
};
"""


def with_node(url: str) -> dict[str, Any]:
    command = ["node", "--no-warnings", "--experimental-websocket", "--input-type=module", "-e", NODE, url]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    return json.loads(ran.stdout)


CLIENTS = [
    pytest.param(
        with_websockets,
        {
            "subprotocol": "chat.v2",
            "extensions": ["permessage-deflate"],
            "cookie": "seen=1",
            "path": "/a%20b?x=%0a",
            "fragmented": "fragmented",
            "pieces": ["a", "b", "c", ""],
            "close": (4321, "own words, gr\u00fcn"),
            "uncompressed": [],
            "own close": (3001, "mine"),
            "refusal": (403, b"not here\n"),
        },
        id="websockets",
    ),
    pytest.param(
        with_wsproto,
        {
            "subprotocol": "chat.v2",
            "headers": (b"seen=1", b"/a?x=1"),
            "close": (4321, "own words, gr\u00fcn"),
        },
        id="wsproto",
    ),
    pytest.param(
        with_node,
        {
            "protocol": "chat.v2",
            "deflate": True,
            "echoes": ["4gr\u00fcn", "0", "400000spam,", [0, 255], "3abc"],
            "code": 4321,
            "reason": "own words, gr\u00fcn",
            "wasClean": True,
        },
        id="node",
        marks=pytest.mark.skipif(shutil.which("node") is None, reason="needs Node.js 20 or newer"),
    ),
]


@pytest.mark.parametrize(("dialogue", "expected"), CLIENTS)
async def test_the_gateway_makes_no_difference(
    lab, server_port: int, dialogue: Dialogue, expected: dict[str, Any]
) -> None:
    async with lab.gateway(lab.backend(server_port)) as stage:
        through = await trio.to_thread.run_sync(dialogue, stage.url)
        straight = await trio.to_thread.run_sync(dialogue, f"ws://127.0.0.1:{server_port}")
        assert through == straight
        assert {key: value for key, value in through.items() if key in expected} == expected
