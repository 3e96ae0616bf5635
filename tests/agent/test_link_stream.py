"""Frames that do not go through wsproto, read by wsproto; and the stream that both writers share."""

import pytest
import trio
import trio.testing
from wsproto.frame_protocol import FrameProtocol, Opcode

from agentmgr.agent.link_stream import LinkStream


async def pair():
    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    near = await trio.open_tcp_stream(*listener.socket.getsockname())
    far = await listener.accept()
    await listener.aclose()
    return near, far


@pytest.mark.parametrize("size", [0, 1, 125, 126, 127, 65535, 65536, 70000])
async def test_a_text_of_any_size_is_one_whole_frame(size):
    near, far = await pair()
    async with near, far, trio.open_nursery() as nursery:
        texts = [b"x" * size, "é".encode()]
        stream = LinkStream(near, b"", on_close=lambda: None)
        nursery.start_soon(lambda: stream.send_texts(texts, while_open=lambda: True))
        parser, found = FrameProtocol(client=True, extensions=[]), []
        received = b""
        while len(found) < 2:
            parser.receive_bytes(await far.receive_some())
            for frame in parser.received_frames():
                assert frame.opcode is Opcode.TEXT
                received += frame.payload.encode()
                if frame.message_finished:
                    found.append(received)
                    received = b""
        assert found == texts


async def test_nothing_is_sent_once_the_websocket_is_closing():
    near, far = await pair()
    async with near, far:
        stream = LinkStream(near, b"", on_close=lambda: None)
        await stream.send_texts([b"late"], while_open=lambda: False)
        await stream.send_all(b"the close frame")
        assert await far.receive_some() == b"the close frame"


async def test_what_was_read_before_comes_first():
    near, far = await pair()
    async with near, far:
        stream = LinkStream(near, b"head", on_close=lambda: None)
        await far.send_all(b"rest")
        assert await stream.receive_some() == b"head"
        assert await stream.receive_some() == b"rest"


async def test_what_another_task_sends_waits_for_the_rest_of_a_frame():
    near, far = await pair()
    async with near, far:
        stream, waits = LinkStream(near, b"", on_close=lambda: None), []
        text = b"x" * 2**23  # more than the kernel takes at once
        async with trio.open_nursery() as nursery:
            nursery.start_soon(
                lambda: stream.send_texts(
                    [text], while_open=lambda: True, before_waiting=lambda: waits.append(None)
                )
            )
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(stream.send_all, b"close")
            received = bytearray()
            while not received.endswith(b"close"):
                received += await far.receive_some()
        assert waits == [None]
        assert len(received) == 10 + len(text) + len(b"close")
        assert received.count(b"x") == len(text)
