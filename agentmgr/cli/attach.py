"""Asks the running manager to open a listener, and keeps it open while this command runs."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any

import trio
from attrs import frozen

from ..client.api import ListenerKind
from ..errors import PortNotAvailable
from ..proxy.certificate import Certificate
from .addresses import address
from .group import Cli
from .out import note, say
from .presence import RETRY_S, answers_at_once
from .reach import running
from .render import clock

_SUCCESSION_S = 3.0  #: a manager that takes the place of another one answers sooner than that


@frozen
class Listener:
    """A listener that the manager is asked to open."""

    kind: ListenerKind
    host: str
    port: int
    tls: Certificate | None
    proxy_protocol: bool = False


async def attach(cli: Cli, listener: Listener, stop: trio.Event) -> None:
    """Opens a listener of the running manager, until `stop` is set.

    When another manager takes its place, as in an upgrade, the listener is opened there. Raises
    `ManagerNotRunning` when the manager is killed.
    """
    while not stop.is_set():
        await _attach_once(cli, listener, stop)
        give_up_at = trio.current_time() + _SUCCESSION_S
        while not (stop.is_set() or await answers_at_once(cli.paths)):
            if trio.current_time() > give_up_at:
                note("the manager has ended, and its listeners with it")
                return
            await trio.sleep(RETRY_S)
        if not stop.is_set():
            note("the manager was replaced; opening again in the new one")


async def _attach_once(cli: Cli, listener: Listener, stop: trio.Event) -> None:
    """Returns when `stop` is set, or when the manager ends."""
    certfile, keyfile = listener.tls.files if listener.tls else (None, None)
    async with (
        running(cli) as client,
        naming_port_owner(cli, listener.kind, listener.port),
        client.open_listener(
            listener.kind,
            listener.host,
            listener.port,
            certfile=certfile,
            keyfile=keyfile,
            proxy_protocol=listener.proxy_protocol,
        ) as (port, lines),
    ):
        say(address(listener.kind, listener.host, port, tls=certfile is not None), flush=True)
        async with trio.open_nursery() as nursery:

            async def listen() -> None:
                async for line in lines:
                    if line.get("kind") == "session.closed":
                        _print_session_end(line)
                nursery.cancel_scope.cancel()

            nursery.start_soon(listen)
            await stop.wait()
            nursery.cancel_scope.cancel()


def _print_session_end(event: dict[str, Any]) -> None:
    """The manager's log has a line too, elsewhere."""
    words = " ".join(f"{name}={value}" for name, value in event["detail"].items() if value not in (None, ""))
    say(f"{clock(datetime.fromisoformat(event['at']))} connection ended {words}", flush=True)


@asynccontextmanager
async def naming_port_owner(cli: Cli, kind: ListenerKind, port: int) -> AsyncIterator[None]:
    """Where this manager itself holds the port, the error says so."""
    try:
        yield
    except* PortNotAvailable:
        async with running(cli) as client:
            listeners = (await client.get_info())["listeners"]
        for listener in listeners:
            if (listener["kind"], listener["port"]) == (kind, port):
                raise PortNotAvailable(
                    f"this manager has its {address(**listener)} already, which serves all clients; "
                    "for a second one, choose another --port"
                ) from None
        raise
