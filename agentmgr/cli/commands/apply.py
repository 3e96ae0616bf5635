"""`agentmgr apply`"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import asyncclick as click
import trio

from ...client.api import ManagerClient
from ...codec import to_plain
from ...core.dependencies import named, stop_order
from ...core.secrets import shown_hook
from ...errors import AgentManagerError, ServiceFailed
from ...models import Service, ServiceConfig, ServiceStatus
from ...supervisor.environment import digest
from ..declaration import Declaration, DeclaredService, Step, completed, difference, given_up, read
from ..environment import mention_stale
from ..group import Cli, subcommand
from ..manager_interface import ManagerInterface
from ..managers import for_reading, for_running, for_writing, with_secrets
from ..names import FILE
from ..options import LIVE
from ..out import complain, note, say
from ..render import counted
from ..selection import AT_ONCE
from ..watch import progress


@subcommand("apply", example="agentmgr apply services.toml --dry-run")
@click.argument("file", type=FILE)
@click.option("--dry-run", is_flag=True, help="Only show the difference.")
@click.option("--prune", is_flag=True, help="Remove services and rules that the file does not name.")
@click.option("--no-restart", is_flag=True, help="Leave running services as they are until they restart.")
@click.option("--retry", is_flag=True, help="Start services again that were given up.")
async def command(cli: Cli, file: str, dry_run: bool, prune: bool, no_restart: bool, retry: bool) -> int:
    """Create, change and start services and routing rules as a TOML file declares them.

    The file has tables [services.NAME] and [rules.NAME]. A service's fields are `agent_factory_path` or
    `command`, and the options of `agentmgr register` with _ in place of -; `running = false` keeps it
    stopped. `agentmgr export` writes such a file. A service whose agent file or env file contains something
    else than when it was started is restarted. Exit code 1 when a service does not start, or was given up
    before.
    """
    wanted = read(Path(file))
    async with for_reading(cli) as seen:
        rules, services = await seen.list_routing_rules(), await with_secrets(seen)
        managed = isinstance(seen, ManagerClient)
        digests: Mapping[str, Sequence[str]] = {}
        with suppress(AgentManagerError):  # an older manager keeps none
            digests = await seen.get_digests()
    wanted = completed(wanted, services)
    steps = difference(wanted, services, rules, prune=prune, retry=retry, managed=managed)
    outdated = _outdated(wanted, services, digests, steps)
    if no_restart and outdated:
        note(f"{' and '.join(outdated)}: what the agent file or env file contains now is not live")
    elif not no_restart:
        steps += [Step("restart", "service", name) for name in outdated]
    for step in steps:
        _print(step)
    dead = _given_up(wanted, services, steps, restarting=not no_restart)
    for service in dead:
        what = service.name if service.status is ServiceStatus.ERROR else f"an instance of {service.name}"
        complain(
            f"{what} was given up ({service.error_message or 'no reason given'}); "
            f"`agentmgr start {service.name}` or `agentmgr apply --retry` tries again"
        )
    if not steps and not dead:
        say("nothing to do")
    if dry_run or not steps:
        return int(bool(dead))
    starts = any(step.action in ("start", "restart") for step in steps)
    reach = for_running(cli) if starts else for_writing(cli, adopting=True)
    versions = {service.name: service.version for service in services}
    running = {service.name for service in services if service.desired_status == "running"}
    failed, at_once = 0, trio.CapacityLimiter(AT_ONCE)
    async with reach as manager, progress(manager):

        async def attempt(step: Step) -> None:
            nonlocal failed
            restart = step.name in running and not no_restart and bool(step.changes.keys() - LIVE)
            try:
                async with at_once:
                    await _carry_out(manager, step, wanted, restart=restart, version=versions.get(step.name))
            except ServiceFailed as error:  # the other steps still run
                failed += 1
                complain(error.message)

        for wave in _waves(steps, wanted):
            async with trio.open_nursery() as nursery:
                for step in wave:
                    nursery.start_soon(attempt, step)
        await mention_stale(cli, manager, [step.name for step in steps if step.action == "start"])
        written = {step.name for step in steps if step.action in ("create", "change")}
        for service in await manager.list_services():
            if service.name in written:
                for remark in service.remarks:
                    note(f"{service.name}: {remark}")
    say(f"done: {counted(len(steps) - failed, 'change')}")
    return int(failed > 0 or bool(dead))


def _given_up(
    wanted: Declaration, services: Sequence[Service], steps: Sequence[Step], *, restarting: bool
) -> list[Service]:
    """The services that should run, were given up, and are not started again by one of the steps."""
    begun = _begun(steps, restarting=restarting)
    return [
        service
        for service in services
        if service.name in wanted.services
        and wanted.services[service.name].running
        and service.name not in begun
        and given_up(service)
    ]


def _begun(steps: Sequence[Step], *, restarting: bool) -> set[str]:
    return {
        step.name
        for step in steps
        if step.action in ("start", "restart") or (restarting and step.changes.keys() - LIVE)
    }


def _outdated(
    wanted: Declaration,
    services: Sequence[Service],
    digests: Mapping[str, Sequence[str]],
    steps: Sequence[Step],
) -> list[str]:
    """Those whose agent file or env file had something else in it when they were launched, and that no step
    restarts.
    """
    begun = _begun(steps, restarting=True)
    return [
        service.name
        for service in services
        if service.name in wanted.services
        and wanted.services[service.name].running
        and service.name not in begun
        and (launched := set(digests.get(service.name, ())) - {""})
        and launched != {digest(wanted.services[service.name].config)}
    ]


def _waves(steps: Sequence[Step], wanted: Declaration) -> list[list[Step]]:
    """The steps in groups that may run concurrently: services start last, and after their dependencies."""
    starts = {step.name: step for step in steps if step.action == "start"}
    needs = {name: named(wanted.services[name].config.after) for name in starts}
    return [
        *([step] for step in steps if step.action != "start"),
        *([starts[name] for name in wave] for wave in reversed(stop_order(needs))),
    ]


def _print(step: Step) -> None:
    say(f"{step.action} {step.kind} {step.name}")
    if step.action == "restart":
        say("    what its agent file or env file contains has changed")
    for name, (now, value) in step.changes.items():
        if step.action == "create":
            say(f"    {name}: {_shown(name, value)}")
        else:
            say(f"    {name}: {_shown(name, now)} -> {_shown(name, value)}")


def _shown(name: str, value: Any) -> str:
    if isinstance(value, dict):  # of an environment, the names will do
        return "{" + ", ".join(value) + "}"
    if name == "on_failure":
        value = shown_hook(value)
    return value if isinstance(value, str) else json.dumps(to_plain(value), ensure_ascii=False)


async def _carry_out(
    manager: ManagerInterface,
    step: Step,
    wanted: Declaration,
    *,
    restart: bool,
    version: int | None,
) -> None:
    name = step.name
    if step.kind == "rule":
        rule = wanted.rules.get(name)
        if step.action == "remove" or rule is None:
            await manager.delete_routing_rule(name)
        elif step.action == "create":
            await manager.create_routing_rule(rule.rule)
        else:
            await manager.update_routing_rule(name, {field: getattr(rule, field) for field in step.changes})
        return
    if step.action == "create":
        await _register(manager, wanted.services[name])
    elif step.action == "change":
        service = wanted.services[name]
        changes = {field: getattr(service, field) for field in step.changes}
        changed = await manager.update_service(name, changes)
        if restart and changed.version != version:
            await manager.restart_service(name)
    elif step.action == "remove":
        await manager.unregister_service(name)
    elif step.action == "start":
        await manager.start_service(name)
    elif step.action == "restart":
        await manager.restart_service(name)
    else:
        await manager.stop_service(name)


async def _register(manager: ManagerInterface, service: DeclaredService) -> None:
    config: ServiceConfig = service.config
    await manager.register_service(
        service.name,
        config=config,
        description=service.description,
        tags=service.tags,
        host=service.host,
        port=service.port,
    )
