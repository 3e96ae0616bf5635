"""Where the settings come from: flags, then the environment, then `agentmgr.toml`, then the defaults.

Each is checked strictly where it stands, so that a mistake is named with the place it was made in.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from enum import StrEnum
from ipaddress import ip_network
from pathlib import Path
from typing import Any, get_origin

from attrs import Attribute, field, fields, frozen

from .codec import from_plain, parse_toml
from .core.hosts import is_origin
from .errors import FieldProblem, InvalidRequest
from .models.fields import DAY_S, about, between, check_text, invalid, option, rule, type_of
from .models.network_journal import check_url
from .models.nodes import NAME_LABEL, label
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


class ClusterMode(StrEnum):
    OFF = "off"
    JOINED = "joined"  #: with the machines that `agentmgr node --join` has made its nodes
    RAY = "ray"  #: with the machines of a Ray cluster too


FRONTS = ("openai", "agui", "http")
"""The protocols that `agentmgr.fronts` has."""

_SWITCH = {
    **dict.fromkeys(("true", "yes", "on", "1"), True),
    **dict.fromkeys(("false", "no", "off", "0"), False),
}


@rule(minimum=0, maximum=65535)
def _port(_: Any, attribute: Attribute[Any], value: int) -> None:
    if not 0 <= value <= 65535:
        raise invalid(attribute.name, f"must be a port from 0 (any free one) to 65535, not {value}")


def _origins(_: Any, attribute: Attribute[Any], value: tuple[str, ...]) -> None:
    for origin in value:
        if not is_origin(origin):
            problem = f"must be origins, as in https://app.example, or *, not {origin!r}"
            raise invalid(attribute.name, problem)


def _networks(_: Any, attribute: Attribute[Any], value: tuple[str, ...]) -> None:
    for network in value:
        try:
            ip_network(network, strict=False)
        except ValueError:
            problem = f"must be addresses or networks, as in 10.0.0.0/8, not {network!r}"
            raise invalid(attribute.name, problem) from None


def _labels(_: Any, attribute: Attribute[Any], value: tuple[str, ...]) -> None:
    for each in value:
        try:
            key, _value = label(each)
        except InvalidRequest as error:
            raise invalid(attribute.name, f"must be labels: {error.message}") from None
        if key == NAME_LABEL:
            raise invalid(attribute.name, f"must not have {NAME_LABEL}, which is the name of a node")


def _fronts(_: Any, attribute: Attribute[Any], value: str) -> None:
    if value != "none" and not set(value.split(",")) <= set(FRONTS):
        known = ", ".join(FRONTS)
        raise invalid(attribute.name, f"must be none, or some of {known} with commas between, not {value!r}")


@rule(pattern=r"^(head|all|[0-9]{1,4})$")
def _gateways(_: Any, attribute: Attribute[Any], value: str) -> None:
    if not re.fullmatch("head|all|[0-9]{1,4}", value):
        raise invalid(attribute.name, f"must be head, all or a number, not {value!r}")


@frozen
class Settings:
    """What holds for a whole manager. A new setting is a field here, and nothing else.

    Its name is its key in `agentmgr.toml`, and makes its environment variable (`environment_name`). With a
    `flag` it is an option of each command that can be the manager; a command may have flags for others.
    """

    db_path: str = option("agent_manager.db", "The database.", check_text)
    api_host: str = option("localhost", "The address that the API listens on.", check_text)
    api_port: int = option(8080, "The API's port; 0: a free one.", _port)
    api_rate_limit: float = option(
        200.0,
        "Requests a second from one address, over TCP; more are answered 429. 0: no limit.",
        between(0, 1e6, " requests a second"),
    )
    proxy_host: str = option("localhost", "The address that the gateway listens on.", check_text)
    proxy_port: int = option(9090, "The gateway's port; 0: a free one.", _port)
    proxy_workers: int | None = option(
        None,
        "Processes that serve the gateway, on one port; they outlive the manager. 0: it serves it.",
        between(0, 256),
        unset="1; 0 for `agentmgr run`",
        flag="--workers",
    )
    health_check_interval: float = option(
        10.0, "Between health checks.", between(0.05, DAY_S, " seconds"), metavar="SECONDS"
    )
    fork_server: bool = option(
        True,
        "Start hosted agents as forks of a Python that has imported their host; off: each in a new Python.",
    )
    preload_max: int = option(
        4,
        "Processes that have imported what agents import, which then start faster: `preload`; 0: none.",
        between(0, 64),
    )
    allowed_origins: tuple[str, ...] = option(
        (),
        "A web page that may use the gateway, as in https://app.example; *: all.",
        _origins,
        unset="this machine's",
        metavar="ORIGIN",
        flag="--allow-origin",
    )
    trusted_proxies: tuple[str, ...] = option(
        (),
        "A proxy before the gateway, trusted to tell the client's address.",
        _networks,
        metavar="NETWORK",
        flag="--trusted-proxy",
    )
    proxy_protocol: bool = option(
        False, "Expect the PROXY protocol, v1 or v2, from the trusted proxies.", flag="--proxy-protocol"
    )
    fronts: str = option(
        "openai,agui,http",
        "The other protocols that the gateway's port speaks, with commas between; none: WebSockets only.",
        _fronts,
        metavar="NAMES",
        flag="--fronts",
    )
    cluster: ClusterMode = option(
        ClusterMode.OFF,
        "joined: services also run on machines that join: `agentmgr node --join`. ray: and on all machines "
        "of the Ray cluster that this machine belongs to.",
    )
    cluster_host: str | None = option(
        None,
        "The address where nodes reach the manager, by TLS; with a cluster.",
        check_text,
        unset="localhost; with Ray, this machine's address",
    )
    cluster_port: int = option(9443, "The port where they do; 0: a free one.", _port)
    node_labels: tuple[str, ...] = option(
        (),
        "A label of the manager's own machine in its cluster, for `place_on`.",
        _labels,
        metavar="KEY=VALUE",
    )
    ray_address: str = option(
        "auto",
        "The Ray cluster, as HOST:PORT of its head; auto: the one that runs on this machine.",
        check_text,
        metavar="HOST:PORT",
    )
    cluster_python: str | None = option(
        None,
        "The Python whose Ray talks with the cluster: of the same version as on its machines, as is Ray.",
        check_text,
        unset="the manager's",
        metavar="FILE",
    )
    gateways: str = option(
        "head",
        "Gateways in a cluster: head, the manager's alone; all, one on each node as well; or on how many.",
        _gateways,
        metavar="head|all|N",
    )
    node_lost_after: float = option(
        15.0,
        "A node that is silent for so long is lost: what ran there starts elsewhere.",
        between(5.0, DAY_S, " seconds"),
        metavar="SECONDS",
    )
    sessions_url: str | None = field(
        default=None,
        repr=False,
        validator=check_url,
        metadata=about(
            "The Redis that keeps durable sessions, so that they go on on any machine: redis://HOST:6379/0. "
            "One with a password belongs into the environment: others see a command line.",
            unset="a file beside the database",
            metavar="URL",
        ),
    )
    log_level: LogLevel = option(LogLevel.INFO, "What is logged, with all that is worse.", flag="--log-level")
    log_format: LogFormat = option(
        LogFormat.AUTO,
        "On stderr; auto: pretty on a terminal, else JSON. The manager's log file is always JSON.",
        flag="--log-format",
    )

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
        kind = type_of(Settings, attribute.name)
        value: Any = text
        if get_origin(kind) is tuple:
            value = [word.strip() for word in text.split(",")]
        elif issubclass(kind, StrEnum):
            value = text.lower()
        elif kind is bool:
            value = _SWITCH.get(text.strip().lower(), text)
        elif kind in (int, float):
            try:
                value = kind(text)
            except ValueError:
                problem = f"must be a {'whole ' if kind is int else ''}number, not {text!r}"
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
