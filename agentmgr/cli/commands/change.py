"""`agentmgr change`"""

from __future__ import annotations

from typing import Any

import asyncclick as click

from ...models import DesiredStatus
from ..group import Cli, subcommand
from ..managers import for_writing
from ..names import SERVICE
from ..options import DEFAULTS, LIVE, given_fields, service_options
from ..out import note, say


@subcommand(
    "change",
    options_metavar="[OPTIONS]",
    example="agentmgr change my-echo-agent --memory-limit-mb 512 --restart always",
)
@click.argument("name", type=SERVICE)
@click.option("--rename", "new_name", metavar="NEW", help="Its new name; logs and history are kept.")
@click.option(
    "--unset",
    multiple=True,
    metavar="OPTION",
    type=click.Choice(tuple(DEFAULTS)),
    help="Take an option back, as in `--unset schedule`: it has its default again. May be repeated.",
)
@service_options(
    {
        "type": click.IntRange(0, 65535),
        "help": "Its port. With a fixed one a restart ends the old instance before the new one starts; "
        "0: a free one at each start.",
    },
    defaults=False,
)
async def command(cli: Cli, name: str, new_name: str | None, unset: tuple[str, ...], **options: Any) -> None:
    """Change fields of a service; fields that are not given stay as they are, and so do other variables
    than those given with --env.

    Running instances keep the old configuration until `agentmgr restart NAME`.
    """
    spec, config = given_fields(options)
    changes = spec | config
    for field, default in (DEFAULTS[word] for word in unset):
        if field in changes:
            raise click.UsageError(f"{field} is given and taken back by --unset: say one of them.")
        changes[field] = default
    if new_name is not None:
        changes["name"] = new_name
    if changes.get("port") == 0:
        changes["port"] = None
    if not changes:
        raise click.UsageError("Nothing to change was given: `agentmgr change --help` lists the fields.")
    async with for_writing(cli) as manager:
        before = await manager.get_service(name)
        if changes.get("env"):  # secrets come hidden, and given back like that stay as they are
            changes["env"] = {**before.config.env, **changes["env"]}
        service = await manager.update_service(name, changes, expected_version=before.version)
    if service.version == before.version:
        say(f"{service.name} is unchanged: it has these values already")
        return
    say(f"changed {service.name}")
    for remark in service.remarks:
        note(f"{service.name}: {remark}")
    if service.desired_status is not DesiredStatus.RUNNING:
        return
    if before.config.schedule is not None and service.config.schedule is None:
        note(f"without a schedule it always runs, from now on: `agentmgr stop {service.name}` ends it")
    elif changes.keys() - LIVE:
        note(f"running instances keep the old configuration until `agentmgr restart {service.name}`")
