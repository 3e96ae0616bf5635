"""The options of `register` and `change` for the fields of a service's configuration."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import asyncclick as click

from ..models import OnDisconnect, OnManagerDeath, RestartMode, Runtime, ServiceConfig, WhenBusy
from .names import DIRECTORY, FILE, SERVICE
from .words import variables

F = TypeVar("F", bound=Callable[..., Any])

HARMLESS = frozenset({"name", "description", "tags", "weight", "instances"})  #: need no restart to hold
_DEFAULTS = ServiceConfig()


def _choice(values: Any) -> click.Choice[str]:
    return click.Choice([str(value) for value in values])


_OPTIONS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("max-sessions", "Sessions of one instance at a time; 0: any number.", {"type": int}),
    ("session-timeout", "Seconds without a message until a session ends; 0: never.", {"type": float}),
    ("max-message-bytes", "The largest message; 0: any size.", {"type": int}),
    ("turn-timeout", "Seconds for one answer; 0: any time.", {"type": float}),
    ("confirm-timeout", "Seconds for a human to confirm; then it means no.", {"type": float}),
    ("on-disconnect", "What a lost client's turn does.", {"type": _choice(OnDisconnect)}),
    ("when-busy", "What a message in a turn does.", {"type": _choice(WhenBusy)}),
    ("instances", "How many to run.", {"type": int}),
    ("weight", "Its share among others.", {"type": int}),
    ("auto-restart/--no-auto-restart", "Restart it when it fails.", {}),
    ("restart", "When to restart it.", {"type": _choice(RestartMode)}),
    ("max-restart-count", "Restarts within the window before it is given up.", {"type": int}),
    ("restart-window", "Seconds in which restarts are counted.", {"type": float}),
    ("restart-delay", "Seconds until the first restart; then doubling.", {"type": float}),
    ("restart-delay-max", "Seconds between restarts at most.", {"type": float}),
    ("stable-after", "Seconds after which past failures are forgiven.", {"type": float}),
    ("startup-timeout", "Seconds until it must be ready.", {"type": float}),
    ("stop-timeout", "Seconds from TERM to KILL.", {"type": float}),
    ("drain-timeout", "Seconds for its sessions to end.", {"type": float}),
    ("health-check-interval", "Seconds between checks.", {"type": float}),
    ("health-check-timeout", "Seconds for a check's answer.", {"type": float}),
    ("unhealthy-threshold", "Failed checks in a row that make it unhealthy.", {"type": int}),
    ("recovery-threshold", "Unhealthy for so many seconds: it is restarted.", {"type": float}),
    ("on-manager-death", "What it does when the manager is killed.", {"type": _choice(OnManagerDeath)}),
    ("runtime", "The event loop of its code.", {"type": _choice(Runtime)}),
    ("python", "The interpreter for an agent file.", {"metavar": "PATH", "type": FILE}),
    ("cwd", "Its working directory.", {"metavar": "DIR", "type": DIRECTORY}),
    ("env", "A variable; may be repeated.", {"multiple": True, "metavar": "KEY=VALUE"}),
    (
        "env-file",
        "Lines of NAME=value, read at each start; --env goes before it.",
        {"metavar": "FILE", "type": FILE},
    ),
    ("disconnect-grace", "Seconds until a lost client's turn is cancelled.", {"type": float}),
    (
        "after",
        "Start it after this service; may be repeated.",
        {"multiple": True, "type": SERVICE, "metavar": "NAME"},
    ),
    ("memory-limit-mb", "What it may use; where the platform lets us.", {"type": int}),
    ("cpu-limit-percent", "Of one core; where the platform lets us.", {"type": int}),
    ("max-open-files", "Of each of its processes.", {"type": int}),
    ("max-processes", "How many it may have.", {"type": int}),
    ("log-max-bytes", "The size at which its log is rotated.", {"type": int}),
    ("log-files", "How many of them are kept.", {"type": int}),
)


def config_options(*, defaults: bool) -> Callable[[F], F]:
    """One that is not given is None or empty; with `defaults` its help says what that means."""

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
    if value is None or value in ({}, ()):
        return ""
    return f"  [default: {value:g}]" if isinstance(value, float) else f"  [default: {value}]"


def config_fields(options: dict[str, Any]) -> dict[str, Any]:
    """The fields of those that were given. Raises `InvalidRequest`."""
    given = {name: value for name, value in options.items() if value not in (None, ())}
    if words := given.pop("env_words", ()):
        given["env"] = variables(words)
    if "cwd" in given:
        given["cwd"] = str(Path.cwd() / given["cwd"])
    return given
