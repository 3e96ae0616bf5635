"""`agentmgr register`"""

from __future__ import annotations

from typing import Any

import asyncclick as click

from ...errors import ServiceFailedToStart
from ...models import ServiceConfig
from ..environment import mention_stale, shells
from ..group import Cli, Command, subcommand
from ..managers import for_running, for_writing
from ..names import FILE
from ..options import directory_for, env_from_shell, given_fields, service_options
from ..out import note, say
from ..render import standing
from ..watch import progress, waits

_DASHES = "agentmgr.register.command"


class _WithCommand(Command):
    """Keeps the words behind `--` apart: they are the service's command line, not ours."""

    async def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if "--" in args:
            at = args.index("--")
            ctx.meta[_DASHES] = tuple(args[at + 1 :])
            args = args[:at]
        return await super().parse_args(ctx, args)


@subcommand(
    "register",
    cls=_WithCommand,
    options_metavar="[OPTIONS]",
    example='agentmgr register my-echo-agent my_agent.py --tags "echo,demo" --auto-start\n'
    "agentmgr register chat-js -- node server.js --port {port}",
)
@click.argument("name")
@click.argument("file", required=False, metavar="FILE | -- COMMAND...", type=FILE)
@service_options({"type": click.IntRange(1, 65535)}, defaults=True)
@env_from_shell
@click.option("--auto-start", is_flag=True, help="Start it now.")
async def command(
    cli: Cli,
    name: str,
    file: str | None,
    auto_start: bool,
    from_shell: tuple[str, ...],
    **options: Any,
) -> None:
    """Register a service: an agent file (`agent.py`, `agent.py:factory`, `package.module:factory`), or
    any command, behind `--`; {host} and {port} in it are filled in."""
    words: tuple[str, ...] = click.get_current_context().meta.get(_DASHES, ())
    if file and words:
        raise click.UsageError("Give an agent file, or `--` and a command, and not both.")
    if not file and not words:
        raise click.UsageError("Give an agent file, or `--` and a command.")
    spec, fields = given_fields(options)
    if "cwd" not in fields:
        fields["cwd"] = directory_for(file or words[0])
    if from_shell:
        fields["env"] = {**fields.get("env", {}), **shells(from_shell)}
    config = ServiceConfig(agent_factory_path=file, command=words, **fields)
    reach = for_running if auto_start else for_writing
    async with reach(cli) as manager, progress(manager):
        try:
            service = await manager.register_service(name, config=config, auto_start=auto_start, **spec)
        except ServiceFailedToStart as error:
            if waiting := await waits(manager, name):
                raise ServiceFailedToStart(f"{name} is registered, and {waiting}") from None
            raise ServiceFailedToStart(
                f"{error.message}\n{name} is registered: fix it, then `agentmgr start {name}`"
            ) from None
        finally:
            if auto_start:
                await mention_stale(cli, manager, [name])
    for remark in service.remarks:
        note(f"{service.name}: {remark}")
    if auto_start:
        say(f"registered {service.name}; it {standing(service)}")
    elif config.schedule:
        say(f"registered {service.name}; its schedule begins with `agentmgr start {service.name}`")
    else:
        say(f"registered {service.name}")
