"""Services and routing rules as a TOML file says they should be, and what differs from that.

    [services.weather]
    agent_factory_path = "weather.py"    # relative to the file
    tags = ["weather"]
    running = true                       # the default

    [rules.vip]
    priority = 1
    conditions = [{field = "user_agent", operator = "contains", value = "VIP"}]
    target_services = ["weather"]

The keys are the fields of the REST API. What a service or rule leaves out has its default.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
from attrs import Factory, frozen

from ..codec import from_plain, parse_toml, to_plain
from ..core.bodies import NewRule, NewService, rule_fields, service_fields
from ..core.secrets import HIDDEN, restored, restored_hook
from ..errors import AgentManagerError, InvalidRequest
from ..manager.factory_path import located
from ..models import DesiredStatus, RoutingRule, Service, ServiceStatus
from ..process.paths import absolute
from ..visible import toml_text


@frozen(kw_only=True)
class DeclaredService(NewService):
    running: bool = True


@frozen
class Declaration:
    services: Mapping[str, DeclaredService] = Factory(dict)
    rules: Mapping[str, NewRule] = Factory(dict)


@frozen
class Step:
    """One thing to be done; `changes` has, for each field, what it is and what it should be."""

    action: str  #: `create`, `change`, `remove`, `start`, `stop`, `restart`
    kind: str  #: `service` or `rule`
    name: str
    changes: Mapping[str, tuple[Any, Any]] = Factory(dict)


def read(path: Path) -> Declaration:
    """Raises `InvalidRequest` that names the file, and the line or the key."""
    try:
        data = parse_toml(path.read_text("utf-8"))
    except OSError as error:
        raise InvalidRequest(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:  # not TOML: its message names the line
        raise InvalidRequest(f"{path}: {error}") from None
    unknown = data.keys() - {"services", "rules"}
    if unknown:
        names = ", ".join(sorted(unknown))
        raise InvalidRequest(f"{path}: {names}: only [services.NAME] and [rules.NAME] are known")
    directory = absolute(path.resolve() if path.is_symlink() else path).parent
    services: dict[str, DeclaredService] = {}
    rules: dict[str, NewRule] = {}
    problems: list[str] = []
    for kind in ("services", "rules"):
        for name, table in _tables(path, data, kind):
            try:
                if kind == "services":
                    services[name] = _service(path, directory, name, table)
                else:
                    rules[name] = _parsed(path, kind, name, table, NewRule)
            except InvalidRequest as error:  # all of them are said at once
                problems.append(error.message)
    if problems:
        raise InvalidRequest("\n".join(problems))
    return Declaration(services, rules)


def _tables(path: Path, data: Mapping[str, Any], kind: str) -> Iterator[tuple[str, dict[str, Any]]]:
    tables = data.get(kind, {})
    if not isinstance(tables, dict) or not all(isinstance(table, dict) for table in tables.values()):
        raise InvalidRequest(f"{path}: {kind} must be tables such as [{kind}.NAME]")
    yield from tables.items()


def _service(path: Path, directory: Path, name: str, table: dict[str, Any]) -> DeclaredService:
    service: DeclaredService = _parsed(path, "services", name, table, DeclaredService)
    if bool(service.agent_factory_path) == bool(service.command):
        raise InvalidRequest(f"{path}: services.{name}: give either agent_factory_path or command")
    cwd = directory / (service.cwd or ".")
    factory = service.agent_factory_path
    try:
        found = located(factory, cwd) if factory else None
    except AgentManagerError as error:
        raise InvalidRequest(f"{path}: services.{name}.agent_factory_path: {error.message}") from None
    return attrs.evolve(service, cwd=str(cwd), agent_factory_path=found)


def _parsed(path: Path, kind: str, name: str, table: dict[str, Any], cls: type[Any]) -> Any:
    if "name" in table:
        raise InvalidRequest(f"{path}: {kind}.{name}.name: leave it out: the table's name is the name")
    try:
        return from_plain({**table, "name": name}, cls)
    except InvalidRequest as error:
        where = "; ".join(f"{kind}.{name}.{field.path} {field.message}" for field in error.fields)
        raise InvalidRequest(f"{path}: {where or error.message}") from None


def completed(wanted: Declaration, services: Sequence[Service]) -> Declaration:
    """With the variables that a service requires, has, and was given by a shell (`--env-from-shell`): a file
    that leaves them out does not take them away.
    """
    has = {service.name: service.config.env.keys() for service in services}

    def complete(service: DeclaredService) -> DeclaredService:
        given = dict.fromkeys(service.required_env & has.get(service.name, set()), HIDDEN)
        return attrs.evolve(service, env={**given, **service.env}) if given else service

    return Declaration({name: complete(each) for name, each in wanted.services.items()}, wanted.rules)


def difference(
    wanted: Declaration,
    services: Sequence[Service],
    rules: Sequence[RoutingRule],
    *,
    prune: bool = False,
    retry: bool = False,
    managed: bool = True,
) -> list[Step]:
    """What is to be done so that all is as `wanted`; with `prune`, what it does not name is removed.

    With `retry`, a service that was given up is started again; without a manager (`managed` is false), one
    that should run and does not.
    """
    steps: list[Step] = []
    known = {service.name: service for service in services}
    for name, declared in wanted.services.items():
        steps += _service_steps(declared, known.get(name), retry=retry, managed=managed)
    if prune:
        steps += [Step("remove", "service", name) for name in known.keys() - wanted.services.keys()]
    known_rules = {rule.name: rule for rule in rules}
    for name, rule in wanted.rules.items():
        now = known_rules.get(name)
        changes = _changes(rule_fields(now) if now else _defaults(NewRule), to_plain(rule))
        if changes or now is None:
            steps.append(Step("change" if now else "create", "rule", name, changes))
    if prune:
        steps += [Step("remove", "rule", name) for name in known_rules.keys() - wanted.rules.keys()]
    return steps


_AT_REST = (ServiceStatus.STOPPED, ServiceStatus.SCHEDULED, ServiceStatus.ASLEEP)


def given_up(service: Service) -> bool:
    """Whether it should run, and an instance of it is not started any more."""
    return service.desired_status is DesiredStatus.RUNNING and any(
        instance.status is ServiceStatus.ERROR for instance in service.instances
    )


def _service_steps(
    declared: DeclaredService, now: Service | None, *, retry: bool, managed: bool
) -> Iterator[Step]:
    try:
        restored(declared.env, now.config.env if now else {})
        hook = restored_hook(declared.on_failure, now.config.on_failure if now else None)
    except InvalidRequest as error:
        raise InvalidRequest(
            f"services.{declared.name}: {error.message}, or apply what `agentmgr export --with-env` prints"
        ) from None
    fields = to_plain(attrs.evolve(declared, on_failure=hook))
    running = fields.pop("running")
    changes = _changes(service_fields(now) if now else _defaults(DeclaredService), fields)
    if changes or now is None:
        yield Step("change" if now else "create", "service", declared.name, changes)
    wants = now is not None and now.desired_status is DesiredStatus.RUNNING
    idle = now is not None and ((retry and given_up(now)) or (not managed and now.status in _AT_REST))
    if running != wants or (running and idle):
        yield Step("start" if running else "stop", "service", declared.name)


def _changes(now: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """What differs; of a new one, from the defaults."""
    return {
        name: (now.get(name), value)
        for name, value in wanted.items()
        if name != "name" and not _same(now.get(name), value)
    }


def _defaults(cls: type[Any]) -> dict[str, Any]:
    """As plain data; what has to be given has none."""
    found: dict[str, Any] = {}
    for field in attrs.fields(cls):
        default: Any = field.default
        if isinstance(default, attrs.Factory):  # type: ignore[arg-type]
            default = default.factory()
        if default is not attrs.NOTHING:
            found[field.name] = to_plain(default)
    return found


def _same(now: Any, wanted: Any) -> bool:
    if isinstance(now, dict) and isinstance(wanted, dict) and now.keys() == wanted.keys():
        # A hidden value is as it was.
        return all(wanted[key] in (now[key], HIDDEN) for key in now)
    return bool(now == wanted)


def written(services: Sequence[Service], rules: Sequence[RoutingRule]) -> str:
    """The file that declares what is there; defaults are left out."""
    parts = []
    for service in services:
        fields = {**service_fields(service), "running": service.desired_status == "running"}
        parts.append(_table("services", service.name, fields, DeclaredService))
    for rule in rules:
        parts.append(_table("rules", rule.name, rule_fields(rule), NewRule))
    return "\n".join(parts)


def _table(kind: str, name: str, fields: Mapping[str, Any], cls: type[Any]) -> str:
    lines = [f"[{kind}.{json.dumps(name) if '.' in name else name}]"]
    for field, (_, value) in _changes(_defaults(cls), fields).items():
        if value is not None:
            lines.append(f"{field} = {_toml(value)}")
    return "\n".join(lines) + "\n"


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{toml_text(key)} = {_toml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return toml_text(value)
