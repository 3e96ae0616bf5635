"""The commands by name, and what all of them have in common."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from difflib import get_close_matches
from functools import cached_property
from importlib import import_module
from typing import TYPE_CHECKING, Any, TypeVar

import asyncclick as click

from .. import __version__
from ..errors import AgentManagerError
from ..process.paths import RuntimePaths
from ..process.trust import trust
from ..settings import Settings, load_settings
from .out import complain, show_traceback

if TYPE_CHECKING:
    from asyncclick.shell_completion import CompletionItem

F = TypeVar("F", bound=Callable[..., Any])

# Here as well as in each module: `agentmgr --help` imports none of them.
_SECTIONS = {
    "Run something now": {
        "run": "Run agent files now: services, gateway and API in one terminal.",
        "serve": "Serve an agent file by hand, without a manager.",
        "chat": "Talk to an agent.",
        "acp": "Be a service's agent for an editor, over stdin and stdout.",
    },
    "Register and change": {
        "register": "Register an agent file or a command as a service.",
        "change": "Change fields of a service.",
        "unregister": "Forget a service.",
        "apply": "Apply a file that declares services and rules.",
        "export": "Print services and rules as a file for `apply`.",
    },
    "Steer": {
        "start": "Start a service.",
        "stop": "Stop a service.",
        "restart": "Restart a service; new instances are ready before old ones go.",
        "scale": "Change how many instances a service has.",
        "run-now": "Run a service with a schedule now.",
    },
    "See": {
        "list": "List the services.",
        "status": "Show one service in detail.",
        "stats": "Show the figures of the whole system.",
        "logs": "Show the output of a service.",
        "events": "Show what happened.",
        "doctor": "Look for problems, and say how to fix them.",
        "console": "Open the console in a browser.",
    },
    "Clients and conversations": {
        "routes": "List, add, change, remove and try routing rules.",
        "connections": "List the connections that are open through the gateway.",
        "disconnect": "Close connections.",
        "explain": "Say what helps a client that was refused.",
        "sessions": "Conversations: list, watch, speak in and end them.",
        "questions": "List and answer what agents ask a person.",
        "tokens": "Make, list and revoke keys to the API and the gateway.",
    },
    "The manager": {
        "daemon": "Run the manager in the foreground.",
        "proxy": "Open the gateway that clients connect to.",
        "api": "Open the REST API, and its console.",
        "shutdown": "Shut down the manager and its services.",
        "unit": "Print a systemd unit for the manager.",
        "backup": "Copy the database to a file, while everything runs.",
        "restore": "Put a copy of the database back.",
    },
    "More machines": {
        "node": "Run this machine as a node of a manager's cluster.",
        "nodes": "List the nodes of the cluster; invite, drain and forget them.",
    },
    "About it": {
        "info": "Show the running manager and where it keeps its files.",
        "settings": "Show the settings that hold here, and how to set each.",
        "version": "Show the version.",
        "completion": "Print a shell completion script.",
    },
}
COMMANDS = {name: what for section in _SECTIONS.values() for name, what in section.items()}


class Cli:
    """What the options that every command has say."""

    def __init__(self) -> None:
        self.db_path: str | None = None
        self.debug = False

    def settings(self, **flags: Any) -> Settings:
        """Flags that are None were not given."""
        return load_settings({"db_path": self.db_path, **flags})

    @cached_property
    def paths(self) -> RuntimePaths:
        """Raises `DatabaseUnusable` where they can be another user's work."""
        paths = RuntimePaths.of(self.settings().db_path)
        paths.check()
        return paths


async def each(cli: Cli, names: Iterable[str], do: Callable[[str], Awaitable[None]]) -> int:
    """Awaits `do(name)` for each name once: one that fails does not keep the others from their turn.

    Says on stderr which failed; returns the command's exit code.
    """
    failures = 0
    for name in dict.fromkeys(names):
        try:
            await do(name)
        except AgentManagerError as error:
            failures += 1
            if cli.debug:
                show_traceback(error)
            complain(error.message)
    return int(failures > 0)


