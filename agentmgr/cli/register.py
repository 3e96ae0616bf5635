"""`agentmgr register`"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import asyncclick as click

from ..errors import ServiceFailedToStart
from ..models import OnDisconnect, OnManagerDeath, RestartMode, Runtime, ServiceConfig, WhenBusy
from .group import Cli, Command, subcommand
from .names import DIRECTORY, FILE, SERVICE
from .reach import for_running, for_writing
from .render import standing
from .watch import progress
from .words import split_tags, variables

F = TypeVar("F", bound=Callable[..., Any])

_DEFAULTS = ServiceConfig()
_DASHES = "agentmgr.register.command"


class _WithCommand(Command):
    """Keeps what stands behind `--` apart: it is the service's command line, not ours."""

    async def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if "--" in args:
            at = args.index("--")
            ctx.meta[_DASHES] = tuple(args[at + 1 :])
            args = args[:at]
        return await super().parse_args(ctx, args)


def _config_option(name: str, help: str, **details: Any) -> Callable[[F], F]:
    """An option for a field of `ServiceConfig`; one that is not given leaves the field at its default."""
    default = getattr(_DEFAULTS, name.replace("-", "_"))
    shown = (
        ""
        if default is None
        else f"  [default: {default:g}]"
        if isinstance(default, float)
        else f"  [default: {default}]"
    )
    return click.option(f"--{name}", default=None, help=help + shown, **details)


@subcommand(
    "register",
    cls=_WithCommand,
    options_metavar="[OPTIONS]",
    example='agentmgr register my-echo-agent my_agent.py --tags "echo,demo" --auto-start\n'
    "agentmgr register chat-js -- node server.js --port {port}",
)
@click.argument("name")
@click.argument("file", required=False, metavar="FILE | -- COMMAND...", type=FILE)
@click.option("--host", default="localhost", show_default=True, help="The address that it listens on.")
@click.option("--port", type=click.IntRange(1, 65535), help="Its port.  [default: a free one at each start]")
@click.option("--description", default="", help="What it is for, for people.")
@click.option("--tags", metavar="A,B", default="", help="Tags, for routing and for lists.")
@click.option("--auto-start", is_flag=True, help="Start it now.")
@_config_option("max-sessions", "Sessions of one instance at a time; 0: any number.", type=int)
@_config_option("session-timeout", "Seconds without a message until a session ends; 0: never.", type=float)
@_config_option("max-message-bytes", "The largest message; 0: any size.", type=int)
@_config_option("turn-timeout", "Seconds for one answer; 0: any time.", type=float)
@_config_option("confirm-timeout", "Seconds for a human to confirm; then it means no.", type=float)
@_config_option(
    "on-disconnect", "What a lost client's turn does.", type=click.Choice([str(v) for v in OnDisconnect])
)
@_config_option("when-busy", "What a message in a turn does.", type=click.Choice([str(v) for v in WhenBusy]))
@_config_option("instances", "How many to run.", type=int)
@_config_option("weight", "Its share among others.", type=int)
@click.option(
    "--auto-restart/--no-auto-restart", default=None, help="Restart it when it fails.  [default: yes]"
)
@_config_option("restart", "When to restart it.", type=click.Choice([str(v) for v in RestartMode]))
@_config_option("max-restart-count", "Restarts within the window before it is given up.", type=int)
@_config_option("restart-window", "Seconds in which restarts are counted.", type=float)
@_config_option("restart-delay", "Seconds until the first restart; then doubling.", type=float)
@_config_option("restart-delay-max", "Seconds between restarts at most.", type=float)
@_config_option("stable-after", "Seconds after which past failures are forgiven.", type=float)
@_config_option("startup-timeout", "Seconds until it must be ready.", type=float)
@_config_option("stop-timeout", "Seconds from TERM to KILL.", type=float)
@_config_option("drain-timeout", "Seconds for its sessions to end.", type=float)
@_config_option("health-check-interval", "Seconds between checks.", type=float)
@_config_option("health-check-timeout", "Seconds for a check's answer.", type=float)
@_config_option("unhealthy-threshold", "Failed checks in a row that make it unhealthy.", type=int)
@_config_option("recovery-threshold", "Unhealthy for so many seconds: it is restarted.", type=float)
@_config_option(
    "on-manager-death",
    "What it does when the manager is killed.",
    type=click.Choice([str(v) for v in OnManagerDeath]),
)
@_config_option("runtime", "The event loop of its code.", type=click.Choice([str(v) for v in Runtime]))
@_config_option("python", "The interpreter for an agent file.", metavar="PATH", type=FILE)
@_config_option("cwd", "Its working directory.  [default: this one]", metavar="DIR", type=DIRECTORY)
@click.option("--env", "env_words", multiple=True, metavar="KEY=VALUE", help="A variable; may be repeated.")
@_config_option(
    "env-file", "Lines of NAME=value, read at each start; --env goes before it.", metavar="FILE", type=FILE
)
@_config_option("disconnect-grace", "Seconds until a lost client's turn is cancelled.", type=float)
@click.option(
    "--after",
    multiple=True,
    type=SERVICE,
    metavar="NAME",
    help="Start it after this service; may be repeated.",
)
@_config_option("memory-limit-mb", "What it may use; where the platform lets us.", type=int)
@_config_option("cpu-limit-percent", "Of one core; where the platform lets us.", type=int)
@_config_option("max-open-files", "Of each of its processes.", type=int)
@_config_option("max-processes", "How many it may have.", type=int)
@_config_option("log-max-bytes", "The size at which its log is rotated.", type=int)
@_config_option("log-files", "How many of them are kept.", type=int)
async def command(
    cli: Cli,
    name: str,
    file: str | None,
    host: str,
    port: int | None,
    description: str,
    tags: str,
    auto_start: bool,
    env_words: tuple[str, ...],
    after: tuple[str, ...],
    **fields: Any,
) -> None:
    """Register a service: an agent file (`agent.py`, `agent.py:factory`, `package.module:factory`), or
    any command that serves WebSockets, behind `--`; {host} and {port} in it are filled in."""
    words: tuple[str, ...] = click.get_current_context().meta.get(_DASHES, ())
    if file and words:
        raise click.UsageError("Give an agent file, or `--` and a command, and not both.")
    if not file and not words:
        raise click.UsageError("Give an agent file, or `--` and a command.")
    given = {field: value for field, value in fields.items() if value is not None}
    config = ServiceConfig(
        agent_factory_path=file,
        command=words,
        env=variables(env_words),
        after=after,
        **{**given, "cwd": str(Path.cwd() / given.get("cwd", "."))},
    )
    reach = for_running if auto_start else for_writing
    async with reach(cli) as manager, progress(cli):
        try:
            service = await manager.register_service(
                name,
                description=description,
                tags=split_tags(tags),
                host=host,
                port=port,
                config=config,
                auto_start=auto_start,
            )
        except ServiceFailedToStart as error:
            raise ServiceFailedToStart(
                f"{error.message}\n{name} is registered: mend it, then `agentmgr start {name}`"
            ) from None
    print(f"registered {service.name}" + (f"; it {standing(service)}" if auto_start else ""))
