"""A manager in a process of its own, to be killed: takes commands as JSON lines, answers what is durable.

`python manager_process.py DATABASE [--interval SECONDS] [--die-when-spawned]`
"""

from __future__ import annotations

import json
import os
import signal
import sys
from typing import Any

import trio

from agentmgr.errors import AgentManagerError
from agentmgr.manager import AgentManager
from agentmgr.manager.recorder import Recorder
from agentmgr.models import InstanceRecord, OnManagerDeath, ServiceConfig
from agentmgr.settings import Settings


async def main(database: str, interval_s: float) -> None:
    forks = os.environ.get("AGENTMGR_FORK_SERVER") != "0"
    settings = Settings(health_check_interval=interval_s, fork_server=forks)
    async with AgentManager(database, settings=settings) as manager:
        answer({"ready": True})
        async with trio.open_nursery() as nursery:
            async for line in lines():
                nursery.start_soon(carry_out, manager, json.loads(line))


async def carry_out(manager: AgentManager, request: dict[str, Any]) -> None:
    name = request.get("name", "")
    try:
        match request["do"]:
            case "register":
                config = ServiceConfig(
                    max_restart_count=10**6,
                    restart_delay=0,
                    stable_after=request.get("stable_after", 60),
                    on_manager_death=OnManagerDeath(request.get("on_manager_death", "keep")),
                    stop_timeout=request.get("stop_timeout", 10),
                    python=request.get("python"),
                    instances=request.get("instances", 1),
                    startup_timeout=120,
                )
                await manager.register_service(
                    name,
                    request.get("file"),
                    command=request.get("command", ()),
                    port=request.get("port"),
                    config=config,
                    auto_start=True,
                    wait=request.get("wait", False),
                )
            case "unregister":
                await manager.unregister_service(name, force=True)
            case "start":
                await manager.start_service(name)
            case "stop":
                await manager.stop_service(name, force=True)
            case "restart":
                await manager.restart_service(name, force=True)
            case "list":
                services = {
                    service.name: {
                        "desired": service.desired_status,
                        "instances": [[i.status, i.pid, i.port, i.last_exit] for i in service.instances],
                    }
                    for service in manager.list_services()
                }
                answer({"id": request["id"], "services": services})
                return
            case "shutdown":
                manager.request_shutdown(leave_running=request.get("leave_running", False))
    except AgentManagerError as error:
        answer({"id": request["id"], "error": error.code, "message": error.message})
    else:
        answer({"id": request["id"]})


def answer(value: dict[str, Any]) -> None:
    os.write(1, json.dumps(value).encode() + b"\n")


async def lines() -> Any:
    buffer = b""
    async with trio.lowlevel.FdStream(os.dup(0)) as stream:
        async for chunk in stream:
            *complete, buffer = (buffer + chunk).split(b"\n")
            for line in complete:
                yield line


async def die(self: Recorder, record: InstanceRecord) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    if "--die-when-spawned" in sys.argv:
        Recorder.instance_spawned = die  # type: ignore[method-assign]
    interval = float(sys.argv[sys.argv.index("--interval") + 1]) if "--interval" in sys.argv else 1.0
    trio.run(main, sys.argv[1], interval)
