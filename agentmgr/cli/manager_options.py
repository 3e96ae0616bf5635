"""The flags of every command that can be the manager: its log, its certificate, and access to the gateway."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

import asyncclick as click

from ..errors import InvalidRequest
from ..proxy.certificate import Certificate
from ..settings import LogFormat, LogLevel
from .names import FILE

F = TypeVar("F", bound=Callable[..., Any])


def manager_options(function: F) -> F:
    """Adds the parameters `flags`, settings by their names, and `tls`."""

    @wraps(function)
    async def with_flags_and_tls(
        *args: Any,
        certfile: str | None,
        keyfile: str | None,
        log_level: str | None,
        log_format: str | None,
        gateway: dict[str, Any],
        **others: Any,
    ) -> Any:
        flags = {"log_level": log_level, "log_format": log_format, **gateway}
        return await function(*args, flags=flags, tls=_certificate(certfile, keyfile), **others)

    wrapped: Any = with_flags_and_tls
    return _tls_options(_log_options(gateway_options(wrapped)))  # type: ignore[no-any-return]  # as below


def _log_options(function: F) -> F:
    """Adds the parameters `log_level` and `log_format`."""
    function = click.option(
        "--log-format",
        type=click.Choice([str(format) for format in LogFormat]),
        help="On stderr; auto: pretty on a terminal, else JSON. The manager's log file is always JSON.",
    )(function)
    return click.option(
        "--log-level", type=click.Choice([str(level) for level in LogLevel]), help="[default: info]"
    )(function)


def _tls_options(function: F) -> F:
    """Adds the parameters `certfile` and `keyfile`."""
    function = click.option(
        "--keyfile", type=FILE, metavar="FILE", help="Its key, in PEM.  [default: in the same file]"
    )(function)
    return click.option(
        "--certfile",
        type=FILE,
        metavar="FILE",
        help="A certificate, in PEM: speak TLS only. Read again when it changes.",
    )(function)


def gateway_options(function: F) -> F:
    """Adds the parameter `gateway`: settings by their names, None for those whose flag was not given."""

    @wraps(function)
    async def with_gateway(
        *args: Any,
        allow_origin: tuple[str, ...],
        trusted_proxy: tuple[str, ...],
        proxy_protocol: bool,
        workers: int | None,
        **others: Any,
    ) -> Any:
        gateway = {
            "allowed_origins": allow_origin or None,
            "trusted_proxies": trusted_proxy or None,
            "proxy_protocol": proxy_protocol or None,
            "proxy_workers": workers,
        }
        return await function(*args, gateway=gateway, **others)

    options = (
        click.option(
            "--workers",
            type=click.IntRange(0, 256),
            help="Processes that serve the gateway, on one port; they outlive the manager. 0: it serves it."
            "  [default: 1; 0 for `agentmgr run`]",
        ),
        click.option(
            "--allow-origin",
            multiple=True,
            metavar="ORIGIN",
            help="Web pages that may use the gateway, as in https://app.example; *: all. May be repeated."
            "  [default: this machine's]",
        ),
        click.option(
            "--trusted-proxy",
            multiple=True,
            metavar="NETWORK",
            help="A proxy before the gateway, trusted to tell the client's address. May be repeated.",
        ),
        click.option(
            "--proxy-protocol",
            is_flag=True,
            help="Expect the PROXY protocol, v1 or v2, from the trusted proxies.",
        ),
    )
    wrapped: Any = with_gateway
    for option in reversed(options):
        wrapped = option(wrapped)
    return wrapped  # type: ignore[no-any-return]  # click's decorators keep what they are given


def kept(given: dict[str, Any]) -> list[str]:
    """The flags among them that a manager which runs already does not take over."""
    flags = {"allowed_origins": "--allow-origin", "trusted_proxies": "--trusted-proxy"}
    return [flag for name, flag in flags.items() if given[name] is not None]


def _certificate(certfile: str | None, keyfile: str | None) -> Certificate | None:
    """Raises `InvalidRequest` where the files are unfit."""
    if certfile is None:
        if keyfile is not None:
            raise click.UsageError("--keyfile needs --certfile.")
        return None
    try:
        return Certificate(certfile, keyfile)
    except OSError as error:  # not there, or not PEM: ssl.SSLError is one of these
        raise InvalidRequest(
            f"the certificate {certfile} cannot be used: {error.strerror or error}"
        ) from None
