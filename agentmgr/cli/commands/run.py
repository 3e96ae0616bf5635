"""`agentmgr run`"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import asyncclick as click
import trio

from ...api import serve_api
from ...errors import (
    AgentManagerError,
    Conflict,
    ManagerNotRunning,
    PortNotAvailable,
    ServiceFailed,
    ServiceNotFound,
    WrongState,
)
from ...logging_setup import configure_logging
from ...manager import AgentManager
from ...manager.factory_path import located, same
from ...models import DesiredStatus, Service, ServiceConfig, ServiceStatus
from ...process.paths import absolute, file_of
from ...settings import LogLevel
from ...supervisor.endings import LAST_OUTPUT
from ...visible import ProgramOutput
from ...websocket.refusal import RefusalCode
from ..foreground import managing, run_until_stopped
from ..group import Cli, subcommand
from ..manager_options import settings_options
from ..names import FILE
from ..options import directory_for, given_fields, option_of
from ..out import note, painted, program_line, say, say_as_it_is_read
from ..render import console, url
from ..signals import stop_signals

_LOOK_S = 0.5
_REFUSALS = {
    RefusalCode.ORIGIN_NOT_ALLOWED: "a browser's page was refused, as its origin is not allowed: "
    "`--allow-origin ORIGIN` lets it in, `--allow-origin null` a page that is opened from disk",
    RefusalCode.SERVICE_NOT_FOUND: "a client was refused, as it asked for a service that is not registered: "
    "`agentmgr list` shows their names",
}
_STYLES = ("cyan", "magenta", "yellow", "green", "blue")


@subcommand("run", example="agentmgr run examples/echo_agent.py")
@click.argument("files", metavar="FILE...", nargs=-1, required=True, type=FILE)
@click.option("--host", default="localhost", show_default=True, help="Where gateway and API listen.")
@click.option(
    "--reload",
    is_flag=True,
    help="Run new code when a Python file beside an agent's is saved: a new instance is ready before the old "
    "one goes, and sessions go on.",
)
@option_of(ServiceConfig, "python")
@option_of(ServiceConfig, "env", defaults=False)
@option_of(
    ServiceConfig, "env_file", help="A .env file for them, in place of the .env beside each agent file."
)
@settings_options(without=("log_level", "log_format"), proxy_port="--proxy-port", api_port="--api-port")
async def command(
    cli: Cli,
    files: tuple[str, ...],
    host: str,
    reload: bool,
    python: str | None,
    env: tuple[str, ...],
    env_file: str | None,
    flags: dict[str, Any],
) -> None:
    """Run agent files now, each as a service named after its file, with gateway and API; Ctrl-C stops it all.

    What was registered stays registered, and is found again by the next run.
    """
    settings = cli.settings(**flags)
    environment = {"python": python, "env": env, "env_file": env_file}
    configure_logging(LogLevel.WARNING, settings.log_format)
    async with stop_signals() as signals, managing(cli, settings, signals) as (manager, listeners):
        services = []
        for file in dict.fromkeys(files):
            service = await _registered(manager, file)
            services.append(await _given_environment(manager, service, given_fields(environment)[1]))
        if reload:
            for service in services:
                manager.watch_service(service.name)
        async with trio.open_nursery() as nursery:
            proxy = await _open(
                listeners, manager.serve_proxy, host, settings.proxy_port, flags["proxy_port"]
            )
            api = await _open(listeners, _api(manager), host, settings.api_port, flags["api_port"])
            say(_welcome(services, host, proxy, api, cli.paths.database), lines=True, flush=True)
            for number, service in enumerate(services):
                nursery.start_soon(_show_log, manager, service, number)
            for service in services:
                nursery.start_soon(_start, manager, service, reload)
            nursery.start_soon(_tell_refusals, manager)
            await run_until_stopped(manager, signals)
            nursery.cancel_scope.cancel()
        with suppress(ManagerNotRunning):  # `agentmgr shutdown` was quicker
            # Stopped for good, unless it was to run anyway: a later manager must not start it by itself.
            for service in services:
                if service.desired_status is DesiredStatus.STOPPED:
                    await manager.stop_service(service.name, force=True)


async def _registered(manager: AgentManager, file: str) -> Service:
    """The service of that file, made if need be. Raises `Conflict` where its name means another file."""
    directory = directory_for(file)
    name = Path(file.partition(":")[0]).stem
    try:
        known = manager.get_service(name)
    except ServiceNotFound:
        return await manager.register_service(name, file, config=ServiceConfig(cwd=directory))
    if not same(known.agent_factory_path, located(file, Path(directory))):
        what = known.agent_factory_path or " ".join(known.command)
        raise Conflict(
            f"a service {name!r} is registered already, for {what}: "
            f"remove it with `agentmgr unregister {name}`, rename the file, or use another --db-path"
        )
    return known


async def _given_environment(manager: AgentManager, service: Service, given: dict[str, Any]) -> Service:
    """With what this command was given, and the variables of the `.env` beside its file if it has none."""
    config, changes = service.config, dict(given)
    if "env" in changes:
        changes["env"] = {**config.env, **changes["env"]}
    if "env_file" in changes:
        changes["env_file"] = str(absolute(changes["env_file"]))
    elif (file := file_of(config.agent_factory_path or "")) is not None:
        beside = str(Path(file).with_name(".env"))
        if config.env_file in (None, beside):
            there = await trio.Path(beside).is_file()  # an earlier run may have found one
            changes["env_file"] = beside if there else None
            if there:
                note(f"{service.name} gets the variables of {beside}")
    return await manager.update_service(service.service_id, changes) if changes else service


async def _start(manager: AgentManager, service: Service, reloads: bool) -> None:
    try:
        await manager.start_service(service.name)
    except (ServiceFailed, WrongState) as error:  # WrongState: it was stopped meanwhile
        note(f"{service.name} did not start: {_reason(error.message)}{_its_log(manager, service)}")
    else:
        note(f"{service.name} is running")
    await _tell_failures(manager, service, reloads=reloads)


def _serves(manager: AgentManager, service: Service) -> bool:
    with suppress(AgentManagerError):  # it was unregistered, or the manager ends
        return manager.get_service(service.service_id).status is ServiceStatus.RUNNING
    return False


async def _tell_failures(manager: AgentManager, service: Service, *, reloads: bool) -> None:
    """Why an instance has ended, and what becomes of it."""
    follows = {"instance.backoff": "it will be started again", "instance.error": "it is given up"}
    while True:
        with manager.subscribe() as events:
            async for event in events:
                if event.service_id != service.service_id:
                    continue
                if event.kind == "service.reloaded":
                    note(f"{service.name} runs the new code of {event.detail['files']}")
                elif event.kind == "service.reload_failed":
                    serves = "; the code before serves on" if event.detail["serving"] else ""
                    reason = _reason(str(event.detail["reason"]))
                    note(f"{service.name}: {event.detail['files']} is not live: {reason}{serves}")
                elif event.kind in follows and not (reloads and _serves(manager, service)):
                    reason = _reason(str(event.detail["error_message"]))
                    where = _its_log(manager, service) if event.kind == "instance.error" else ""
                    note(f"{service.name} {reason}; {follows[event.kind]}{where}")


def _reason(message: str) -> str:
    """On one line, without the service's own words: they are in its log, which is shown here anyway."""
    first, *rest = message.partition(LAST_OUTPUT)[0].splitlines()
    return f"{first} {rest[-1].strip()}" if rest and first.endswith(":") else first


