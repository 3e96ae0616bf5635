"""Options of the command line, made of the fields of the models (`models.fields.Option`)."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from enum import StrEnum
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, get_origin

import asyncclick as click
from attrs import Attribute, Factory, fields

from ..errors import InvalidRequest
from ..models import ServiceConfig, ServiceSpec
from ..models.fields import Option, type_of
from ..process.paths import absolute, current_directory
from .names import DIRECTORY, FILE, SERVICE
from .out import note

F = TypeVar("F", bound=Callable[..., Any])

#: What takes effect without a restart.
LIVE = frozenset(
    field.name
    for kind in (ServiceSpec, ServiceConfig)
    for field in fields(kind)
    if (option := Option.of(field)) and option.live
)
_COMPLETED = {"FILE": FILE, "DIR": DIRECTORY, "SERVICE": SERVICE}


def service_options(port: Mapping[str, Any], *, defaults: bool) -> Callable[[F], F]:
    """Those of a registration; `given_fields` makes its fields of them."""

    def add(function: F) -> F:
        function = options_of(ServiceConfig, defaults=defaults)(function)
        of_spec = {"tags": {"multiple": False}, "port": port}
        return options_of(ServiceSpec, of_spec, defaults=defaults)(function)

    return add


def options_of(
    kind: type[Any], details: Mapping[str, Mapping[str, Any]] = {}, *, defaults: bool = True
) -> Callable[[F], F]:
    """An option for each field that can be one. `details` of a field take precedence over what is made of it.

    One that is not given is None or empty. Without `defaults` the help does not name them.
    """

    def add(function: F) -> F:
        for field in reversed(fields(kind)):
            if (option := Option.of(field)) and not option.argument:
                make = option_of(kind, field.name, defaults=defaults, **details.get(field.name, {}))
                function = make(function)
        return function

    return add


def option_of(
    kind: type[Any], name: str, *, flag: str = "", defaults: bool = True, **details: Any
) -> Callable[[F], F]:
    """The option for that field."""
    field: Attribute[Any] = getattr(fields(kind), name)
    option = Option.of(field)
    assert option is not None
    hint = type_of(kind, name)
    flag = flag or option.flag or _flag(name)
    if hint is bool:
        flag = f"{flag}/--no-{flag[2:]}"
    multiple = details.setdefault("multiple", get_origin(hint) not in (None, UnionType))
    help = (
        option.help
        + (" May be repeated." if multiple else "")
        + (_default(field, option) if defaults else "")
    )
    details = {
        "help": re.sub(r"`(\w+)`", lambda match: _flag(match[1]), help),
        "metavar": option.metavar,
        "type": _type(hint, option),
        **({"is_flag": False, "flag_value": option.bare} if option.bare else {}),
        **details,
    }
    return click.option(flag, name, default=None, **details)


def _type(hint: Any, option: Option) -> Any:
    if option.metavar in _COMPLETED:
        return _COMPLETED[option.metavar]
    if get_origin(hint) is UnionType:
        return NumberOrText()
    if get_origin(hint) is not None:
        return str
    return _Member(hint) if issubclass(hint, StrEnum) else hint


class NumberOrText(click.ParamType[int | str]):
    """Digits are a number, as in `instances`; the field's own check judges both."""

    name = "text"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | str:
        return int(value) if isinstance(value, str) and re.fullmatch(r"-?[0-9]{1,9}", value) else value


class _Member(click.Choice[str]):
    def __init__(self, kind: type[StrEnum]) -> None:
        super().__init__([str(member) for member in kind])
        self._kind = kind

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> StrEnum:
        return self._kind(super().convert(value, param, ctx))


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _default_of(field: Attribute[Any]) -> Any:
    default: Any = field.default
    return default.factory() if hasattr(default, "factory") else default


def _default(field: Attribute[Any], option: Option) -> str:
    value = option.unset or field.default
    if isinstance(value, bool):
        value = "yes" if value else "no"
    if value in (None, "", (), frozenset()) or isinstance(value, Factory):  # type: ignore[arg-type]
        return ""
    return f"  [default: {value:.15g}]" if isinstance(value, float) else f"  [default: {value}]"


#: What each field is where it is not given, by the word of its flag; those that have no default are not here.
DEFAULTS = {
    _flag(field.name)[2:]: (field.name, _default_of(field))
    for kind in (ServiceSpec, ServiceConfig)
    for field in fields(kind)
    if (option := Option.of(field)) and not option.argument
}


def given(options: Mapping[str, Any]) -> dict[str, Any]:
    """Those that were given."""
    return {name: value for name, value in options.items() if value not in (None, ())}


def given_fields(options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The fields to set of a registration, and of its configuration. Raises `InvalidRequest`."""
    found = given(options)
    if "env" in found:
        found["env"] = _variables(found["env"])
    if "tags" in found:
        found["tags"] = split_tags(found["tags"])
    if "cwd" in found:
        found["cwd"] = str(absolute(found["cwd"]))
    if found.get("ship", "off") != "off":
        found["ship"] = str(absolute(found["ship"]))
    if os.sep in found.get("python", ""):  # else it is searched for in PATH
        found["python"] = str(absolute(found["python"]))
    config = {field.name: found.pop(field.name) for field in fields(ServiceConfig) if field.name in found}
    return found, config


env_from_shell = click.option(
    "--env-from-shell",
    "from_shell",
    multiple=True,
    metavar="NAME",
    help="Give it this variable of this shell, and keep it, as --env NAME=VALUE does. May be repeated.",
)


def split_tags(text: str) -> frozenset[str]:
    """`a,b` is two tags; blanks around them do not count."""
    return frozenset(word.strip() for word in text.split(",") if word.strip())


def _variables(pairs: tuple[str, ...]) -> dict[str, str]:
    """Environment variables from `KEY=VALUE` words."""
    found: dict[str, str] = {}
    for word in pairs:
        key, equals, value = word.partition("=")
        if not equals or not key:
            raise InvalidRequest(f"--env: {key!r} is not KEY=VALUE")
        found[key] = value
    return found


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
