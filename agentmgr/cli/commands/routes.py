"""`agentmgr routes …`"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any, TypeVar

import asyncclick as click

from ...errors import InvalidRequest
from ...models import ConditionOperator, RoutingCondition, RoutingRule, RoutingStrategy
from ..group import COMMANDS, Cli, Command, Group, common_options, each, format_option, subcommand
from ..manager_interface import ReadsServices
from ..managers import for_reading, for_writing
from ..names import RULE, SERVICE
from ..options import split_tags
from ..out import note, say, say_json
from ..render import print_fields, print_table

F = TypeVar("F", bound=Callable[..., Any])

_STRATEGIES = click.Choice([str(s) for s in RoutingStrategy])
_LISTS = frozenset({ConditionOperator.IN_LIST, ConditionOperator.NOT_IN_LIST, ConditionOperator.IN_CIDR})


@click.group(
    "routes",
    cls=Group,
    short_help=COMMANDS["routes"],
    example="agentmgr routes add chinese --when query.lang equals zh --tags chinese\n"
    "agentmgr routes test --path '/?lang=zh'",
)
@common_options
def command() -> None:
    """Routing rules decide which services a client of the gateway may reach.

    The rule with the lowest priority number whose conditions all hold is taken. Conditions see the path
    decoded once and normalised (`//`, `/./`, `/../`), the host in any case, with and without its port, and
    query values decoded once; the agent gets the request as it was sent.
    """


def _routes(name: str, help: str, *, example: str) -> Callable[[Callable[..., Any]], Command]:
    return subcommand(name, short_help=help, example=example)


def _rule_options(function: F) -> F:
    for option in reversed(
        [
            click.option(
                "--when",
                "conditions",
                multiple=True,
                nargs=3,
                metavar="FIELD OPERATOR VALUE",
                help="A condition, such as `query.lang equals zh`; may be repeated, all must hold.",
            ),
            click.option("--ignore-case", is_flag=True, default=None, help="For all conditions given here."),
            click.option("--priority", type=int, help="The lowest number is tried first.  [default: 100]"),
            click.option(
                "--service", "services", multiple=True, type=SERVICE, metavar="NAME", help="May be repeated."
            ),
            click.option("--tags", metavar="A,B", help="Services with any of these tags."),
            click.option("--all-tags", is_flag=True, default=None, help="With all of these tags."),
            click.option(
                "--strategy", type=_STRATEGIES, help="How one of them is chosen.  [default: round_robin]"
            ),
            click.option(
                "--fallback",
                type=_STRATEGIES,
                help="Over all services, when none of these can take the client.",
            ),
            click.option("--hash-key", metavar="FIELD", help="For hash_based.  [default: the address]"),
            click.option("--description", help="What it is for."),
        ]
    ):
        function = option(function)
    return function


def _fields(
    conditions: tuple[tuple[str, str, str], ...],
    ignore_case: bool | None,
    services: tuple[str, ...],
    tags: str | None,
    all_tags: bool | None,
    strategy: str | None,
    fallback: str | None,
    **others: Any,
) -> dict[str, Any]:
    """The fields of a rule that were given."""
    found: dict[str, Any] = {name: value for name, value in others.items() if value is not None}
    if conditions:
        found["conditions"] = tuple(_condition(*words, case=not ignore_case) for words in conditions)
    if services:
        found["target_services"] = services
    if tags is not None:
        found["target_tags"] = split_tags(tags)
    if all_tags is not None:
        found["match_all_tags"] = all_tags
    if strategy is not None:
        found["target_strategy"] = RoutingStrategy(strategy)
    if fallback is not None:
        found["fallback_strategy"] = RoutingStrategy(fallback)
    return found


def _condition(field: str, operator: str, value: str, *, case: bool) -> RoutingCondition:
    try:
        kind = ConditionOperator(operator)
    except ValueError:
        raise InvalidRequest(
            f"--when: {operator!r} is not an operator; the operators are {', '.join(ConditionOperator)}"
        ) from None
    values = tuple(word.strip() for word in value.split(",")) if kind in _LISTS else value
    return RoutingCondition(field, kind, values, case)


@_routes("list", "List the rules.", example="agentmgr routes list")
@format_option
async def _list(cli: Cli, output: str) -> None:
    """List the rules, in the order in which they are tried."""
    async with for_reading(cli) as manager:
        rules = await manager.list_routing_rules()
    if output == "json":
        say_json(rules)
        return
    print_table(
        ["name", "priority", "enabled", "when", "to", "strategy", "description"],
        [
            [
                rule.name,
                rule.priority,
                rule.enabled,
                " and ".join(_shown(condition) for condition in rule.conditions) or "always",
                ", ".join([*rule.target_services, *(f"#{tag}" for tag in sorted(rule.target_tags))]) or "all",
                rule.target_strategy,
                rule.description,
            ]
            for rule in rules
        ],
        empty="no routing rules",
    )


def _shown(condition: RoutingCondition) -> str:
    value = condition.value if isinstance(condition.value, str) else ",".join(condition.value)
    return f"{condition.field} {condition.operator} {value}".rstrip()


@_routes(
    "add",
    "Add a rule.",
    example="agentmgr routes add chinese --when query.lang equals zh --tags chinese --priority 1",
)
@click.argument("name")
@_rule_options
@click.option("--disabled", is_flag=True, help="Add it without using it yet.")
async def _add(cli: Cli, name: str, disabled: bool, **options: Any) -> None:
    """Add a rule; it holds for the next client."""
    rule = RoutingRule(name=name, enabled=not disabled, **_fields(**options))
    async with for_writing(cli) as manager:
        await manager.create_routing_rule(rule)
        say(f"added {name}")
        await _mention_missing(manager, rule.target_services, rule.target_tags)


@_routes("change", "Change a rule.", example="agentmgr routes change chinese --priority 5")
@click.argument("name", type=RULE)
@_rule_options
async def _change(cli: Cli, name: str, **options: Any) -> None:
    """Change what is given of a rule; sessions that are open stay where they are."""
    await _update(cli, name, _fields(**options), "changed")


async def _mention_missing(manager: ReadsServices, targets: Collection[str], tags: Collection[str]) -> None:
    """Says which targets do not exist: a rule may come before its services, and may be misspelled."""
    services = await manager.list_services()
    known = {reference for service in services for reference in (service.name, service.service_id)}
    if missing := [target for target in targets if target not in known]:
        note(f"no service is called {' or '.join(map(repr, missing))} yet")
    if tags and not targets and not any(service.tags & set(tags) for service in services):
        note(f"no service has the tag {' or '.join(map(repr, sorted(tags)))} yet")


@_routes("enable", "Use a rule again.", example="agentmgr routes enable chinese")
@click.argument("name", type=RULE)
async def _enable(cli: Cli, name: str) -> None:
    """Use a rule again."""
    await _update(cli, name, {"enabled": True}, "enabled")


@_routes("disable", "Do not use a rule for now.", example="agentmgr routes disable chinese")
@click.argument("name", type=RULE)
async def _disable(cli: Cli, name: str) -> None:
    """Keep a rule without using it."""
    await _update(cli, name, {"enabled": False}, "disabled")


async def _update(cli: Cli, name: str, changes: dict[str, Any], done: str) -> None:
    if not changes:
        raise click.UsageError("Give something to change.")
    async with for_writing(cli) as manager:
        await manager.update_routing_rule(name, changes)
        say(f"{done} {name}")
        await _mention_missing(manager, changes.get("target_services", ()), changes.get("target_tags", ()))


@_routes("remove", "Remove a rule.", example="agentmgr routes remove chinese")
@click.argument("names", metavar="NAME...", nargs=-1, required=True, type=RULE)
async def _remove(cli: Cli, names: tuple[str, ...]) -> int:
    """Remove a rule."""
    async with for_writing(cli) as manager:

        async def remove(name: str) -> None:
            await manager.delete_routing_rule(name)
            say(f"removed {name}")

        return await each(cli, names, remove)


@_routes(
    "test",
    "Show where a client would go.",
    example="agentmgr routes test --path '/?lang=zh' --header 'User-Agent: VIP'",
)
@click.option("--path", default="/", show_default=True, help="The path, with its query.")
@click.option("--client-ip", default="127.0.0.1", show_default=True, help="The client's address.")
@click.option("--header", "headers", multiple=True, metavar="'NAME: VALUE'", help="May be repeated.")
@format_option
async def _test(cli: Cli, path: str, client_ip: str, headers: tuple[str, ...], output: str) -> None:
    """Show which rule a client would meet, who could take it, and who would.

    With no manager running, as if every service that is registered were.
    """
    if not path.startswith("/"):
        raise click.BadParameter("must begin with '/', as that of every request does", param_hint="--path")
    async with for_reading(cli) as manager:
        decision = await manager.test_routing(
            path=path, client_ip=client_ip, headers=dict(_header(word) for word in headers)
        )
        services = await manager.list_services()
    if output == "json":
        say_json(decision)
        return
    named = {
        instance.instance_id: f"{service.name}/{instance.slot}"
        for service in services
        for instance in service.instances
    }
    decision["candidates"] = tuple(named.get(one, one) for one in decision["candidates"])
    decision["chosen"] = named.get(decision["chosen"], decision["chosen"])
    verdicts = decision.pop("rules", ())  # an older manager has none
    print_fields(decision.items())
    if verdicts:
        rows = [[one["name"], one["verdict"], _because(one)] for one in verdicts]
        print_table(["rule", "verdict", "because"], rows, empty="")


def _because(verdict: dict[str, Any]) -> str:
    """The first condition that does not hold, and what the request has there."""
    for condition in verdict["conditions"]:
        if not condition["holds"]:
            value = condition["value"]
            wanted = value if isinstance(value, str) else ",".join(value)
            seen = " and ".join(condition["seen"]) or "nothing"
            return f"{condition['field']} {condition['operator']} {wanted}: the request has {seen}"
    return ""


def _header(word: str) -> tuple[str, str]:
    name, colon, value = word.partition(":")
    if not colon:
        raise InvalidRequest(f"--header {word!r} is not NAME: VALUE")
    return name.strip(), value.strip()


for _command in (_list, _add, _change, _enable, _disable, _remove, _test):
    command.add_command(_command)
