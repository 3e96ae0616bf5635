"""`--certfile` and `--keyfile`, for whatever listens."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TypeVar

import asyncclick as click

from ..errors import InvalidRequest
from ..proxy.certificate import Certificate
from .names import FILE

F = TypeVar("F", bound=Callable[..., Any])


class Files:
    """Where the certificate and its key are, for a manager that runs elsewhere: with absolute paths."""

    def __init__(self, certfile: str | None, keyfile: str | None) -> None:
        self.certfile = certfile and os.path.abspath(certfile)
        self.keyfile = keyfile and os.path.abspath(keyfile)


def tls_options(function: F) -> F:
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


def certificate(certfile: str | None, keyfile: str | None) -> Certificate | None:
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
