"""`agentmgr status`"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import asyncclick as click

from ...codec import to_plain
from ...core.scaling import share
from ...errors import AgentManagerError
from ...models import Instance, InstanceEnd, Service, ServiceConfig, ServiceStatus
from ..environment import lacking
from ..group import Cli, format_option, subcommand
from ..manager_interface import ReadsManager
from ..names import SERVICE
from ..out import note, say, say_json
from ..render import ago, counted, duration, last_run, print_fields, print_table, size
from ..watch import shown


@subcommand("status", example="agentmgr status my-echo-agent")
@click.argument("name", required=False, type=SERVICE)
@click.option("--watch", "watching", is_flag=True, help="Show it again whenever it changes.")
@format_option
async def command(cli: Cli, name: str | None, watching: bool, output: str) -> None:
    """Show one service in detail; without a name, the system in a few words."""

    async def show(manager: ReadsManager) -> None:
        if name is None:
            _print_system(await manager.get_system_stats(), output)
            return
        service, stats = await manager.get_service(name), await manager.get_service_stats(name)
        if output == "json":
            say_json({**to_plain(service), "stats": stats})
        else:
            ends: tuple[InstanceEnd, ...] = ()
            with suppress(AgentManagerError):  # an older manager keeps none
                ends = await manager.get_ends(name, limit=1)
            _print(service, stats, ends)
            if lacks := lacking(cli.paths, service):
                words = " ".join(f"--env-from-shell {variable}" for variable in lacks)
                note(
                    f"this shell has {', '.join(lacks)}, which {name} requires and lacks: "
                    f"`agentmgr restart {name} {words}`"
                )

    await shown(cli, show, watching=watching)


def _print_system(figures: dict[str, Any], output: str) -> None:
    if output == "json":
        say_json(figures)
        return
    services = figures["services"]
    say(
        f"{counted(services['total'], 'service')}, {services['running']} running; "
        f"{counted(figures['connections']['total_connections'], 'session')}"
    )
    for trouble in figures["troubles"]:
        say(f"degraded: {trouble}")


def _print(service: Service, stats: dict[str, Any], ends: Sequence[InstanceEnd]) -> None:
    sessions = stats["sessions"]
    config = service.config
    wanted = str(service.desired_status)
    print_fields(
        [
            ("name", service.name),
            ("id", service.service_id),
            ("description", service.description),
            ("status", str(service.status)),
            ("wanted", None if service.status in (wanted, *_AS_WANTED) else wanted),
            ("health", str(service.health)),
            ("error", service.error_message),
            ("reload", _reload(service)),
            ("says", "\n".join(dict.fromkeys(i.said for i in service.instances if i.said))),
            ("agent file", service.agent_factory_path),
            ("command", service.command),
            ("endpoint", service.endpoint),
            ("serves", _serves(service)),
            ("starts", _starts(config)),
            ("schedule", _schedule(config)),
            ("last run", last_run(service.last_run)),
            ("next run", service.next_run_at),
            ("on failure", config.on_failure),
            ("ready by", config.ready if config.ready != "auto" else None),
            ("checked by", config.health if config.health != "auto" else None),
            ("tags", service.tags),
            ("up", ago(service.started_at)),
            ("restarts", _restarts(service)),
            ("next restart", service.next_restart_at),
            ("last end", _ended(ends)),
            (
                "sessions",
                f"{service.active_sessions} active, {sessions['completed']} completed, "
                f"{sessions['failed']} failed",
            ),
            ("kept in", service.journal),
            ("average session", duration(sessions["average_duration_s"])),
            ("handshake", _percentiles(stats["response_time"]["handshake"])),
            ("first byte", _percentiles(stats["response_time"]["first_byte"])),
            ("max sessions", config.max_sessions or None),
            ("instances", _instances(service)),
            ("imports", service.preloaded),
            ("not enforced", _unenforced(service)),
            ("remarks", "\n".join(service.remarks)),
            ("registered", service.created_at),
            ("version", service.version),
        ]
    )
    if service.instances:
        say()
        print_table(
            [
                "instance",
                "status",
                "health",
                *_of_cluster(service, ["node"]),
                *_of_gpus(service, ["gpus"]),
                "pid",
                "address",
                "up",
                "last exit",
            ],
            [
                [
                    i.slot,
                    i.status,
                    i.health,
                    *_of_cluster(service, [i.node]),
                    *_of_gpus(service, [",".join(i.gpus)]),
                    i.pid,
                    _address(i),
                    _up(i),
                    i.last_exit,
                ]
                for i in service.instances
            ],
            empty="",
        )
    if used := [(i.slot, i.usage) for i in service.instances if i.usage is not None]:
        say()
        print_table(
            ["instance", "cpu", "memory", "processes", "threads", "open files"],
            [
                [slot, f"{u.cpu_percent:g} %", size(u.memory_bytes), u.processes, u.threads, u.open_files]
                for slot, u in used
            ],
            empty="",
        )


def _of_cluster(service: Service, cells: list[str]) -> list[str]:
    """The cells of a column that is shown where instances are on nodes."""
    return cells if any(instance.node for instance in service.instances) else []


def _of_gpus(service: Service, cells: list[str]) -> list[str]:
    """The cells of a column that is shown where GPUs are reserved for instances."""
    return cells if any(instance.gpus for instance in service.instances) else []


def _instances(service: Service) -> str | None:
    """Where their number is a range: how many are to run, and by what measure."""
    if isinstance(service.config.instances, int):
        return None
    per = share(service.config)
    what = f"{per.most} {per.unit}{' under way' if per.unit == 'turns' else ''}"
    return f"{service.wanted_instances} of {service.config.instances}, one for each {what}"


def _reload(service: Service) -> str | None:
    if service.reload_error is not None:
        return f"failed: {service.reload_error}"
    watched = ["its code" if path == "auto" else path for path in service.config.watch]
    return f"when {', '.join(watched)} is saved" if watched else None


_AS_WANTED = (ServiceStatus.COMPLETED, ServiceStatus.SCHEDULED, ServiceStatus.ASLEEP)


def _starts(config: ServiceConfig) -> str | None:
    return f"on demand; falls asleep after {config.idle_stop_s:g} s without use" if config.on_demand else None


def _schedule(config: ServiceConfig) -> str | None:
    """As in `0 3 * * * Europe/Berlin`."""
    return None if config.schedule is None else f"{config.schedule} {config.timezone or ''}".rstrip()


def _address(instance: Instance) -> str | None:
    return f"{instance.host}:{instance.port}" if instance.port and instance.serves is not False else None


def _serves(service: Service) -> str | None:
    running = [i for i in service.instances if i.pid is not None]
    if not running or any(i.serves is not False for i in running):
        return None
    return f"no connections: it does not listen on port {running[0].port}"


def _up(instance: Instance) -> str:
    return ago(instance.started_at) if instance.pid is not None else ""


def _unenforced(service: Service) -> str:
    """The limits that this machine does not keep them to, each on a line."""
    return "\n".join(dict.fromkeys(limit for i in service.instances for limit in i.unenforced))


def _ended(ends: Sequence[InstanceEnd]) -> str | None:
    """As in `3m 5s ago: ended unasked after 12.0 s: exit code 1`."""
    return f"{ago(ends[0].at)} ago: {ends[0].reason.splitlines()[0]}" if ends and ends[0].reason else None


def _restarts(service: Service) -> str:
    left = [i.restarts_left for i in service.instances if i.restarts_left is not None]
    return f"{service.restart_count}" + (f", {min(left)} left" if left else "")


def _percentiles(seconds: dict[str, float | None]) -> str | None:
    """As in `p50 1.2 ms, p95 3.4 ms`; None where nothing was measured."""
    shown = [
        f"{name.removesuffix('_s')} {value * 1000:.3g} ms"
        for name, value in seconds.items()
        if value is not None
    ]
    return ", ".join(shown) or None
