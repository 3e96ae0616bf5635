"""The environment of a child process."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from ..core.restart import Cause
from ..models import ServiceConfig
from .launcher import CannotLaunch

# Addressed to the manager itself by its service manager; a child that answered would speak in its name.
_MANAGERS_OWN = (
    "NOTIFY_SOCKET",
    "WATCHDOG_PID",
    "WATCHDOG_USEC",
    "LISTEN_PID",
    "LISTEN_FDS",
    "LISTEN_FDNAMES",
)


def of_child(config: ServiceConfig, ours: Mapping[str, str]) -> dict[str, str]:
    """The manager's own, then the file's, then the service's, then `ours`. Raises `CannotLaunch`."""
    return {
        **{name: value for name, value in os.environ.items() if name not in _MANAGERS_OWN},
        "PYTHONUNBUFFERED": "1",
        **(_read(config) if config.env_file is not None else {}),
        **config.env,
        **ours,
    }


def _read(config: ServiceConfig) -> dict[str, str]:
    """`NAME=value` lines, as docker and systemd read them: all of the line is the value, less its quotes."""
    assert config.env_file is not None
    file = Path(config.cwd or ".", config.env_file)
    try:
        text = file.read_text()
    except (OSError, UnicodeDecodeError) as error:
        reason = f"cannot read the environment file {file}: {getattr(error, 'strerror', None) or error}"
        raise CannotLaunch(Cause.CANNOT_EXECUTE, reason) from None
    found = {}
    for number, line in enumerate(text.splitlines(), 1):
        line = line.strip().removeprefix("export ")
        if not line or line.startswith("#"):
            continue
        name, equals, value = (part.strip() for part in line.partition("="))
        if not equals or not name.isidentifier():
            raise CannotLaunch(Cause.CANNOT_EXECUTE, f"{file}, line {number}: not of the form NAME=value")
        if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"":
            value = value[1:-1]
        found[name] = value
    return found
