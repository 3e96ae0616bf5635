"""`agentmgr logs`"""

from __future__ import annotations

import re
from datetime import datetime, timedelta

import asyncclick as click
import trio

from ...models import utc_now
from ..group import Cli, subcommand
from ..managers import for_reading
from ..out import program_output
from ..selection import selected, selection_options

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


class Moment(click.ParamType[datetime]):
    """`10m`: so long ago; or a time such as `2026-11-30 14:00`, of this machine's zone if it names none."""

    name = "moment"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        if ago := re.fullmatch(r"(\d{1,9})([smhdw])", value.strip()):
            try:
                return utc_now() - timedelta(**{_UNITS[ago[2]]: int(ago[1])})
            except OverflowError:
                self.fail(f"{value!r} is too long ago", param, ctx)
        try:
            return datetime.fromisoformat(value.strip()).astimezone()
        except (ValueError, OverflowError):
            self.fail(f"{value!r} is neither a span such as 10m, 2h or 1d nor a time", param, ctx)


@subcommand(
    "logs",
    example="agentmgr logs my-echo-agent --tail 50 --follow\nagentmgr logs 'web-*' --since 10m --grep error",
)
@selection_options
@click.option(
    "--tail",
    "-n",
    type=click.IntRange(0, 100_000),
    help="How many past lines of each instance.  [default: 100; with --since all]",
)
@click.option("--follow", "-f", is_flag=True, help="Then show new output as it is written.")
@click.option(
    "--since", metavar="SPAN|TIME", type=Moment(), help="Only what is not older, such as 10m or 2h."
)
@click.option("--grep", metavar="REGEX", help="Only lines that this matches; `(?i)` before it ignores case.")
@click.option("--timestamps", "-t", is_flag=True, help="Begin each line with the time when it was written.")
@click.option("--instance", type=int, metavar="N", help="Only this instance; the first is 0.")
async def command(
    cli: Cli,
    names: tuple[str, ...],
    tags: str,
    everything: bool,
    tail: int | None,
    follow: bool,
    since: datetime | None,
    grep: str | None,
    timestamps: bool,
    instance: int | None,
) -> None:
    """Show the output of services, in the order of time; of several each line says whose it is.

    The times are those at which the manager saw that the file had grown, 0.1 s later at most.
    """
    chosen = await selected(cli, names, tags, everything)
    which = chosen[0] if len(chosen) == 1 else chosen
    async with for_reading(cli) as manager:
        output = manager.read_logs(
            which, tail=tail, follow=follow, instance=instance, since=since, grep=grep, timestamps=timestamps
        )
        async with output as chunks:
            with program_output() as show:
                async for chunk in chunks:
                    show(chunk)
                    await trio.lowlevel.checkpoint()