class _WithExample(click.Command):
    def __init__(self, *args: Any, example: str = "", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.example = example

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        if any(parameter.name == "output" for parameter in self.params):
            from .json_output import printed_by

            with formatter.section("JSON"):
                formatter.write_dl(printed_by(ctx.command_path.removeprefix("agentmgr ")))
        with formatter.section("Example"):
            for line in self.example.splitlines():
                formatter.write(f"  {line}\n")


#: The names of other process managers for our commands.
_ELSEWHERE = {
    **dict.fromkeys(("ls", "ps", "monit", "top"), "list"),
    **dict.fromkeys(("delete", "del", "remove", "rm"), "unregister"),
    **dict.fromkeys(("reload", "bounce"), "restart"),
    **dict.fromkeys(("up", "reread", "import"), "apply"),
    **dict.fromkeys(("down", "kill", "quit"), "shutdown"),
    **dict.fromkeys(("add", "create", "new"), "register"),
    **dict.fromkeys(("startup", "enable", "install"), "unit"),
    **dict.fromkeys(("describe", "show", "inspect"), "status"),
    **dict.fromkeys(("ui", "web", "dashboard"), "console"),
    "tail": "logs",
}


class LazyGroup(_WithExample, click.Group):
    """A group whose commands are modules, imported when they are called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            if not ctx.resilient_parsing and not cmd_name.startswith("-"):
                here = [_ELSEWHERE[cmd_name]] if cmd_name in _ELSEWHERE else None
                near = " or ".join(here or get_close_matches(cmd_name, COMMANDS, n=2))
                ctx.fail(f"No such command {cmd_name!r}." + (f" Did you mean {near}?" if near else ""))
            return None
        command = import_module(f"agentmgr.cli.commands.{cmd_name.replace('-', '_')}").command
        assert isinstance(command, click.Command)
        return command

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem[str]]:
        from asyncclick.shell_completion import CompletionItem

        found = [
            CompletionItem(name, help=COMMANDS[name]) for name in COMMANDS if name.startswith(incomplete)
        ]
        return found + click.Command.shell_complete(self, ctx, incomplete)  # without importing each of them

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        width = max(map(len, COMMANDS))  # one for all, so that the columns of the sections meet
        for heading, commands in _SECTIONS.items():
            with formatter.section(heading):
                formatter.write_dl([(name.ljust(width), what) for name, what in commands.items()])


def _set(name: str) -> Callable[[click.Context, click.Parameter, Any], None]:
    def remember(ctx: click.Context, param: click.Parameter, value: Any) -> None:
        if value == "":
            raise click.BadParameter("must not be empty", ctx, param)
        if value:
            setattr(ctx.ensure_object(Cli), name, value)

    return remember


def _trust(ctx: click.Context, param: click.Parameter, value: tuple[str, ...]) -> None:
    for path in value:
        trust(path)


def common_options(function: F, *, database: bool = True) -> F:
    """`--db-path`, `--trust` and `--debug`, which may stand before the command's name or after it.

    `database`: whether the command has to do with one.
    """
    function = click.option(
        "--debug",
        is_flag=True,
        expose_value=False,
        callback=_set("debug"),
        help="Show the traceback of a failure.",
    )(function)
    function = click.option(
        "--trust",
        metavar="PATH",
        multiple=True,
        expose_value=False,
        callback=_trust,
        help="Use a file or directory that another user owns or can write; or AGENTMGR_TRUST.",
    )(function)
    if not database:
        return function
    return click.option(
        "--db-path",
        metavar="PATH",
        expose_value=False,
        callback=_set("db_path"),
        help="The database; or AGENTMGR_DB.  [default: agent_manager.db]",
    )(function)


def format_option(function: F) -> F:
    return click.option(
        "--format",
        "output",
        type=click.Choice(["table", "json"]),
        default="table",
        show_default=True,
        help="For people, or for programs.",
    )(function)


class Command(_WithExample, click.Command):
    """A command whose help ends with an example."""


class Group(_WithExample, click.Group):
    """Commands that belong together, in the order in which they were added."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


class DefaultGroup(Group):
    """The word after its name is one of its commands, or the first argument of the command `default`."""

    def __init__(self, *args: Any, default: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._default = default
        self.no_args_is_help = False

    async def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        asks_for_help = not {*ctx.help_option_names}.isdisjoint(args)
        word = self._first_word(args)
        takes_words = any(isinstance(p, click.Argument) for p in self.commands[self._default].params)
        # A word that `default` would not take is none of the commands: click says so, and which are like it.
        if word not in self.commands and (word is None or takes_words) and not asks_for_help:
            args = [self._default, *args]
        return await super().parse_args(ctx, args)

    def _first_word(self, args: list[str]) -> str | None:
        """That is no option, and no option's value."""
        options = [*self.params, *self.commands[self._default].params]
        with_value = {flag for p in options if not getattr(p, "is_flag", False) for flag in p.opts}
        words = iter(args)
        for word in words:
            if word in with_value:
                next(words, None)
            elif not word.startswith("-"):
                return word
        return None


def subcommand(
    name: str, *, example: str, database: bool = True, **details: Any
) -> Callable[[Callable[..., Any]], Command]:
    """Makes a `Command` that gets the `Cli` first, with the common options and its line of `COMMANDS`."""

    def make(function: Callable[..., Any]) -> Command:
        short = details.pop("short_help", COMMANDS.get(name))
        wrapped = click.pass_obj(common_options(function, database=database))
        cls: type[Command] = details.pop("cls", Command)
        command = click.command(
            name, cls=cls, example=example, short_help=short, context_settings=_CONTEXT, **details
        )(wrapped)
        assert isinstance(command, Command)
        return command

    return make


_CONTEXT = {"help_option_names": ["-h", "--help"]}


@click.group(
    cls=LazyGroup,
    context_settings=_CONTEXT,
    example="agentmgr run my_agent.py\nagentmgr chat                # in another terminal",
)
@click.version_option(__version__, message="agentmgr %(version)s")
@common_options
def root() -> None:
    """Keeps agent services running and gives their clients one address.

    `agentmgr COMMAND --help` has the options of a command and an example.
    """
