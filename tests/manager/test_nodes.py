"""What a manager makes of nodes where it has no cluster."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from agentmgr.errors import ManagerError
from agentmgr.manager import AgentManager
from agentmgr.models import ServiceConfig
from agentmgr.storage.sqlite import open_store

AFAR = ServiceConfig(command=["sleep", "1000"], ready="started", place_on=["zone=b"])


def of_record(db: Path) -> list[str]:
    with closing(sqlite3.connect(db)) as file:
        return [document for (document,) in file.execute("SELECT document FROM instances")]


async def test_a_manager_without_a_cluster_leaves_instances_of_other_nodes_alone(db: Path) -> None:
    async with AgentManager(db) as manager:
        service = await manager.register_service("afar", config=AFAR, auto_start=True)
        (instance,) = service.instances
        assert (instance.node_id, instance.node) == ("", "")
        assert service.remarks == ("place_on has no effect: this manager has no cluster (`--cluster`)",)
        (document,) = of_record(db)
    with closing(sqlite3.connect(db)) as file, file:
        elsewhere = document.replace('"node_id":""', '"node_id":"nod_0011223344556677"')
        assert elsewhere != document
        values = (instance.instance_id, service.service_id, elsewhere)
        file.execute("INSERT INTO instances (id, service_id, document) VALUES (?, ?, ?)", values)
    for _ in range(2):
        with pytest.raises(
            ManagerError,
            match=r"other machines \(afar\): start the manager with --cluster joined or --cluster ray",
        ):
            async with AgentManager(db):
                pass
        assert of_record(db) == [elsewhere], "it was neither adopted nor counted gone"
    async with open_store(db) as store:
        (record,) = (await store.load()).instances
    assert record.node_id == "nod_0011223344556677"
