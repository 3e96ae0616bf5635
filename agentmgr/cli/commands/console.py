"""`agentmgr console`"""

from __future__ import annotations

import os
import sys
import webbrowser
from functools import partial
from typing import Any

import asyncclick as click
import trio

from ...client.api import ManagerClient
from ...core.hosts import is_loopback
from ..group import Cli, subcommand
from ..listeners import Listeners, serve
from ..managers import find_manager
from ..out import note, say
from ..render import clock, console

_DISPLAYS = (
    "DISPLAY",
    "WAYLAND_DISPLAY",
    "BROWSER",
)  #: without one of these, a browser would take the terminal


@subcommand("console", example="agentmgr console --scope read --scope sessions")
@click.option(
    "--scope",
    "scopes",
    multiple=True,
    metavar="SCOPE",
    help="What the browser may do where tokens are needed: as of a token; may be repeated.  [default: admin]",
)
@click.option("--no-browser", "--print", "prints", is_flag=True, help="Print the link, and open no browser.")
@click.option("--port", type=click.IntRange(0, 65535), help="Where to open the API, if it is not open yet.")
async def command(cli: Cli, scopes: tuple[str, ...], prints: bool, port: int | None) -> None:
    """Print a link to the console, and open it in a browser.

    Where tokens are needed the link logs one browser in for 12 hours, and is good once, for a minute. Where
    no API is open, this command opens it, until Ctrl-C.
    """
    client = (await find_manager(cli.paths)).client
    listeners = [] if client is None else (await client.get_info())["listeners"]
    api = next((listener for listener in listeners if listener["kind"] == "api"), None)
    if client is not None and api is not None:
        await _show(client, api, scopes, prints)
        return
    settings = cli.settings()

    async def opened(port: int) -> None:
        here = {"host": settings.api_host, "port": port, "tls": False}
        await _show(ManagerClient(cli.paths.control_socket), here, scopes, prints)

    wanted = settings.api_port if port is None else port
    await serve(cli, settings, Listeners(settings.api_host, None, wanted, None, opened), kept=())


async def _show(client: ManagerClient, api: dict[str, Any], scopes: tuple[str, ...], prints: bool) -> None:
    link = console(**api)
    browser = not prints and sys.stdout.isatty() and any(os.environ.get(name) for name in _DISPLAYS)
    if not (await client.get_token_policy()).api and is_loopback(api["host"]):
        if scopes:
            note("no tokens are needed here, so the page may do everything; `agentmgr tokens` changes that")
        say(link, flush=True)
        if browser:
            await _browse(link)
        return
    make = partial(client.create_console_ticket, scopes or ("admin",))
    ticket = await make()
    note(f"good for one browser, until {clock(ticket.expires_at)}:")
    say(f"{link}#ticket={ticket.ticket}", flush=True)
    if browser:  # with a ticket of its own, as every user of the machine can read its command line
        await _browse(f"{link}#ticket={(await make(own_user=True)).ticket}")


async def _browse(link: str) -> None:
    if not await trio.to_thread.run_sync(webbrowser.open, link):
        note("no browser could be opened: open the link by hand")
