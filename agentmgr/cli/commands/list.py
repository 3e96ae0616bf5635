"""`agentmgr list`"""

from __future__ import annotations

import asyncclick as click

from ...models import Service, ServiceStatus
from ..group import Cli, format_option, subcommand
from ..manager_interface import ReadsManager
from ..options import split_tags
from ..out import note, say_json
from ..render import ago, last_run, print_table, size
from ..watch import shown

_COLUMNS = ("name", "status", "health", "instances", "sessions", "restarts", "cpu", "memory", "tags", "up")
_RUNS = ("last run", "next run")  #: where a service has a schedule
_NAMED = 3  #: nodes of a service; more would fill the line


@subcommand("list", example="agentmgr list --status running --tags weather")
@click.option(
    "--status", type=click.Choice([str(s) for s in ServiceStatus]), help="Only those in this state."
)
@click.option("--tags", metavar="A,B", default="", help="Only those with any of these tags.")
@click.option("--name", metavar="TEXT", help="Only those with this text in their name.")
@click.option("--watch", "watching", is_flag=True, help="Show it again whenever it changes.")
@format_option
async def command(
    cli: Cli, status: str | None, tags: str, name: str | None, watching: bool, output: str
) -> None:
    """List the services.

    A narrow terminal shows fewer columns; `agentmgr status` has them all.
    """

    async def show(manager: ReadsManager) -> None:
        services = await manager.list_services(
            status=ServiceStatus(status) if status else None, tags=split_tags(tags), name=name
        )
        if output == "json":
            say_json(services)
        else:
            scheduled = any(service.config.schedule is not None for service in services)
            on_nodes = any(_nodes(service) for service in services)
            print_table(
                (*_COLUMNS, *(_RUNS if scheduled else ()), *(("nodes",) if on_nodes else ())),
                [
                    _row(service)
                    + (_runs(service) if scheduled else [])
                    + ([_nodes(service)] if on_nodes else [])
                    for service in services
                ],
                empty="no services" if status or tags or name else "no services are registered",
                spare=[
                    "tags",
                    *(["nodes"] if on_nodes else []),
                    "memory",
                    "cpu",
                    "restarts",
                    "sessions",
                    "up",
                ],
            )
            for service in services:
                if service.reload_error is not None:
                    what = "what was saved last does not run"
                    note(f"{service.name}: {what}; `agentmgr status {service.name}` says why")

    await shown(cli, show, watching=watching)


def _runs(service: Service) -> list[object]:
    return [last_run(service.last_run), service.next_run_at]


def _nodes(service: Service) -> str:
    """As in `vm vm-2`, or `12 nodes`: those that it is on, in a cluster."""
    names = sorted({i.node for i in service.instances if i.node and i.pid is not None})
    return " ".join(names) if len(names) <= _NAMED else f"{len(names)} nodes"


def _wanted(service: Service) -> str:
    """As in `3`, or of a range `3 of 1..8`."""
    instances = service.config.instances
    return str(instances) if isinstance(instances, int) else f"{service.wanted_instances} of {instances}"


def _row(service: Service) -> list[object]:
    ready = sum(instance.status is ServiceStatus.RUNNING for instance in service.instances)
    used = [instance.usage for instance in service.instances if instance.usage is not None]
    return [
        service.name,
        service.status,
        service.health,
        f"{ready}/{_wanted(service)}",
        service.active_sessions,
        service.restart_count,
        f"{sum(usage.cpu_percent for usage in used):.1f} %" if used else None,
        size(sum(usage.memory_bytes for usage in used)) if used else None,
        service.tags,
        ago(service.started_at),
    ]
