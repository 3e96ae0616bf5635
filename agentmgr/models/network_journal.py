"""The addresses of network journals: `redis://…`, `rediss://…` (by TLS) or `unix://…`.

A registration is shown to whoever may look, so its URL has no password: `${NAME}` in it stands for a variable
of the manager's environment. That of the manager's own setting may have one, and is not shown as it is.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, urlsplit

from attrs import Attribute

from ..errors import StorageError
from .fields import invalid, rule
from .host_config import Sessions

SCHEMES = ("redis", "rediss", "unix")
_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
_SECRET = re.compile(r"(://[^:@/]*:).+(?=@)", re.DOTALL)  # also one that is not written as it has to be
_ESCAPES = "in a user or a password, / is written %2F, @ is %40, : is %3A, # is %23"
_EXAMPLE = "redis://HOST:6379/0, rediss://… (TLS) or unix:///run/redis.sock"


SESSIONS_URL = "AGENTMGR_SESSIONS_URL"
"""The variable with the address for a manager; for a host, with that of its service, see `of_service`."""


def of_service(url: str, service_id: str) -> str:
    """The address of one service's journal."""
    return f"{url}#{service_id}"


def is_url(text: str) -> bool:
    return "://" in text


def shown(url: str) -> str:
    """Without its password."""
    return _SECRET.sub(r"\1***", url)


def expanded(url: str, variables: Mapping[str, str]) -> str:
    """With the values of the variables that it names. Raises `StorageError` where one is not set."""
    if lacking := sorted({name for name in _VARIABLE.findall(url) if not variables.get(name)}):
        raise StorageError(
            f"{', '.join(lacking)} is not set, which the journal {shown(url)} needs: start the manager with"
            " it"
        )
    return _VARIABLE.sub(lambda found: quote(variables[found[1]], safe=""), url)


@rule(pattern=rf"^(durable|memory|({'|'.join(SCHEMES)})://.+)$")
def check_sessions(_: Any, attribute: Attribute[Any], value: str) -> None:
    """For a registration."""
    if value in (Sessions.DURABLE, Sessions.MEMORY):
        return
    if not is_url(value):
        raise invalid(attribute.name, f"must be durable, memory, or a URL: {_EXAMPLE}; not {value!r}")
    _check_url(attribute.name, value)
    secret = urlsplit(value).password
    if secret and not _VARIABLE.fullmatch(secret):
        raise invalid(
            attribute.name,
            "has a password, and is shown to whoever may look: write ${NAME} in its place, for a variable "
            "of the manager's environment, or give the whole URL to the manager, as AGENTMGR_SESSIONS_URL",
        )


@rule(pattern=rf"^({'|'.join(SCHEMES)})://.+$")
def check_url(_: Any, attribute: Attribute[Any], value: str | None) -> None:
    """For a setting; what it says is not repeated, as it may be a secret."""
    if value is not None:
        _check_url(attribute.name, value)


def _check_url(name: str, value: str) -> None:
    try:
        url = urlsplit(value)
        port = url.port
    except ValueError:  # it quotes what may be a part of the password
        raise invalid(name, f"cannot be read as a URL: {_ESCAPES}; write {_EXAMPLE}") from None
    if url.scheme not in SCHEMES or not value.isprintable() or " " in value or url.fragment:
        raise invalid(name, f"must be {_EXAMPLE}")
    if (
        (url.scheme == "unix") != bool(not url.hostname)
        or port == 0
        or (url.scheme == "unix" and not url.path)
    ):
        raise invalid(name, f"has no host, no file, or no port that can be dialled: write {_EXAMPLE}")
