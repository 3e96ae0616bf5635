"""What commands print: tables for people, JSON for programs.

On a terminal the tables are rich's. Elsewhere they are plain columns, which `grep` and `awk` read well and
which cost no import.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from unicodedata import combining, east_asian_width

from ..core.hosts import authority, is_wildcard
from ..models import DesiredStatus, JobRun, Service, ServiceStatus
from ..visible import visible
from .out import note, on_terminal, painted, say

_COLORS = {
    "running": "green",
    "completed": "green",
    "scheduled": "green",
    "asleep": "green",
    "failed": "red",
    "healthy": "green",
    "starting": "cyan",
    "draining": "cyan",
    "stopping": "cyan",
    "degraded": "yellow",
    "backoff": "yellow",
    "unhealthy": "red",
    "error": "red",
}


_WHOLE = 10  #: a column that is at most so wide is not folded
_NAME = 32  #: what is shown of a client's name for something


def print_table(
    columns: Sequence[str], rows: Iterable[Sequence[object]], *, empty: str, spare: Sequence[str] = ()
) -> None:
    """`empty` is said on stderr when there is nothing to show, so that a pipe gets nothing.

    The columns in `spare` are left out, in this order, where a terminal has no room for them.
    """
    texts = [[visible(_text(cell)) for cell in row] for row in rows]
    if not texts:
        note(empty)
    elif on_terminal():
        _print_rich(columns, texts, spare)
    else:
        _print_plain([[column.upper() for column in columns], *texts])


def print_fields(fields: Iterable[tuple[str, object]]) -> None:
    """One thing in detail: a name and a value on each line; those without a value are left out."""
    texts = [(name, _text(value)) for name, value in fields if value not in (None, "", (), frozenset())]
    width = max((len(name) for name, _ in texts), default=0)
    for name, text in texts:
        first, *rest = text.split("\n")
        say(f"{name:<{width}}  ", _coloured(first))
        for line in rest:
            say(f"{'':<{width}}  {line}")


def shortened(text: str) -> str:
    """At most so much of what a client named that a row of a table stays a row."""
    if _width(text) <= _NAME:
        return text
    while _width(text) >= _NAME:
        text = text[: min(len(text) - 1, _NAME)]
    return f"{text}…"


def counted(number: int, what: str) -> str:
    """As in `1 service`, `2 services`."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def ago(moment: datetime | None) -> str:
    """How long ago, in the two largest units, as in `3h 12m`."""
    return "" if moment is None else duration((datetime.now(UTC) - moment).total_seconds())


def clock(moment: datetime) -> str:
    """As in `2031-05-07 10:00:00+02:00`: local time, with its zone."""
    return moment.astimezone().isoformat(" ", "seconds")


def last_run(run: JobRun | None) -> str | None:
    """As in `completed 3h 12m ago, after 5s`."""
    if run is None:
        return None
    if run.result is None or run.ended_at is None:
        skipped = f", {counted(run.skipped, 'later run')} skipped" if run.skipped else ""
        return f"runs since {clock(run.began_at)}{skipped}"
    took = duration((run.ended_at - run.began_at).total_seconds())
    return f"{run.result} {ago(run.ended_at)} ago, after {took}"


def duration(seconds: float | None) -> str:
    if seconds is None:
        return ""
    if seconds < 60:
        return f"{max(seconds, 0):.0f}s"
    units = (("d", 86400), ("h", 3600), ("m", 60), ("s", 1))
    left = int(seconds)
    parts: list[str] = []
    for name, size in units:
        count, left = divmod(left, size)
        if count or parts:
            parts.append(f"{count}{name}")
    return " ".join(parts[:2])


def size(count: int | None) -> str:
    """As in `18.4 MiB`."""
    if count is None:
        return ""
    value, units = float(count), iter(("B", "KiB", "MiB", "GiB", "TiB"))
    unit = next(units)
    while value >= 1024 and (larger := next(units, None)) is not None:
        value, unit = value / 1024, larger
    return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.1f} {unit}"


def url(kind: str, host: str, port: int, *, tls: bool = False, **others: object) -> str:
    """As in `ws://localhost:9090`; of a listener on every address, what reaches it from this machine.

    `others`: what a manager of another version says besides.
    """
    scheme = {"proxy": "ws", "api": "http"}.get(kind, kind) + ("s" if tls and kind != "cluster" else "")
    if is_wildcard(host):
        host = "localhost"
    return f"{scheme}://{authority(host, port)}"


