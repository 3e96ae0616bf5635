"""What is wrong with a database, its files, ports and services on this machine, and what to do about it.

`agentmgr doctor` asks this, and so does `GET /doctor` of a manager that runs. It blocks: files are looked at,
a port is dialled, and each service's own `python` is asked what it lacks.
"""

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

from ..models import InstanceRecord, Service, ServiceStatus, Token, TokenPolicy, utc_now
from ..process.paths import RuntimePaths
from ..settings import Settings
from ..supervisor.belonging import lives, strangers
from ..supervisor.endings import LAST_OUTPUT
from ..supervisor.python_check import unfit_python
from ..version import __version__
from ..worker.pidfile import PidFile, living
from .reloading import watched

_MANY_SKIPPED = 3  #: runs of a schedule that one run outlasts: it may never end
LOW_DISK_BYTES = 200 * 2**20  #: what logs and history of a busy day may need
FEW_FILES = 1024  #: a session through the gateway takes two


@frozen
class Finding:
    what: str
    result: str  #: `ok`, `warning` or `error`
    found: str
    advice: str = ""


@frozen
class Known:
    """What the database has."""

    services: Sequence[Service]
    instances: Sequence[InstanceRecord]
    tokens: Collection[Token]
    policy: TokenPolicy


def examine(
    paths: RuntimePaths, settings: Settings, known: Known | Finding, info: dict[str, Any] | None
) -> list[Finding]:
    """`known`: or why the database cannot be read. `info`: of the manager that runs, if one does."""
    findings = [versions(), *_files(paths)]
    findings += [known] if isinstance(known, Finding) else _database(paths, known, info)
    ours = {int(listener["port"]) for listener in (info or {}).get("listeners", ())}
    findings += _workers_and_ports(settings, paths, ours)
    return findings + _unless_refused("disk", lambda: [_disk(paths)])


def versions() -> Finding:
    return Finding(
        "versions", "ok", f"agentmgr {__version__}, Python {platform.python_version()}, {sys.platform}"
    )


def refused(what: str, error: OSError) -> Finding:
    """The system did not let it be looked at."""
    place = f"{error.filename}: " if error.filename is not None else ""
    advice = "run it as the user whose files these are, or give them to this one"
    return Finding(what, "error", f"{place}{error.strerror or error}", advice)


def _unless_refused(what: str, look: Callable[[], Iterable[Finding]]) -> list[Finding]:
    """What `look` finds; where the system does not let it look, that is the finding."""
    try:
        return list(look())
    except OSError as error:
        return [refused(what, error)]


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


def _database(paths: RuntimePaths, known: Known, info: dict[str, Any] | None) -> Iterator[Finding]:
    there = paths.database.exists()
    seen = f"{paths.database}, {_counted(len(known.services), 'service')}" if there else "none yet"
    yield Finding("database", "ok", seen)
    yield _tokens(known.tokens, known.policy)
    others = strangers(known.instances, paths.logs)
    _, most_files = resource.getrlimit(resource.RLIMIT_NOFILE)  # a manager raises its own to that
    if info is not None:
        yield _manager(info)
        most_files = info["limits"]["open_files"]
    else:
        theirs = {stranger.record.instance_id for stranger in others}
        left = sum(lives(record) for record in known.instances if record.instance_id not in theirs)
        if left:
            advice = "`agentmgr daemon` adopts them; `agentmgr stop NAME` stops them"
            seen = f"none, but {_counted(left, 'instance')} left running"
            yield Finding("manager", "warning", seen, advice)
        elif unserved := sum(service.is_offered for service in known.services):
            seen = f"{_counted(unserved, 'service')} should run and no manager does"
            yield Finding("manager", "warning", seen, "`agentmgr daemon` runs one, and with it them")
        else:
            yield Finding("manager", "ok", "not running")
    for stranger in others:
        advice = (
            "nothing: this database is a copy, and leaves the instance alone"
            if stranger.owner_is_there
            else "if that one was moved here: `agentmgr backup FILE`, `agentmgr restore --take-over FILE`"
        )
        yield Finding("instances", "warning", f"recorded here: {stranger}", advice)
    yield _open_files(most_files)
    for service in known.services:
        yield from _unless_refused(f"service {service.name}", partial(_service, service))
        yield from _standing(service)


