"""A connection that waits for its next request has a timeout, and holds up nobody's end."""

from pathlib import Path

import pytest
import trio

from agentmgr.api import serve_control
from agentmgr.manager import AgentManager

REQUEST = b"GET /api/v1/info HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.mark.parametrize("requests", [0, 1, 3])
async def test_idle_connections_do_not_delay_the_end(tmp_path: Path, requests: int) -> None:
    async with AgentManager(tmp_path / "a.db") as manager, trio.open_nursery() as nursery:
        await nursery.start(serve_control, manager, manager.paths.control_socket)
        async with await trio.open_unix_socket(manager.paths.control_socket) as client:
            for _ in range(requests):
                await client.send_all(REQUEST)
                answer = b""
                while not answer.endswith(b"}"):
                    answer += await client.receive_some()
            began = trio.current_time()
            nursery.cancel_scope.cancel()
            with trio.CancelScope(shield=True), trio.fail_after(10):
                while await client.receive_some():
                    pass
                ended_after_s = trio.current_time() - began
    assert ended_after_s < 2.0  # the grace, which is for running requests, is 3 s
