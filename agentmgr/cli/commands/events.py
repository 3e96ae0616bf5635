"""`agentmgr events`"""

from __future__ import annotations

from collections import deque

import asyncclick as click

from ...models import Event
from ..group import Cli, format_option, subcommand
from ..managers import for_reading, running
from ..out import note, say, say_json
from ..render import clock


@subcommand("events", example="agentmgr events --follow")
@click.option("--follow", "-f", is_flag=True, help="Then show new events as they happen.")
@click.option(
    "--tail", default=50, show_default=True, type=click.IntRange(min=0), help="How many past events."
)
@format_option
async def command(cli: Cli, follow: bool, tail: int, output: str) -> None:
    """Show what happened; as JSON, one event on each line."""
    async with for_reading(cli) as manager:
        names = {service.service_id: service.name for service in await manager.list_services()}
        past: deque[Event] = deque(maxlen=tail)
        last = 0
        while page := await manager.get_events(after=last):
            past.extend(page)
            last = page[-1].event_id
    if not last and not follow:
        note("no events")
    for event in past:
        _show(event, output, names)
    if follow:
        async with (await running(cli)).events(since=last) as events:
            async for event in events:
                _show(event, output, names)


def _show(event: Event, output: str, names: dict[str, str]) -> None:
    if output == "json":
        say_json(event, indent=None, flush=True)
        return
    if event.service_id is not None and "name" in event.detail:
        names[event.service_id] = str(event.detail["name"])
    detail = " ".join(
        f"{name}={value}" for name, value in event.detail.items() if value is not None and name != "name"
    )
    who = names.get(event.service_id or "", event.service_id or event.detail.get("name") or "-")
    say(f"{clock(event.at)}  {event.kind:<22}  {who:<20}  {detail}", flush=True)
