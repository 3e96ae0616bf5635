"""`agentmgr events`"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from fnmatch import fnmatchcase

import asyncclick as click

from ...models import Event
from ..group import Cli, format_option, subcommand
from ..managers import for_reading, running
from ..names import SERVICE
from ..out import note, say, say_json
from ..render import clock


@subcommand("events", example="agentmgr events --follow\nagentmgr events 'web-*' --kind 'service.reload*'")
@click.argument("names", metavar="[NAME|PATTERN]...", nargs=-1, type=SERVICE)
@click.option(
    "--kind",
    "kinds",
    metavar="PATTERN",
    multiple=True,
    help="Only of this kind, as in 'hook.*'. May be repeated.",
)
@click.option("--follow", "-f", is_flag=True, help="Then show new events as they happen.")
@click.option(
    "--tail", default=50, show_default=True, type=click.IntRange(min=0), help="How many past events."
)
@format_option
async def command(
    cli: Cli, names: tuple[str, ...], kinds: tuple[str, ...], follow: bool, tail: int, output: str
) -> None:
    """Show what happened; as JSON, one event on each line."""
    async with for_reading(cli) as manager:
        wanted = _Wanted(
            {service.service_id: service.name for service in await manager.list_services()}, names, kinds
        )
        past: deque[Event] = deque(maxlen=tail)
        last = 0
        while page := await manager.get_events(after=last):
            past.extend(filter(wanted, page))
            last = page[-1].event_id
    if not past and tail and not follow:
        note("no events")
    for event in past:
        _show(event, output, wanted.who(event))
    if follow:
        async with (await running(cli)).events(since=last) as events:
            async for event in events:
                if wanted(event):
                    _show(event, output, wanted.who(event))


class _Wanted:
    """Which events are asked for, and whose each is."""

    def __init__(self, services: dict[str, str], names: Sequence[str], kinds: Sequence[str]) -> None:
        self._services, self._names, self._kinds = services, names, kinds

    def __call__(self, event: Event) -> bool:
        return _matches(self.who(event), self._names) and _matches(event.kind, self._kinds)

    def who(self, event: Event) -> str:
        if event.service_id is not None and "name" in event.detail:
            self._services[event.service_id] = str(event.detail["name"])
        fallback = event.service_id or event.detail.get("name") or "-"
        return self._services.get(event.service_id or "", str(fallback))


def _matches(text: str, patterns: Sequence[str]) -> bool:
    return not patterns or any(fnmatchcase(text, pattern) for pattern in patterns)


def _show(event: Event, output: str, who: str) -> None:
    if output == "json":
        say_json(event, indent=None, flush=True)
        return
    detail = " ".join(
        f"{name}={value}" for name, value in event.detail.items() if value is not None and name != "name"
    )
    say(f"{clock(event.at)}  {event.kind:<22}  {who:<20}  {detail}", flush=True)
