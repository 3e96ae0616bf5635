"""A WebSocket connection as a client."""

from __future__ import annotations

import pytest
import trio
import trio.testing
from trio_websocket import WebSocketConnection

from agentmgr.client import transport


class Reset(trio.abc.Stream):
    """A connection that its peer has reset before anything was sent, as a killed gateway does."""

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await trio.lowlevel.checkpoint()
        raise trio.BrokenResourceError

    async def wait_send_all_might_not_block(self) -> None:
        await trio.lowlevel.checkpoint()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        await trio.sleep_forever()
        raise AssertionError

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()


async def test_a_connection_that_is_reset_at_once_is_given_up_at_once(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def reset(*args: object, **kwargs: object) -> Reset:
        return Reset()

    async def use(websocket: WebSocketConnection) -> None:
        raise AssertionError

    monkeypatch.setattr(transport, "open_stream", reset)
    began = trio.current_time()
    with pytest.raises(transport.CannotConnect):
        await transport.with_connection("ws://127.0.0.1:9090", [], use)
    assert trio.current_time() - began < 1
