"""`--log-level` and `--log-format`, for whatever may be the manager."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import asyncclick as click

from ..settings import LogFormat, LogLevel

F = TypeVar("F", bound=Callable[..., Any])


def log_options(function: F) -> F:
    """Adds the parameters `log_level` and `log_format`."""
    function = click.option(
        "--log-format",
        type=click.Choice([str(format) for format in LogFormat]),
        help="On the terminal; auto: pretty there, JSON elsewhere. The manager's own file is JSON.",
    )(function)
    return click.option(
        "--log-level", type=click.Choice([str(level) for level in LogLevel]), help="[default: info]"
    )(function)
