"""`agentmgr info`"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ... import __version__
from ...models import TokenPolicy
from ...process.paths import RuntimePaths
from ...worker.pidfile import living
from ..group import Cli, format_option, subcommand
from ..managers import find_manager
from ..out import say_json
from ..render import console, duration, print_fields, url

_LISTENERS = {"proxy": "gateway", "api": "API", "cluster": "cluster"}


@subcommand("info", example="agentmgr info")
@format_option
async def command(cli: Cli, output: str) -> None:
    """Show the running manager, and where the files of this database are."""
    paths = cli.paths
    files = {
        "database": str(paths.database),
        "control_socket": str(paths.control_socket),
        "daemon_log": str(paths.daemon_log),
        "logs": str(paths.logs),
        "sessions": str(paths.sessions),
    }
    client = (await find_manager(paths)).client
    manager = await client.get_info() if client is not None else None
    if output == "json":
        say_json({"version": __version__, "manager": manager, "files": files})
        return
    print_fields(
        [
            *(_of_the_manager(manager) if manager else _without_one(paths)),
            *((name.replace("_", " "), value) for name, value in files.items()),
        ]
    )


def _without_one(paths: RuntimePaths) -> Iterator[tuple[str, object]]:
    yield "manager", "not running"
    if left := ", ".join(str(worker.pid) for worker in living(paths.workers) if not worker.guest):
        yield "gateway", f"left by a manager (pid {left}); `agentmgr daemon` adopts it, `shutdown` ends it"


def _of_the_manager(manager: dict[str, Any]) -> list[tuple[str, object]]:
    return [
        ("manager", f"running, pid {manager['pid']}, version {manager['version']}"),
        ("up", duration(manager["uptime_s"])),
        *(line for listener in manager["listeners"] for line in _lines(listener)),
        *(("fork server", _fork_server(**each)) for each in manager.get("fork_servers", ())),
        ("tokens", _tokens(manager.get("tokens_required"))),
        ("connections", f"at most {manager['limits']['connections']} through the gateway"),
        ("degraded", manager.get("degraded")),
    ]


def _fork_server(
    python: str,
    user: str | None,
    pid: int | None,
    forks: int,
    memory_bytes: int,
    problem: str | None,
    imported: int = 0,
    **_: object,
) -> str:
    of = python if user is None else f"{python}, user {user}"
    if pid is None:
        return f"of {of}: none; the last one: {problem}"
    preloaded = f", {imported} modules preloaded" if imported else ""
    return f"of {of}: pid {pid}, {forks} fork{'s' * (forks != 1)}, {memory_bytes / 2**20:.0f} MiB{preloaded}"


def _tokens(required: dict[str, bool] | None) -> str | None:
    return None if required is None else str(TokenPolicy(**required))  # None: of an older version


def _lines(listener: dict[str, Any]) -> Iterator[tuple[str, str]]:
    workers = listener.get("workers")
    by = f" ({workers} worker{'s' * (workers != 1)})" if workers else ""
    yield _LISTENERS[listener["kind"]], url(**listener) + by
    if listener["kind"] == "api":
        yield "console", console(**listener)
