"""`agentmgr settings`"""

from __future__ import annotations

from attrs import fields

from ...codec import to_plain
from ...models.fields import Option
from ...models.network_journal import shown
from ...settings import Settings, environment_name
from ..group import Cli, format_option, subcommand
from ..out import say_json
from ..render import print_table


@subcommand("settings", example="agentmgr settings")
@format_option
async def command(cli: Cli, output: str) -> None:
    """Show the settings that hold here, and how to set each.

    A flag comes first, then the environment, then `agentmgr.toml` in this directory (or the file that
    AGENTMGR_CONFIG names), whose keys are these names. A manager that runs has those of its start.
    """
    settings = cli.settings()
    rows, table = [], []
    for attribute in fields(Settings):
        name, option = attribute.name, Option.of(attribute)
        assert option is not None
        value, variable = to_plain(getattr(settings, name)), environment_name(name)
        if name == "sessions_url" and value is not None:
            value = shown(value)
        default = to_plain(attribute.default)
        row = {"name": name, "value": value, "default": default, "environment": variable, "help": option.help}
        rows.append(row)
        table.append((name, option.unset if value in (None, []) else value, variable, option.help))
    if output == "json":
        say_json(rows)
        return
    columns = ("setting", "value", "environment", "what it is")
    print_table(columns, table, empty="", spare=("what it is",))
