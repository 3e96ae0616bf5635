"""A manager and the workers that another version of it has left."""

from __future__ import annotations

import json
from typing import Any

from agentmgr.core.routing import Backend, Gate, RoutingTable
from agentmgr.models import RoutingRule
from agentmgr.process.control_socket import connect
from agentmgr.settings import LogLevel, Settings
from agentmgr.worker import protocol
from agentmgr.worker.spec import WorkerSpec
from tests.conditions import read_to
from tests.workers.conftest import said


def test_a_table_reaches_a_worker_whole() -> None:
    backend = Backend.at("127.0.0.1", 8081, token="secret", node_id="n1")
    far = RoutingTable((backend,), gates={"n1": Gate("127.0.0.2", 9444)})
    table = protocol.Table(1, far, (), protocol.TokenPolicy(), frozenset({"tok_1"}))
    assert protocol.decode_order(protocol.encode(table)) == table


async def test_a_worker_is_sent_what_has_changed_and_the_whole_where_more_than_that_has(site: Any) -> None:
    async with site(workers=1) as s:
        (worker,) = s.workers
        sent: list[str] = []
        put = worker.link.put_lines

        def put_lines(line: bytes) -> None:
            sent.append(json.loads(line)[0])
            put(line)

        worker.link.put_lines = put_lines
        for act in (
            s.manager.restart_service("counting"),
            s.manager.create_routing_rule(RoutingRule("r", target_services=("counting",))),
            s.manager.scale_service("counting", 2),
            s.manager.create_token("t", ["read"]),
            s.manager.scale_service("counting", 1),
        ):
            before = len(sent)
            await act
            await s.manager._live().publisher.published()
            kinds = set(sent[before:]) - {"SeatChanges", "Drain", "Grant"}
            sent.append("Table" if "Table" in kinds else "Changes")
            sent[before:] = sent[-1:]
        assert sent == ["Changes", "Table", "Changes", "Table", "Changes"]
        websocket = await s.client()
        assert await said(websocket)


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


def test_only_what_a_worker_uses_tells_workers_apart() -> None:
    """A manager that comes back with other settings of its own must not cost clients their connections."""

    def options(**settings: Any) -> str:
        return WorkerSpec("w", Settings(**settings), "localhost", 9090).options

    of_the_manager = {
        "api_port": 1,
        "cluster_port": 1,
        "gateways": "all",
        "node_lost_after": 99.0,
        "health_check_interval": 1.0,
        "fork_server": False,
        "log_level": LogLevel.DEBUG,
    }
    assert options(**of_the_manager) == options()
    for name, value in {
        "allowed_origins": ("https://app.example",),
        "trusted_proxies": ("10.0.0.0/8",),
        "proxy_protocol": True,
        "fronts": "none",
    }.items():
        assert options(**{name: value}) != options(), name
