"""The flags of every command that can be the manager: its log, its certificate, and access to the gateway."""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import wraps
from typing import Any, TypeVar

import asyncclick as click
from attrs import Attribute, fields

from ..errors import InvalidRequest
from ..models.fields import Option
from ..proxy.certificate import Certificate
from ..settings import Settings
from .names import FILE
from .options import option_of

F = TypeVar("F", bound=Callable[..., Any])


def manager_options(**flags: str) -> Callable[[F], F]:
    """`settings_options`, and those of a certificate, which is the parameter `tls`."""

    def add(function: F) -> F:
        @wraps(function)
        async def with_tls(*args: Any, certfile: str | None, keyfile: str | None, **others: Any) -> Any:
            return await function(*args, tls=read_certificate(certfile, keyfile), **others)

        return settings_options(**flags)(certificate_options(with_tls))  # type: ignore[return-value]

    return add


def certificate_options(function: F) -> F:
    """The parameters `certfile` and `keyfile`."""
    key = click.option(
        "--keyfile", type=FILE, metavar="FILE", help="Its key, in PEM.  [default: in the same file]"
    )
    certificate = click.option(
        "--certfile",
        type=FILE,
        metavar="FILE",
        help="A certificate, in PEM: speak TLS only. Read again when it changes.",
    )
    return certificate(key(function))


def settings_options(*, without: Collection[str] = (), **flags: str) -> Callable[[F], F]:
    """Options of the settings that have a flag, and of those that have one here, by their names.

    Adds the parameter `flags`: each of these settings by its name, None where its flag was not given.
    """
    options = {
        field: flag
        for field in fields(Settings)
        if (option := Option.of(field)) and field.name not in without
        if (flag := flags.get(field.name) or option.flag)
    }

    def add(function: F) -> F:
        @wraps(function)
        async def with_flags(*args: Any, **others: Any) -> Any:
            words = {field.name: others.pop(field.name) for field in options}
            given = {name: None if word == () else word for name, word in words.items()}
            return await function(*args, flags=given, **others)

        wrapped: Any = with_flags
        for field, flag in reversed(options.items()):
            wrapped = option_of(Settings, field.name, flag=flag, **_range(field))(wrapped)
        return wrapped  # type: ignore[no-any-return]  # as above

    return add


def _range(field: Attribute[Any]) -> dict[str, Any]:
    bounds = getattr(field.validator, "schema", {})
    whole = isinstance(bounds.get("maximum"), int)
    return {"type": click.IntRange(bounds["minimum"], bounds["maximum"])} if whole else {}


def kept(given: dict[str, Any], *, gateway: bool) -> list[str]:
    """The flags that a manager which runs already does not take over; with `gateway`, also those of one."""
    flags = {"health_check_interval": "--health-interval"}
    if gateway:
        flags |= {"allowed_origins": "--allow-origin", "trusted_proxies": "--trusted-proxy"}
    return [flag for name, flag in flags.items() if given[name] is not None]


def read_certificate(certfile: str | None, keyfile: str | None) -> Certificate | None:
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
