"""`agentmgr change`"""

from __future__ import annotations

from typing import Any

import asyncclick as click

from ...models import DesiredStatus
from ..group import Cli, subcommand
from ..names import SERVICE
from ..out import note, say
from ..reach import for_reading, for_writing
from ..service_options import HARMLESS, config_fields, config_options
from ..words import split_tags


@subcommand(
    "change",
    options_metavar="[OPTIONS]",
    example="agentmgr change my-echo-agent --memory-limit-mb 512 --restart always",
)
@click.argument("name", type=SERVICE)
@click.option("--rename", "new_name", metavar="NEW", help="Its new name; logs and history are kept.")
@click.option("--host", help="The address it listens on.")
@click.option("--port", type=click.IntRange(0, 65535), help="Its port; 0: a free one at each start.")
@click.option("--description", help="What it is for.")
@click.option("--tags", metavar="A,B", help="Its tags; replaces the present ones.")
@config_options(defaults=False)
async def command(cli: Cli, name: str, new_name: str | None, **options: Any) -> None:
    """Change fields of a service; fields that are not given stay as they are, and so do other variables
    than those given with --env.

    Running instances keep the old configuration until `agentmgr restart NAME`.
    """
    changes = config_fields(options)
    if new_name is not None:
        changes["name"] = new_name
    if "tags" in changes:
        changes["tags"] = split_tags(changes["tags"])
    if changes.get("port") == 0:
        changes["port"] = None
    if not changes:
        raise click.UsageError("Nothing to change was given: `agentmgr change --help` lists the fields.")
    async with for_reading(cli) as seen:
        before = await seen.get_service(name)
    if "env" in changes:  # secrets come hidden, and given back like that stay as they are
        changes["env"] = {**before.config.env, **changes["env"]}
    async with for_writing(cli) as manager:
        service = await manager.update_service(name, changes, expected_version=before.version)
    if service.version == before.version:
        say(f"{service.name} is unchanged: it has these values already")
        return
    say(f"changed {service.name}")
    if service.desired_status is DesiredStatus.RUNNING and changes.keys() - HARMLESS:
        note(f"running instances keep the old configuration until `agentmgr restart {service.name}`")
