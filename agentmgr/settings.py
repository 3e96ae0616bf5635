"""Where the settings come from: flags, then the environment, then `agentmgr.toml`, then the defaults.

Each is checked strictly where it stands, so that a mistake is named with the place it was made in.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from enum import StrEnum
from ipaddress import ip_network
from pathlib import Path
from typing import Any

from attrs import Attribute, field, fields, frozen

from .codec import from_plain, parse_toml
from .core.origin import is_origin
from .errors import FieldProblem, InvalidRequest
from .process.trust import Distrusted, read_text


class LogLevel(StrEnum):
    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class LogFormat(StrEnum):
    AUTO = "auto"  #: pretty on a terminal, JSON elsewhere
    PRETTY = "pretty"
    JSON = "json"


_SWITCH = {
    **dict.fromkeys(("true", "yes", "on", "1"), True),
    **dict.fromkeys(("false", "no", "off", "0"), False),
}


def _text(_: Any, attribute: Attribute[Any], value: str) -> None:
    if "\0" in value:
        _refuse(attribute, "must have no NUL characters")


def _port(_: Any, attribute: Attribute[Any], value: int) -> None:
    if not 0 <= value <= 65535:
        _refuse(attribute, f"must be a port from 0 (any free one) to 65535, not {value}")


def _interval(_: Any, attribute: Attribute[Any], value: float) -> None:
    if not 0.05 <= value <= 86400:
        _refuse(attribute, f"must be from 0.05 to 86400 seconds, not {value:g}")


def _rate(_: Any, attribute: Attribute[Any], value: float) -> None:
    if not 0 <= value <= 1e6:
        _refuse(attribute, f"must be from 0 (no limit) to 1000000 requests a second, not {value:g}")


def _origins(_: Any, attribute: Attribute[Any], value: tuple[str, ...]) -> None:
    for origin in value:
        if not is_origin(origin):
            _refuse(attribute, f"must be origins, as in https://app.example, or *, not {origin!r}")


def _networks(_: Any, attribute: Attribute[Any], value: tuple[str, ...]) -> None:
    for network in value:
        try:
            ip_network(network, strict=False)
        except ValueError:
            _refuse(attribute, f"must be addresses or networks, as in 10.0.0.0/8, not {network!r}")


def _workers(_: Any, attribute: Attribute[Any], value: int | None) -> None:
    if value is not None and not 0 <= value <= 256:
        _refuse(attribute, f"must be from 0 (none of their own) to 256, not {value}")


def _refuse(attribute: Attribute[Any], problem: str) -> None:
    raise InvalidRequest(f"{attribute.name} {problem}", fields=[FieldProblem(attribute.name, problem)])


@frozen
class Settings:
    """What holds for a whole manager. Each is also an environment variable, as in `AGENTMGR_API_PORT`."""

    db_path: str = field(default="agent_manager.db", validator=_text)  #: in the environment: `AGENTMGR_DB`
    api_host: str = field(default="localhost", validator=_text)
    api_port: int = field(default=8080, validator=_port)
    api_rate_limit: float = field(default=200.0, validator=_rate)
    """Requests a second from one address, over TCP; more are answered 429. 0: no limit."""
    proxy_host: str = field(default="localhost", validator=_text)
    proxy_port: int = field(default=9090, validator=_port)
    proxy_workers: int | None = field(default=None, validator=_workers)
    """Processes that serve the gateway's clients, on one port; 0: the manager itself does. None: 1 where the
    manager is a program of its own, 0 in `agentmgr run` and within another program."""
    health_check_interval: float = field(default=10.0, validator=_interval)  #: seconds
    allowed_origins: tuple[str, ...] = field(default=(), validator=_origins)
    """Web pages that may use the gateway, as in `https://app.example`; `*`: all. Empty: this machine's."""
    trusted_proxies: tuple[str, ...] = field(default=(), validator=_networks)
    """Addresses or networks that are believed who the client is."""
    proxy_protocol: bool = False  #: the gateway's connections begin with it; it takes a trusted proxy
    log_level: LogLevel = LogLevel.INFO
    log_format: LogFormat = LogFormat.AUTO

    def check_gateway(self) -> None:
        """Raises `InvalidRequest` when a gateway cannot be opened with these settings."""
        if self.proxy_protocol and not self.trusted_proxies:
            raise InvalidRequest("the PROXY protocol needs a trusted proxy: name one with --trusted-proxy")


def environment_name(setting: str) -> str:
    """The environment variable of a setting."""
    return "AGENTMGR_DB" if setting == "db_path" else f"AGENTMGR_{setting.upper()}"


def load_settings(
    flags: Mapping[str, Any] | None = None, *, environ: Mapping[str, str] | None = None
) -> Settings:
    """The settings that hold here and now.

    A flag that is None was not given. The file is `AGENTMGR_CONFIG`, or `agentmgr.toml` in the current
    directory where that exists. Raises `InvalidRequest` that names the place and the key.
    """
    environ = os.environ if environ is None else environ
    given = {name: value for name, value in (flags or {}).items() if value is not None}
    merged = {**_from_file(environ), **_from_environment(environ), **_checked(given, "")}
    return from_plain(merged, Settings)


def _from_file(environ: Mapping[str, str]) -> dict[str, Any]:
    named = environ.get("AGENTMGR_CONFIG")
    path = Path(named or "agentmgr.toml")
    try:
        data = parse_toml(read_text(path))
    except Distrusted as problem:
        raise InvalidRequest(str(problem)) from None
    except FileNotFoundError:
        if named:
            raise InvalidRequest(f"AGENTMGR_CONFIG names {path}, which does not exist") from None
        return {}
    except OSError as error:
        raise InvalidRequest(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:  # not TOML, or not UTF-8
        raise InvalidRequest(f"{path} is not valid TOML: {error}") from error
    _checked(data, f"{path}: ")
    if "db_path" in data:  # what a file names stands relative to that file
        data["db_path"] = str(path.parent / data["db_path"])
    return data


def _from_environment(environ: Mapping[str, str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for attribute in fields(Settings):
        name = environment_name(attribute.name)
        text = environ.get(name)
        if not text:  # an empty variable is the shell's way to take one away
            continue
        value: Any = text.lower() if isinstance(attribute.default, StrEnum) else text
        if isinstance(attribute.default, tuple):
            value = [word.strip() for word in text.split(",")]
        elif isinstance(attribute.default, bool):
            value = _SWITCH.get(text.strip().lower(), text)
        elif attribute.default is None or isinstance(attribute.default, int | float):
            number = float if isinstance(attribute.default, float) else int
            try:
                value = number(text)
            except ValueError:
                kind = "whole number" if number is int else "number"
                problem = f"must be a {kind}, not {text!r}"
                raise InvalidRequest(f"{name} {problem}", fields=[FieldProblem(name, problem)]) from None
        found[attribute.name] = value
        try:
            from_plain({attribute.name: value}, Settings)
        except InvalidRequest as error:
            problems = [FieldProblem(name, problem.message) for problem in error.fields]
            raise InvalidRequest(_sentence(problems), fields=problems) from None
    return found


def _checked(data: dict[str, Any], place: str) -> dict[str, Any]:
    try:
        from_plain(data, Settings)
    except InvalidRequest as error:
        raise InvalidRequest(place + _sentence(error.fields), fields=error.fields) from None
    return data


def _sentence(problems: tuple[FieldProblem, ...] | list[FieldProblem]) -> str:
    return "; ".join(f"{problem.path} {problem.message}" for problem in problems)
