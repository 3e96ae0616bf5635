"""The options of `register` and `change` for the fields of a service's configuration."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import asyncclick as click

from ..errors import InvalidRequest
from ..models import OnDisconnect, OnManagerDeath, RestartMode, Runtime, ServiceConfig, WhenBusy
from ..process.paths import absolute, current_directory
from .names import DIRECTORY, FILE, SERVICE
from .out import note
from .words import variables

F = TypeVar("F", bound=Callable[..., Any])

#: What takes effect without a restart.
HARMLESS = frozenset({"name", "description", "tags", "weight", "instances", "env_public", "idle_timeout"})
_DEFAULTS = ServiceConfig()


def _choice(values: Any) -> click.Choice[str]:
    return click.Choice([str(value) for value in values])


_OPTIONS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("max-sessions", "Connections of one instance at a time; 0: any number.", {"type": int}),
    (
        "max-conversations",
        "Sessions that a hosted instance keeps at a time, also without a connection; 0: any number.  "
        "[default: --max-sessions]",
        {"type": int},
    ),
    (
        "idle-timeout",
        "Seconds without a message until the gateway ends a connection; 0: never.  "
        "[default: --session-timeout]",
        {"type": float},
    ),
    (
        "session-timeout",
        "Seconds that a hosted instance keeps a session without a connection; 0: for ever.",
        {"type": float},
    ),
    ("max-message-bytes", "The largest message; 0: any size.", {"type": int}),
    ("turn-timeout", "Seconds for one answer; 0: any time.", {"type": float}),
    ("confirm-timeout", "Seconds for a human to confirm; then it means no.", {"type": float}),
    ("on-disconnect", "What a turn does when its client disconnects.", {"type": _choice(OnDisconnect)}),
    ("when-busy", "What to do with a message that comes during a turn.", {"type": _choice(WhenBusy)}),
    ("instances", "How many to run.", {"type": int}),
    ("weight", "Its share in weighted routing.", {"type": int}),
    ("auto-restart/--no-auto-restart", "Restart it when it fails.", {}),
    ("restart", "When to restart it.", {"type": _choice(RestartMode)}),
    ("max-restart-count", "Restarts within the window before it is given up.", {"type": int}),
    ("restart-window", "Seconds in which restarts are counted.", {"type": float}),
    ("restart-delay", "Seconds before the first restart; doubles each time.", {"type": float}),
    ("restart-delay-max", "The longest delay before a restart, in seconds.", {"type": float}),
    ("stable-after", "Seconds without a failure, after which past ones are forgotten.", {"type": float}),
    ("startup-timeout", "Seconds until it must be ready.", {"type": float}),
    ("stop-timeout", "Seconds from TERM to KILL.", {"type": float}),
    ("drain-timeout", "Seconds for its sessions to end: for a turn that runs.", {"type": float}),
    (
        "drain-idle",
        "Seconds without a message that end a draining session, where turns cannot be seen: of a command.",
        {"type": float},
    ),
    (
        "ready",
        "How a command shows that it is ready: auto, websocket[:PATH], http[:PATH], tcp, notify, started.",
        {"metavar": "HOW"},
    ),
    (
        "health",
        "How it shows that it is healthy: auto, websocket[:PATH], http[:PATH], tcp, watchdog, none.",
        {"metavar": "HOW"},
    ),
    ("health-check-interval", "Seconds between checks.", {"type": float}),
    ("health-check-timeout", "Seconds to wait for a check's answer.", {"type": float}),
    ("unhealthy-threshold", "Failed checks in a row that make it unhealthy.", {"type": int}),
    ("recovery-threshold", "Seconds of being unhealthy before it is restarted.", {"type": float}),
    ("on-manager-death", "Whether it outlives a killed manager.", {"type": _choice(OnManagerDeath)}),
    ("runtime", "The event loop of its code.", {"type": _choice(Runtime)}),
    ("python", "The interpreter for an agent file.", {"metavar": "PATH", "type": FILE}),
    ("cwd", "Its working directory.", {"metavar": "DIR", "type": DIRECTORY}),
    (
        "env",
        "A variable; may be repeated. Its value is hidden everywhere.",
        {"multiple": True, "metavar": "KEY=VALUE"},
    ),
    (
        "env-public",
        "A variable of --env whose value may be shown; may be repeated.",
        {"multiple": True, "metavar": "NAME"},
    ),
    (
        "env-file",
        "A .env file, read at each start by python-dotenv's rules: quotes, comments, escapes, several lines; "
        "${NAME} is a variable that was set before. --env takes precedence.",
        {"metavar": "FILE", "type": FILE},
    ),
    ("disconnect-grace", "Seconds until a lost client's turn is cancelled.", {"type": float}),
    (
        "after",
        "Start it after this service; may be repeated.",
        {"multiple": True, "type": SERVICE, "metavar": "NAME"},
    ),
    ("memory-limit-mb", "Enforced where the platform allows it.", {"type": int}),
    ("cpu-limit-percent", "Of one core; enforced where the platform allows it.", {"type": int}),
    ("max-open-files", "Open files of each of its processes.", {"type": int}),
    ("max-processes", "Processes of one instance.", {"type": int}),
    ("log-max-bytes", "The size at which its log is rotated.", {"type": int}),
    ("log-files", "Log files that are kept, with the current one.", {"type": int}),
)


def config_options(*, defaults: bool) -> Callable[[F], F]:
    """An option that is not given is None or empty; with `defaults` the help names the default."""

    def add(function: F) -> F:
        for name, help, details in reversed(_OPTIONS):
            field = name.partition("/")[0].replace("-", "_")
            declaration = (f"--{name}", f"{field}_words") if field == "env" else (f"--{name}",)
            said = _default(field) if defaults else ""
            function = click.option(*declaration, default=None, help=help + said, **details)(function)
        return function

    return add


def _default(field: str) -> str:
    value = "this one" if field == "cwd" else getattr(_DEFAULTS, field)
    if value is True:
        value = "yes"
    if value is None or value in ({}, (), frozenset()):
        return ""
    return f"  [default: {value:g}]" if isinstance(value, float) else f"  [default: {value}]"


def config_fields(options: dict[str, Any]) -> dict[str, Any]:
    """The fields to set, from the options that were given. Raises `InvalidRequest`."""
    given = {name: value for name, value in options.items() if value not in (None, ())}
    if words := given.pop("env_words", ()):
        given["env"] = variables(words)
    if "cwd" in given:
        given["cwd"] = str(absolute(given["cwd"]))
    return given


def directory_for(program: str) -> str:
    """Where a program runs for which no directory is given: here; beside it when this directory was removed.

    Raises `InvalidRequest` when it was, and the program is named by a relative path.
    """
    try:
        return str(current_directory())
    except InvalidRequest:
        if not Path(program).is_absolute():
            raise
        directory = Path(program).parent
        note(f"the current directory was removed: it will run in {directory}")
        return str(directory)
