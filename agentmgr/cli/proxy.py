"""`agentmgr proxy`"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

import asyncclick as click
import trio

from ..client.api import ListenerKind
from ..codec import to_plain
from ..logging_setup import configure_logging
from ..manager import AgentManager
from ..proxy.certificate import Certificate
from ..settings import Settings
from .addresses import address
from .foreground import Told, managing, run_until_told, until_signalled
from .group import Cli, subcommand
from .listener_options import certificate, files, gateway_options, kept, tls_options
from .listeners import open_gateway
from .log_options import log_options
from .presence import RETRY_S, answers
from .reach import running
from .render import clock, note

_SUCCESSION_S = 3.0  #: a manager that takes the place of another one answers sooner than that


@subcommand("proxy", example="agentmgr proxy --host localhost --port 9090")
@click.option("--host", help="The address to listen on.  [default: localhost]")
@click.option("--port", type=click.IntRange(0, 65535), help="0: a free one.  [default: 9090]")
@click.option("--health-interval", type=float, metavar="SECONDS", help="Between checks.  [default: 10]")
@tls_options
@log_options
@gateway_options
async def command(
    cli: Cli,
    host: str | None,
    port: int | None,
    health_interval: float | None,
    certfile: str | None,
    keyfile: str | None,
    log_level: str | None,
    log_format: str | None,
    gateway: dict[str, Any],
) -> None:
    """Open the gateway that clients connect to, until Ctrl-C.

    With a manager running it is that manager's gateway; without one, this process is the manager meanwhile.
    """
    settings = cli.settings(
        proxy_host=host,
        proxy_port=port,
        health_check_interval=health_interval,
        log_level=log_level,
        log_format=log_format,
        **gateway,
    )
    configure_logging(settings.log_level, settings.log_format)
    tls = certificate(certfile, keyfile)
    opening = {**files(certfile, keyfile), "proxy_protocol": settings.proxy_protocol}
    async with until_signalled() as told:
        if await answers(cli.paths):
            own = (["--health-interval"] if health_interval is not None else []) + kept(gateway)
            if own:
                note(f"a manager is running already; it keeps its own {', '.join(own)}")
            await attach(cli, "proxy", settings.proxy_host, settings.proxy_port, opening, told.once)
        else:
            await _manage(cli, settings, tls, told)


async def _manage(cli: Cli, settings: Settings, tls: Certificate | None, told: Told) -> None:
    async with managing(cli, settings, told) as (manager, listeners), trio.open_nursery() as nursery:
        await open_gateway(listeners, manager, settings.proxy_host, settings.proxy_port, tls)
        nursery.start_soon(_print_session_ends, manager)
        await run_until_told(manager, told)
        nursery.cancel_scope.cancel()


async def _print_session_ends(manager: AgentManager) -> None:
    while True:
        with manager.subscribe() as events:
            async for event in events:
                if event.kind == "session.closed":
                    print_session_end(to_plain(event))


async def attach(
    cli: Cli, kind: ListenerKind, host: str, port: int, opening: Mapping[str, Any], told: trio.Event
) -> None:
    """Opens a listener of the manager that runs, until told to stop; `opening`: how, as its client takes it.

    When another manager takes its place, as in an upgrade, the listener is opened there. Raises
    `ManagerNotRunning` when the manager is killed.
    """
    while not told.is_set():
        await _attach_once(cli, kind, host, port, opening, told)
        give_up_at = trio.current_time() + _SUCCESSION_S
        while not (told.is_set() or await answers(cli.paths)):
            if trio.current_time() > give_up_at:
                note("the manager has ended, and its listeners with it")
                return
            await trio.sleep(RETRY_S)
        if not told.is_set():
            note("the manager was replaced; opening again in the new one")


async def _attach_once(
    cli: Cli, kind: ListenerKind, host: str, port: int, opening: Mapping[str, Any], told: trio.Event
) -> None:
    """Returns when told to, or when the manager ends."""
    async with running(cli) as client, client.open_listener(kind, host, port, **opening) as (port, lines):
        print(address(kind, host, port, tls=opening["certfile"] is not None), flush=True)
        async with trio.open_nursery() as nursery:

            async def listen() -> None:
                async for line in lines:
                    if line.get("kind") == "session.closed":
                        print_session_end(line)
                nursery.cancel_scope.cancel()

            nursery.start_soon(listen)
            await told.wait()
            nursery.cancel_scope.cancel()


def print_session_end(event: dict[str, Any]) -> None:
    detail = event["detail"]
    words = " ".join(f"{name}={value}" for name, value in detail.items() if value not in (None, ""))
    print(f"{clock(datetime.fromisoformat(event['at']))} session ended {words}", flush=True)