def _tokens(tokens: Collection[Token], policy: TokenPolicy) -> Finding:
    closed = policy.closed(tokens, utc_now())
    if closed:
        return Finding("tokens", "warning", "; ".join(closed), "or `agentmgr tokens require off`")
    return Finding("tokens", "ok", f"{policy}; {_counted(len(tokens), 'token')}")


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
    for place in watched(config, config.watch):
        if not os.path.exists(place.path):
            yield Finding(what, "warning", f"{place.path}, which it watches, is not there", "put it there")
    program = config.python or (config.command[0] if config.command else None)
    if program is None:
        return
    if os.sep in program:
        program = os.path.join(config.cwd or "", program)
    if (found := shutil.which(program, path=config.env.get("PATH"))) is None:
        if os.path.isfile(program):
            yield Finding(what, "error", f"{program} is not executable", f"`chmod +x {program}`")
        else:
            yield Finding(what, "error", f"{program} is not found", "install it, or name its path")
    elif config.python and not config.user:  # what another user owns is not run as this one
        seen, advice = unfit_python(found, config.env)
        if seen:
            yield Finding(what, "error", seen, advice)


def _standing(service: Service) -> Iterator[Finding]:
    """How it does, where it should run."""
    what, name = f"service {service.name}", service.name
    if service.status is ServiceStatus.ERROR and service.is_wanted:
        reason, _, _ = (service.error_message or "no reason given").partition(LAST_OUTPUT)
        first, *_ = reason.splitlines()
        advice = f"`agentmgr logs {name}`; `agentmgr start {name}` tries again"
        yield Finding(what, "error", f"was given up: {first}", advice)
    elif service.status is ServiceStatus.STARTING and service.error_message:
        advice = f"see to that; or `agentmgr change {name}`, then `agentmgr restart {name}`"
        yield Finding(what, "warning", f"has not started yet: {service.error_message}", advice)
    if service.reload_error is not None:
        seen = "what was saved last does not run"
        yield Finding(what, "warning", seen, f"`agentmgr status {name}` says why")
    run = service.last_run
    if run is not None and run.result is None and run.skipped >= _MANY_SKIPPED:
        seen = f"has run since {run.began_at:%Y-%m-%d %H:%M} UTC; {run.skipped} later runs were skipped"
        advice = f"a scheduled program has to end; else `agentmgr change {name} --unset schedule`"
        yield Finding(what, "warning", seen, advice)


def _workers_and_ports(settings: Settings, paths: RuntimePaths, ours: set[int]) -> list[Finding]:
    unreadable: list[Finding] = []
    workers: list[PidFile] = []
    try:
        workers = living(paths.workers)
    except OSError as error:
        unreadable = [refused("workers", error)]
    return [*unreadable, *_unmanaged(ours, workers), *_ports(settings, ours, workers)]


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
    if free < LOW_DISK_BYTES:
        return Finding("disk", "error", seen, "free some space: logs and history stop when it is full")
    return Finding("disk", "ok", seen)


def _open_files(most: int) -> Finding:
    seen = f"at most {most}" if most != resource.RLIM_INFINITY else "no limit"
    if most != resource.RLIM_INFINITY and most <= FEW_FILES:
        advice = "raise the hard limit of open files, as with LimitNOFILE= in a systemd unit"
        sessions = most // 2 - 64
        room = f"about {sessions} sessions" if sessions > 0 else "too few for sessions through the gateway"
        return Finding("open files", "warning", f"{seen}: {room}", advice)
    return Finding("open files", "ok", seen)


def _counted(number: int, noun: str) -> str:
    return f"1 {noun}" if number == 1 else f"{number} {noun}s"
