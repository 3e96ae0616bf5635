"""`agentmgr doctor`"""

from __future__ import annotations

import os
import platform
import resource
import shutil
import socket
import stat
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from attrs import frozen

from ... import __version__
from ...errors import AgentManagerError
from ...models import Service, Token, TokenPolicy, utc_now
from ...process.paths import RuntimePaths
from ...settings import Settings
from ...worker.pidfile import PidFile, living
from .. import environment
from ..group import Cli, format_option, subcommand
from ..managers import find_manager
from ..out import say_json
from ..render import counted, print_table

_LOW_DISK_BYTES = 200 * 2**20  #: what logs and history of a busy day may need
_FEW_FILES = 1024  #: a session through the gateway takes two


@frozen
class Finding:
    what: str
    result: str  #: `ok`, `warning` or `error`
    found: str
    advice: str = ""


@subcommand("doctor", example="agentmgr doctor")
@format_option
async def command(cli: Cli, output: str) -> int:
    """Check the database, its files, the ports, the services' files, and leftovers.

    Exit code 1 when something is wrong; each finding says what to do about it.
    """
    findings = [_versions()]
    try:
        settings = cli.settings()
    except AgentManagerError as error:
        findings.append(Finding("settings", "error", error.message, "see the message"))
    else:
        findings += _files(cli.paths)
        client = (await find_manager(cli.paths)).client
        info = await client.get_info() if client is not None else None
        findings += await _manager_and_database(cli, info)
        ours = {int(listener["port"]) for listener in (info or {}).get("listeners", ())}
        findings += _workers_and_ports(settings, cli.paths, ours)
        findings += _unless_refused("disk", lambda: [_disk(cli.paths)])
    if output == "json":
        say_json(findings)
    else:
        print_table(
            ["check", "result", "found", "what to do"],
            [[f.what, f.result, f.found, f.advice] for f in findings],
            empty="",
        )
    return int(any(finding.result == "error" for finding in findings))


def _unless_refused(what: str, look: Callable[[], Iterable[Finding]]) -> list[Finding]:
    """What `look` finds; where the system does not let it look, that is the finding."""
    try:
        return list(look())
    except OSError as error:
        return [_refused(what, error)]


def _refused(what: str, error: OSError) -> Finding:
    place = f"{error.filename}: " if error.filename is not None else ""
    advice = "run it as the user whose files these are, or give them to this one"
    return Finding(what, "error", f"{place}{error.strerror or error}", advice)


def _versions() -> Finding:
    return Finding(
        "versions", "ok", f"agentmgr {__version__}, Python {platform.python_version()}, {sys.platform}"
    )


def _files(paths: RuntimePaths) -> Iterator[Finding]:
    wanted = {paths.directory: 0o700, paths.control_socket: 0o600, paths.lock: 0o600, paths.database: None}
    for path, mode in wanted.items():
        try:
            found = path.stat()
        except FileNotFoundError:
            continue
        except OSError as error:
            yield Finding("files", "error", f"{path}: {error.strerror}", "give it to the user who runs this")
            continue
        if found.st_uid != os.geteuid():
            yield Finding("files", "error", f"{path} belongs to another user", f"chown it to {os.geteuid()}")
        elif mode is not None and stat.S_IMODE(found.st_mode) & ~mode:
            seen = f"{path} is open to others ({stat.S_IMODE(found.st_mode):o})"
            yield Finding("files", "error", seen, f"chmod {mode:o} {path}")


async def _manager_and_database(cli: Cli, info: dict[str, Any] | None) -> list[Finding]:
    from ..offline import offline

    findings = []
    try:
        async with offline(cli.paths) as manager:
            services = await manager.list_services()
            left, strangers = manager.unsupervised, manager.strangers
            there = cli.paths.database.exists()
            tokens, policy = await manager.list_tokens(), await manager.get_token_policy()
    except AgentManagerError as error:
        return [Finding("database", "error", error.message, "see the message")]
    except OSError as error:
        return [_refused("database", error)]
    _, most_files = resource.getrlimit(resource.RLIMIT_NOFILE)  # a manager raises its own to that
    seen = f"{cli.paths.database}, {counted(len(services), 'service')}" if there else "none yet"
    findings.append(Finding("database", "ok", seen))
    findings.append(_tokens(tokens, policy))
    if info is not None:
        findings.append(_manager(info))
        if missed := environment.stale(cli.paths):
            seen = f"the manager does not have this shell's {', '.join(missed)}"
            findings.append(Finding("environment", "warning", seen, environment.advice()))
        most_files = info["limits"]["open_files"]
    elif left:
        advice = "`agentmgr daemon` adopts them; `agentmgr stop NAME` stops them"
        findings.append(
            Finding("manager", "warning", f"none, but {counted(left, 'instance')} left running", advice)
        )
    else:
        findings.append(Finding("manager", "ok", "not running"))
    for stranger in strangers:
        advice = (
            "nothing: this database is a copy, and leaves the instance alone"
            if stranger.owner_is_there
            else "if that one was moved here: `agentmgr backup FILE`, `agentmgr restore --take-over FILE`"
        )
        findings.append(Finding("instances", "warning", f"recorded here: {stranger}", advice))
    findings.append(_open_files(most_files))
    for service in services:
        findings += _unless_refused(f"service {service.name}", partial(_service, service))
    return findings