def _its_log(manager: AgentManager, service: Service) -> str:
    path = manager.log_path(service.name)
    return f"; its log is {path}" if path.exists() else ""


async def _tell_refusals(manager: AgentManager) -> None:
    """Prints why the gateway refuses clients, each code once: a browser does not show its page the reason."""
    said: set[str] = set()
    while True:
        for code in _REFUSALS.keys() & manager.get_figures().refusals.keys() - said:
            said.add(code)
            note(_REFUSALS[code])
        await trio.sleep(_LOOK_S)


def _api(manager: AgentManager) -> Callable[..., Awaitable[Any]]:
    async def serve(host: str, port: int, *, task_status: trio.TaskStatus[int]) -> None:
        await serve_api(manager, host=host, port=port, task_status=task_status)

    return serve


async def _open(
    nursery: trio.Nursery, serve: Callable[..., Awaitable[Any]], host: str, port: int, asked: int | None
) -> int:
    """Opens a listener; on a free port where the usual one is taken and no other was asked for."""
    try:
        opened: int = await nursery.start(serve, host, port)
    except PortNotAvailable:
        if asked is not None:
            raise
        opened = await nursery.start(serve, host, 0)
        note(f"port {port} is taken; using {opened} instead")
    return opened


def _welcome(services: list[Service], host: str, proxy: int, api: int, database: Path) -> str:
    names = ", ".join(service.name for service in services)
    called = f"{sys.executable} -m agentmgr" if sys.argv[0].endswith("__main__.py") else sys.argv[0]
    chat = f"{called} chat" if proxy == 9090 else f"{called} chat ws://{host}:{proxy}"
    of_each = "".join(
        f"    only {service.name:<14} ws://{host}:{proxy}/services/{service.name}\n" for service in services
    )
    return (
        f"running {names}\n"
        f"  clients connect to  ws://{host}:{proxy}\n"
        f"{of_each}"
        f"  console             {console(host, api)}\n"
        f"  API                 {url('api', host, api)}/docs\n"
        f"  remembered in       {database}\n"
        f"  try                 {chat}          in another terminal; Ctrl-C here stops everything"
    )


async def _show_log(manager: AgentManager, service: Service, number: int) -> None:
    """What the service writes, with its name before each line."""
    mark = painted(f"{service.name} | ", _STYLES[number % len(_STYLES)])
    output = ProgramOutput()

    async def show(lines: bytes) -> None:
        await say_as_it_is_read([(mark, program_line(line)) for line in output.feed(lines).splitlines()])

    source = manager.open_log(service.name)
    _, end = await source.extent()
    await source.follow(show, start=end)
