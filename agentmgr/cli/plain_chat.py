"""`agentmgr chat` with a WebSocket server that is no agent, as a command's may be: plain text both ways."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Mapping

import trio
from trio_websocket import WebSocketConnection

from ..client.session import CLOSE_TIMEOUT_S
from ..client.transport import CannotConnect, with_connection
from ..errors import AgentUnreachable
from .out import note, say
from .terminal import InputLines

_ANSWER_S = 1.0  #: a person waits so long for an answer before the next prompt; a script, until it is there


async def talk(
    url: str,
    headers: Mapping[str, str],
    ssl_context: ssl.SSLContext | None,
    once: str | None,
    interrupts: AsyncIterator[int],
) -> None:
    """Sends each line as a message, and shows each message that comes, until the input ends or Ctrl-C.

    With `once` it sends that, and shows the first message that comes. Raises `AgentUnreachable`, also when
    the server closes the connection.
    """
    lines = InputLines()
    left = False

    async def use(websocket: WebSocketConnection) -> None:
        nonlocal left
        heard = trio.Event()

        async def show() -> None:
            nonlocal heard
            while True:
                message = await websocket.get_message()
                text = message if isinstance(message, str) else message.decode(errors="replace")
                say(text, lines=True, flush=True)
                heard.set()
                heard = trio.Event()

        async def leave_at_interrupt() -> None:
            await anext(interrupts)
            nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(show)
            nursery.start_soon(leave_at_interrupt)
            if once is None and lines.interactive:
                note(f"connected to {url}, which speaks plain text")
            while (line := once if once is not None else await lines.read("you> ")) is not None:
                if not line.strip():
                    continue
                answered = heard
                await websocket.send_message(line)
                with trio.move_on_after(_ANSWER_S if once is None and lines.interactive else float("inf")):
                    await answered.wait()
                if once is not None:
                    break
            nursery.cancel_scope.cancel()
        left = True
        with trio.move_on_after(CLOSE_TIMEOUT_S):
            await websocket.aclose()

    try:
        await with_connection(url, list(headers.items()), use, ssl_context=ssl_context)
    except CannotConnect as error:
        raise AgentUnreachable(str(error)) from None
    if not left:
        raise AgentUnreachable(f"{url} closed the connection")
