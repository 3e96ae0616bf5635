"""A supervisor over one node, with its records in a file: `manager_process.py DIRECTORY SOCKET INSTANCES`.

Its own machine runs nothing. It starts the service `svc`, or adopts what an earlier one has recorded of it.
"""

import logging
import sys
from contextlib import suppress
from pathlib import Path

import trio
from attrs import evolve, frozen

from agentmgr.cluster.launcher import ClusterLauncher
from agentmgr.cluster.nodes import Nodes
from agentmgr.codec import from_json, to_json
from agentmgr.models import DesiredStatus, InstanceRecord, ServiceConfig, ServiceSpec, new_id
from agentmgr.supervisor import NullRecorder, Supervisor
from agentmgr.supervisor.in_process import NoProcesses


@frozen
class Kept:
    spec: ServiceSpec
    records: dict[str, InstanceRecord]


class FileRecorder(NullRecorder):
    def __init__(self, path: Path, kept: Kept) -> None:
        self.path, self.kept = path, kept

    async def instance_spawned(self, record: InstanceRecord) -> None:
        self.write({**self.kept.records, record.instance_id: record})

    async def instance_gone(self, instance_id: str) -> None:
        self.write({key: it for key, it in self.kept.records.items() if key != instance_id})

    def write(self, records: dict[str, InstanceRecord]) -> None:
        self.kept = evolve(self.kept, records=records)
        draft = self.path.with_suffix(".draft")
        draft.write_text(to_json(self.kept))
        draft.replace(self.path)


def service(instances: int) -> ServiceSpec:
    config = ServiceConfig(
        command=("sleep", "1000"),
        ready="started",
        health="none",
        instances=instances,
        startup_timeout=0.2,
        restart_delay=0,
        max_restart_count=1000,
        stop_timeout=1,
    )
    return ServiceSpec("svc", config, desired_status=DesiredStatus.RUNNING)


async def run(directory: Path, socket: str, instances: int) -> None:
    file = directory / "records.json"
    kept = from_json(file.read_text(), Kept) if file.exists() else Kept(service(instances), {})
    nodes = Nodes(new_id("mgr"), "a", cordoned=True)
    nodes.add("node-b", "b", ran=bool(kept.records))
    launcher = ClusterLauncher(NoProcesses(), nodes, check_interval_s=10)
    supervisor = Supervisor(FileRecorder(file, kept), launcher=launcher, log_dir=directory / "logs")

    async def serve(stream: trio.SocketStream) -> None:
        async with stream:
            await nodes.serve("node-b", stream)

    async def report() -> None:
        """Whether all run, for whom watches it."""
        while True:
            ready = sum(it.pid is not None and it.status == "running" for it in supervisor.instances())
            (directory / "ready").write_text(str(ready))
            await trio.sleep(0.05)

    with suppress(FileNotFoundError):
        Path(socket).unlink()
    listener = trio.socket.socket(trio.socket.AF_UNIX)
    await listener.bind(socket)
    listener.listen(5)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(nodes.run)
        adopt = [(kept.spec, list(kept.records.values()))]

        async def supervise(task_status: trio.TaskStatus[None]) -> None:
            await supervisor.run(adopt=adopt, task_status=task_status)

        await nursery.start(supervise)
        nursery.start_soon(trio.serve_listeners, serve, [trio.SocketListener(listener)])
        nursery.start_soon(report)
        await supervisor.start(kept.spec, wait=False)
        await trio.sleep_forever()


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s manager %(message)s")
    trio.run(run, Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
