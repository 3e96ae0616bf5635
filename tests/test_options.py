"""An option is one field of a model: the command line and the API's schema are made of the fields.

`tests/agent/test_host_flags.py` has the same of the process that hosts an agent.
"""

import re
from typing import Any

import asyncclick as click
import pytest
from attrs import fields, frozen

from agentmgr.api.schemas import Schemas
from agentmgr.cli.commands.api import command as api
from agentmgr.cli.commands.change import command as change
from agentmgr.cli.commands.daemon import command as daemon
from agentmgr.cli.commands.proxy import command as proxy
from agentmgr.cli.commands.register import command as register
from agentmgr.cli.commands.serve import command as serve
from agentmgr.cli.options import given, options_of
from agentmgr.core.bodies import Registration
from agentmgr.errors import InvalidRequest
from agentmgr.models import HostConfig, RestartMode, ServiceConfig, ServiceSpec
from agentmgr.models.fields import Option, between, option
from agentmgr.settings import Settings, environment_name, load_settings


def properties(kind: type[Any]) -> dict[str, Any]:
    schemas = Schemas()
    schemas.of(kind)
    found: dict[str, Any] = schemas.components[kind.__name__]["properties"]
    return found


OF_A_SERVICE = {f.name: Option.of(f) for kind in (ServiceSpec, ServiceConfig) for f in fields(kind)}
OPTIONS = [(name, option) for name, option in OF_A_SERVICE.items() if option is not None]


def test_each_field_that_a_user_gives_says_what_it_is_for():
    assert all(Option.of(field) for field in fields(ServiceConfig))
    assert {name for name, _ in OPTIONS} == properties(Registration).keys() - {"auto_start"}


@pytest.mark.parametrize(("name", "option"), OPTIONS, ids=[name for name, _ in OPTIONS])
def test_each_option_is_explained_alike_everywhere(name, option):
    assert properties(Registration)[name]["description"].startswith(option.help)
    of_host = name in {field.name for field in fields(HostConfig)}
    for command in (register, change, *([serve] if of_host else [])):
        found = [p for p in command.params if p.name == name and isinstance(p, click.Option)]
        assert len(found) == (not option.argument)
        # A word in backticks becomes the flag of the field that it names.
        assert {*re.findall(r"`(\w+)`", f"{option.help} {option.unset}")} <= OF_A_SERVICE.keys()
        first = option.help.partition("`")[0].rstrip(".")
        assert all(p.help.startswith(first) for p in found)


@frozen
class _Tomorrow(ServiceConfig):
    """With options that are not there yet."""

    most_turns: int | None = option(
        None, "Attempts of one turn; see `restart`.", between(1, 9), unset="any number"
    )
    pace: float = option(1.5, "Seconds between them.", between(0, 60))
    again: RestartMode = option(RestartMode.NEVER, "When to try it again.")
    loud: bool = option(False, "Say it.")
    words: tuple[str, ...] = option((), "What to say.", metavar="WORD")


async def test_a_new_option_is_one_field():
    schema = properties(_Tomorrow)
    assert schema["most_turns"] == {
        "anyOf": [{"type": "integer", "minimum": 1, "maximum": 9}, {"type": "null"}],
        "description": "Attempts of one turn; see `restart`.  Default: any number.",
        "default": None,
        "title": "Most turns",  # the rest is for forms
        "x-placeholder": "any number",
    }
    assert schema["pace"]["maximum"] == 60
    assert schema["pace"]["x-unit"] == "s"
    assert schema["again"]["default"] == "never"

    command = click.command("x")(options_of(_Tomorrow)(lambda **options: None))
    text = " ".join(command.get_help(click.Context(command)).split())
    assert "--most-turns INTEGER Attempts of one turn; see --restart. [default: any number]" in text
    assert "--pace FLOAT Seconds between them. [default: 1.5]" in text
    assert "--again [always|on-failure|never] When to try it again. [default: never]" in text
    assert "--loud / --no-loud Say it. [default: no]" in text
    assert "--words WORD What to say. May be repeated." in text

    words = ["--most-turns", "3", "--again", "always", "--loud", "--words", "a", "--words", "b"]
    context = await command.make_context("x", words)
    assert given(context.params) == {
        "most_turns": 3, "again": RestartMode.ALWAYS, "loud": True, "words": ("a", "b"),
    }  # fmt: skip
    assert isinstance(context.params["again"], RestartMode)


@pytest.mark.parametrize("field", fields(Settings), ids=lambda field: field.name)
def test_a_setting_is_one_field_that_is_explained_and_has_a_variable(field, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    setting = Option.of(field)
    assert setting is not None
    for command in (api, proxy, daemon) if setting.flag else ():
        (found,) = (p for p in command.params if isinstance(p, click.Option) and p.name == field.name)
        assert setting.flag in found.opts
        assert found.help.startswith(setting.help)
    with pytest.raises(InvalidRequest, match=environment_name(field.name)):
        load_settings(environ={environment_name(field.name): "\0"})
