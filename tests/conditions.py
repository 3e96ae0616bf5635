"""What tests wait for where nothing announces it."""

from collections.abc import Callable

import trio
from websockets.sync.client import ClientConnection

PATIENCE_S = 60.0


async def until(holds: Callable[[], bool], *, within_s: float = PATIENCE_S) -> None:
    """Looks until it does. Raises `trio.TooSlowError`."""
    with trio.fail_after(within_s):
        while not holds():  # noqa: ASYNC110  # for what has no event
            await trio.sleep(0.005)


async def read_to(stream: trio.abc.ReceiveStream, end: bytes) -> bytes:
    """What comes up to `end`, and with it: one `receive_some` may bring half a line, or half a head."""
    read = b""
    while not read.endswith(end):
        with trio.fail_after(PATIENCE_S):
            more = await stream.receive_some(1)
        assert more, read
        read += more
    return read


def heard(client: ClientConnection) -> str | bytes:
    """The next message, without the greeting to one that says nothing for a second, as on a busy machine."""
    message = client.recv(timeout=PATIENCE_S)
    return client.recv(timeout=PATIENCE_S) if '"event":"system.connected"' in str(message) else message