def _tokens(tokens: Collection[Token], policy: TokenPolicy) -> Finding:
    closed = policy.closed(tokens, utc_now())
    if closed:
        return Finding("tokens", "warning", "; ".join(closed), "or `agentmgr tokens require off`")
    return Finding("tokens", "ok", f"{policy}; {counted(len(tokens), 'token')}")


def _manager(info: dict[str, Any]) -> Finding:
    seen = f"running, pid {info['pid']}"
    if info.get("degraded"):
        advice = "see the message; services run on, and of a full disk it recovers by itself"
        return Finding("manager", "error", f"{seen}; {info['degraded']}", advice)
    if info["version"] != __version__:
        advice = "`agentmgr shutdown --leave-running`, then start it again: the services run on"
        return Finding("manager", "warning", f"{seen}, version {info['version']}", advice)
    return Finding("manager", "ok", seen)


def _service(service: Service) -> Iterator[Finding]:
    config = service.config
    what = f"service {service.name}"
    path = (service.agent_factory_path or "").partition(":")[0]
    if path.startswith("/") and not Path(path).is_file():
        yield Finding(
            what, "error", f"{path} is gone", f"put it back, or `agentmgr unregister {service.name}`"
        )
    if config.cwd and not Path(config.cwd).is_dir():
        yield Finding(what, "error", f"its directory {config.cwd} is gone", "put it back")
    program = config.python or (config.command[0] if config.command else None)
    if program is not None and shutil.which(program, path=config.env.get("PATH")) is None:
        yield Finding(
            what, "error", f"{program} is not found, or not executable", "install it, or name its path"
        )


def _workers_and_ports(settings: Settings, paths: RuntimePaths, ours: set[int]) -> list[Finding]:
    refused: list[Finding] = []
    workers: list[PidFile] = []
    try:
        workers = living(paths)
    except OSError as error:
        refused = [_refused("workers", error)]
    return [*refused, *_unmanaged(ours, workers), *_ports(settings, ours, workers)]


def _unmanaged(ours: set[int], workers: Sequence[PidFile]) -> Iterator[Finding]:
    left = ", ".join(str(worker.pid) for worker in workers if not worker.guest)
    if left and not ours:
        advice = "`agentmgr daemon` adopts it; `agentmgr shutdown` ends it"
        yield Finding("gateway", "warning", f"served without a manager (pid {left})", advice)


def _ports(settings: Settings, ours: set[int], workers: Sequence[PidFile]) -> Iterator[Finding]:
    for what, host, port in (
        ("gateway port", settings.proxy_host, settings.proxy_port),
        ("API port", settings.api_host, settings.api_port),
    ):
        if port in ours:
            yield Finding(what, "ok", f"{port} is this manager's")
        elif _taken(host, port) and workers:
            pids = ", ".join(str(worker.pid) for worker in workers)
            advice = "if they hold it, leave them: they serve clients, and the next manager takes them over"
            yield Finding(
                what, "warning", f"{port} is taken; workers of this database live (pid {pids})", advice
            )
        elif _taken(host, port):
            advice = "stop what holds it, or use --port"
            yield Finding(what, "warning", f"{port} is taken by another program", advice)
        else:
            yield Finding(what, "ok", f"{port} is free")


def _taken(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=1).close()
    except OSError:
        return False
    return True


def _disk(paths: RuntimePaths) -> Finding:
    place = next(parent for parent in (paths.database, *paths.database.parents) if parent.exists())
    free = shutil.disk_usage(place).free
    seen = f"{free / 2**30:.1f} GiB free at {paths.database.parent}"
    if free < _LOW_DISK_BYTES:
        return Finding("disk", "error", seen, "free some space: logs and history stop when it is full")
    return Finding("disk", "ok", seen)


def _open_files(most: int) -> Finding:
    seen = f"at most {most}" if most != resource.RLIM_INFINITY else "no limit"
    if most != resource.RLIM_INFINITY and most <= _FEW_FILES:
        advice = "raise the hard limit of open files, as with LimitNOFILE= in a systemd unit"
        sessions = most // 2 - 64
        room = f"about {sessions} sessions" if sessions > 0 else "too few for sessions through the gateway"
        return Finding("open files", "warning", f"{seen}: {room}", advice)
    return Finding("open files", "ok", seen)
