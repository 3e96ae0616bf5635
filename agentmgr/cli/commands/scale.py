"""`agentmgr scale`"""

from __future__ import annotations

from typing import Any

import asyncclick as click
from attrs import fields

from ...errors import InvalidRequest
from ...models import ServiceConfig
from ...models.instance_range import check_instances
from ..group import Cli, subcommand
from ..managers import for_writing
from ..names import SERVICE
from ..options import NumberOrText
from ..out import say
from ..render import counted, standing
from ..watch import progress


class _Instances(NumberOrText):
    name = "instances"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | str:
        found = super().convert(value, param, ctx)
        try:
            check_instances(None, fields(ServiceConfig).instances, found)
        except InvalidRequest as error:
            self.fail(error.message.removeprefix("instances "), param, ctx)
        return found


@subcommand("scale", example="agentmgr scale my-echo-agent 3")
@click.argument("name", type=SERVICE)
@click.argument("instances", type=_Instances())
@click.option("--no-wait", is_flag=True, help="Do not wait until it is done.")
async def command(cli: Cli, name: str, instances: int | str, no_wait: bool) -> None:
    """Run a service with so many instances from now on, or with a range such as 1..8: as many as its load
    needs (`--sessions-per-instance`).
    """
    async with for_writing(cli, adopting=True) as manager, progress(manager):
        service = await manager.scale_service(name, instances, wait=not no_wait)
    stands = standing(service, just_requested=no_wait)
    has = counted(instances, "instance") if isinstance(instances, int) else f"{instances} instances"
    say(f"{service.name} has {has}; it {stands}")
