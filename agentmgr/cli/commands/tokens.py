"""`agentmgr tokens …`"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import asyncclick as click

from ...models import utc_now
from ..group import COMMANDS, Cli, Command, Group, common_options, each, format_option, subcommand
from ..manager_interface import ReadsServices
from ..managers import for_writing, running
from ..names import TOKEN
from ..out import note, say, say_json
from ..render import clock, print_table

_SHOWN = ("token_id", "name", "scopes", "created_at", "expires_at")  #: as JSON


@click.group(
    "tokens",
    cls=Group,
    short_help=COMMANDS["tokens"],
    example="agentmgr tokens create dashboard --scope read",
)
@common_options
def command() -> None:
    """Keys to the API over TCP and to the gateway. Until there is one, they ask for none.

    Scopes: admin (everything), read (all but what is said in conversations), sessions (that, and to speak in
    them), connect (to any service through the gateway), connect:SERVICE.
    """


def _tokens(name: str, help: str, *, example: str) -> Callable[[Callable[..., Any]], Command]:
    return subcommand(name, short_help=help, example=example)


@_tokens("create", "Make a token.", example="agentmgr tokens create dashboard --scope read --expires-days 90")
@click.argument("name")
@click.option(
    "--scope",
    "scopes",
    multiple=True,
    required=True,
    metavar="SCOPE",
    help="admin, read, sessions, connect or connect:SERVICE. May be repeated.",
)
@click.option("--expires-days", type=float, metavar="DAYS", help="[default: never]")
async def _create(cli: Cli, name: str, scopes: tuple[str, ...], expires_days: float | None) -> None:
    """Make a token, and print its key: this once, for only a hash of it is kept."""
    async with for_writing(cli) as manager:
        _, key = await manager.create_token(name, scopes, expires_in_days=expires_days)
        note(f"the key of {name}; it is not shown again:")
        say(key)
        note(str(await manager.get_token_policy()))


@_tokens("list", "List the tokens.", example="agentmgr tokens list")
@format_option
async def _list(cli: Cli, output: str) -> None:
    """List the tokens; never their keys."""
    async with for_writing(cli) as manager:
        tokens = await manager.list_tokens()
        if output == "json":
            say_json([{name: getattr(token, name) for name in _SHOWN} for token in tokens])
            return
        print_table(
            ["name", "scopes", "created", "expires"],
            [[token.name, token.scopes, token.created_at, token.expires_at or "never"] for token in tokens],
            empty="no tokens",
        )
        note(str(await manager.get_token_policy()))
        await _note_closed(manager)


@_tokens("revoke", "Revoke a token.", example="agentmgr tokens revoke dashboard")
@click.argument("names", metavar="NAME...", nargs=-1, required=True, type=TOKEN)
@click.option("--leave-open", is_flag=True, help="What it has opened goes on.")
async def _revoke(cli: Cli, names: tuple[str, ...], leave_open: bool) -> int:
    """Revoke a token: it opens nothing from now on.

    What it has opened ends: sessions through the gateway with the close code 1008, followed events and logs,
    requests that wait.
    """
    async with for_writing(cli) as manager:

        async def revoke(name: str) -> None:
            await manager.delete_token(name, leave_open=leave_open)
            say(f"revoked {name}")

        code = await each(cli, names, revoke)
        await _note_closed(manager)
    return code


@_tokens("require", "Ask for tokens, or no longer.", example="agentmgr tokens require off --gateway")
@click.argument("required", metavar="on|off", type=click.Choice(["on", "off"]))
@click.option("--api", is_flag=True, help="Only of the API over TCP.  [default: both]")
@click.option("--gateway", is_flag=True, help="Only of the gateway.  [default: both]")
async def _require(cli: Cli, required: str, api: bool, gateway: bool) -> None:
    """Have the API over TCP and the gateway ask for tokens, or no longer.

    The first token switches it on. Revoking tokens never switches it off; only this command does.
    """
    both = api == gateway
    async with for_writing(cli) as manager:
        policy = await manager.require_tokens(
            api=required == "on" if api or both else None,
            gateway=required == "on" if gateway or both else None,
        )
        say(str(policy))
        await _note_closed(manager)


async def _note_closed(manager: ReadsServices) -> None:
    """Says which doors no token opens, and how to make one that does."""
    policy = await manager.get_token_policy()
    for sentence in policy.closed(await manager.list_tokens(), utc_now()):
        note(sentence)


@_tokens("ticket", "Make a ticket for one connection.", example="agentmgr tokens ticket --service support")
@click.option("--service", metavar="NAME", help="The only service that it opens.  [default: all]")
@click.option("--expires", type=float, metavar="SECONDS", help="At most 300.  [default: 30]")
async def _ticket(cli: Cli, service: str | None, expires: float | None) -> None:
    """Make a ticket: it opens the gateway once, as ?ticket=TICKET, for those who cannot send a token."""
    made = await (await running(cli)).create_ticket(service, expires_in_s=expires)
    note(f"good for one connection, until {clock(made.expires_at)}:")
    say(made.ticket)


for _command in (_create, _list, _revoke, _require, _ticket):
    command.add_command(_command)
