"""A connection that waits for its next request has a timeout, and holds up nobody's end."""

from pathlib import Path

import pytest
import trio

from agentmgr.api import serve_control, server
from agentmgr.manager import AgentManager

REQUEST = b"GET /api/v1/info HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.mark.parametrize("requests", [0, 1, 3])
async def test_idle_connections_do_not_delay_the_end(
    tmp_path: Path, requests: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = server.ServerLimits(grace=600, idle=600)
    monkeypatch.setitem(server.serve.__kwdefaults__, "limits", limits)
    async with AgentManager(tmp_path / "a.db") as manager, trio.open_nursery() as nursery:
        await nursery.start(serve_control, manager, manager.paths.control_socket)
        async with await trio.open_unix_socket(manager.paths.control_socket) as client:
            for _ in range(requests):
                await client.send_all(REQUEST)
                answer = b""
                while not answer.endswith(b"}"):
                    answer += await client.receive_some()
            nursery.cancel_scope.cancel()
            with trio.CancelScope(shield=True), trio.fail_after(60):  # the grace is for running requests
                while await client.receive_some():
                    pass