def console(host: str, port: int, *, tls: bool = False, **others: object) -> str:
    """Where the API at that address has its console."""
    return f"{url('api', host, port, tls=tls)}/console/"


def address(kind: str, host: str, port: int, *, tls: bool, **others: object) -> str:
    """As in `gateway at ws://localhost:9090`."""
    where = url(kind, host, port, tls=tls)
    return {"proxy": f"gateway at {where}", "api": f"API at {where}/docs"}.get(kind, where)


_S = ServiceStatus
_STANDING = {
    _S.STOPPED: ("is stopped", "`agentmgr start {0}` starts it"),
    _S.STARTING: ("is starting", "`agentmgr status {0}` says how far it is"),
    _S.RUNNING: ("is running", "no instance listens on its port (`agentmgr status {0}`)"),
    _S.UNHEALTHY: ("is running and fails its health checks", "`agentmgr logs {0}` may say why"),
    _S.BACKOFF: ("has failed and will be started again", "`agentmgr logs {0}` shows its last words"),
    _S.COMPLETED: ("has completed", "`agentmgr start {0}` runs it again"),
    _S.SCHEDULED: ("waits for its next run", "`agentmgr run-now {0}` runs it now"),
    _S.ASLEEP: ("is asleep until a client comes", "`agentmgr chat {0}` wakes it"),
    _S.DRAINING: ("is stopping as its sessions end", "`agentmgr start {0}` starts it again"),
    _S.STOPPING: ("is stopping", "`agentmgr start {0}` starts it again"),
    _S.ERROR: (
        "has failed and was given up",
        "`agentmgr logs {0}` shows its last words, `agentmgr start {0}` tries again",
    ),
}


def standing(service: Service, *, just_requested: bool = False) -> str:
    """Its state, in a few words that follow its name.

    With `just_requested` a start or stop that has not begun yet is shown as begun.
    """
    status = service.status
    if just_requested and service.desired_status is DesiredStatus.RUNNING and status is _S.STOPPED:
        status = _S.STARTING
    elif just_requested and service.desired_status is DesiredStatus.STOPPED and status is not _S.STOPPED:
        status = _S.STOPPING
    where = f" at {service.endpoint}" if status is _S.RUNNING and service.endpoint else ""
    return f"{_STANDING[status][0]}{where}"


def what_helps(service: Service) -> str:
    """Why it serves no client, and the next step."""
    return f"{service.name} {standing(service)}; {_STANDING[service.status][1].format(service.name)}"


def _text(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, datetime):
        return clock(value)
    if isinstance(value, frozenset | set):
        return ", ".join(sorted(value)) or "-"
    if isinstance(value, tuple | list):
        return " ".join(str(part) for part in value) or "-"
    return str(value) or "-"


def _print_plain(lines: Sequence[Sequence[str]]) -> None:
    widths = [max(_width(line[column]) for line in lines) for column in range(len(lines[0]))]
    for line in lines:
        cells = (text + " " * (width - _width(text)) for text, width in zip(line, widths, strict=True))
        say("  ".join(cells).rstrip())


def _width(text: str) -> int:
    """How many columns of a terminal it takes: some letters take two, and accents none."""
    if text.isascii():
        return len(text)
    return sum(0 if combining(c) else 2 if east_asian_width(c) in "WF" else 1 for c in text)


def _print_rich(columns: Sequence[str], rows: Sequence[Sequence[str]], spare: Sequence[str]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.cells import cell_len
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    widths = [max(map(cell_len, cells)) for cells in zip(columns, *rows, strict=True)]
    shown = list(range(len(columns)))
    for column in map(columns.index, spare):
        if sum(widths[number] + 2 for number in shown) > console.width:  # each has an edge or a gap of two
            shown.remove(column)
    # A word such as `running` stays whole, as long as the longer texts have room to be folded in.
    room = console.width - sum(min(widths[number], _WHOLE) + 2 for number in shown)
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), header_style="bold")
    for number in shown:
        table.add_column(columns[number], overflow="fold", no_wrap=room >= 0 and widths[number] <= _WHOLE)
    for row in rows:
        table.add_row(*(Text(row[number], style=_COLORS.get(row[number], "")) for number in shown))
    console.print(table)


def _coloured(text: str) -> str:
    style = _COLORS.get(text)
    return text if style is None else painted(text, style)
