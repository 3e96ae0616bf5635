"""A manager and the workers that another version of it has left."""

from __future__ import annotations

import json
from typing import Any

from agentmgr.core.routing import Backend, RoutingTable
from agentmgr.process.control_socket import connect
from agentmgr.worker import protocol
from tests.conditions import read_to


def test_a_table_reaches_a_worker_whole() -> None:
    backend = Backend.at("127.0.0.1", 8081, token="secret")
    table = protocol.Table(1, RoutingTable((backend,)), (), protocol.TokenPolicy(), frozenset({"tok_1"}))
    assert protocol.decode_order(protocol.encode(table)) == table


async def test_a_worker_of_another_version_is_ended_and_gets_no_table(site: Any) -> None:
    hello = protocol.Hello("wrk_old", "localhost", 1, False, 0, "other options", guest=False)
    kind, fields = json.loads(protocol.encode(hello))
    del fields["version"]  # as the version before said it
    async with site() as s:
        stream = await connect(s.manager.paths.worker_socket)
        async with stream:
            await stream.send_all(json.dumps([kind, fields]).encode() + b"\n")
            said = await read_to(stream, b"\n")
        assert b'["End"' in said
        assert b'["Table"' not in said
