"""`agentmgr stats`"""

from __future__ import annotations

import asyncclick as click

from ..group import Cli, format_option, subcommand
from ..managers import for_reading
from ..names import SERVICE
from ..out import say_json
from ..render import duration, print_fields, size


@subcommand("stats", example="agentmgr stats --format json")
@click.argument("name", required=False, type=SERVICE)
@format_option
async def command(cli: Cli, name: str | None, output: str) -> None:
    """Show figures of the whole system, or of one service."""
    async with for_reading(cli) as manager:
        figures = await (manager.get_service_stats(name) if name else manager.get_system_stats())
    if output == "json":
        say_json(figures)
    else:
        print_fields(_flat(figures))


def _words(name: str) -> str:
    return name.removesuffix("_s").removesuffix("_bytes").replace("_", " ")


def _flat(figures: dict[str, object], prefix: str = "") -> list[tuple[str, object]]:
    """`{"a": {"b": 1}}` is a line `a b  1`; counts of nothing are left out, except for totals."""
    found: list[tuple[str, object]] = []
    for name, value in figures.items():
        # The names below `by_service` are the user's, and stay as they are.
        own = prefix.endswith("by service ")
        label = prefix + (name if own else _words(name).removesuffix(f" {prefix.strip()}"))
        if isinstance(value, dict):
            found += _flat(value, f"{label} ")
        elif name.endswith("_s") and isinstance(value, float):
            found.append((label, duration(value) if value >= 60 else f"{value:.3g}s"))
        elif name.endswith("_bytes") and isinstance(value, int):
            found.append((label, size(value)))
        elif isinstance(value, list | tuple):
            continue
        elif isinstance(value, float):
            found.append((label, f"{value:.3g}"))
        elif value != 0 or "total" in name or "active" in name:
            found.append((label, value))
    return found
