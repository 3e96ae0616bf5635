"""A typed client of the manager's API, over its unix socket or over TCP.

Its methods have the names and the arguments of `AgentManager`'s, and raise the same errors.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Literal

from .. import models
from ..codec import from_answer
from ..errors import AgentManagerError
from .http import Lines
from .nodes import NodeCalls
from .rest import flag, quoted
from .routing import RoutingCalls
from .services import ServiceCalls
from .sessions import SessionsClient
from .tokens import TokenCalls

ListenerKind = Literal["proxy", "api"]


class ManagerClient(ServiceCalls, RoutingCalls, NodeCalls, TokenCalls):
    """Asks a running manager.

        async with ManagerClient(RuntimePaths.of("agents.db").control_socket) as manager:
            for service in await manager.list_services():
                print(service.name, service.status)

    `target` is the path of a control socket, or a URL such as `http://localhost:8080`. `timeout_s` bounds
    each answer, except for those that wait for work to be done. Every method raises `ManagerNotRunning` where
    no manager answers, and the error that the manager had where it answers with one.
    """

    @property
    def sessions(self) -> SessionsClient:
        """The conversations of hosted agents."""
        return SessionsClient(self)

    # The whole

    async def get_info(self) -> dict[str, Any]:
        return await self._json("GET", "/info")

    async def diagnose(self) -> list[dict[str, Any]]:
        """What is wrong on the manager's machine, and what to do: `what`, `result`, `found`, `advice`."""
        return list((await self._json("GET", "/doctor"))["findings"])

    async def get_system_stats(self) -> dict[str, Any]:
        return await self._json("GET", "/stats")

    async def get_connection_stats(self) -> dict[str, Any]:
        return dict((await self.get_system_stats())["connections"])

    async def get_health_summary(self) -> dict[str, Any]:
        return dict((await self.get_system_stats())["health"])

    async def get_events(self, *, after: int = 0, limit: int = 1000) -> tuple[models.Event, ...]:
        """Past events with a higher id than `after`, the oldest first."""
        found: list[models.Event] = []
        async with self.events(since=after, follow=False) as events:
            async for event in events:
                if len(found) == limit:
                    break
                found.append(event)
        return tuple(found)

    async def backup(self, destination: str | Path) -> Path:
        """Has the manager copy its database to a new file, on its machine."""
        data = await self._json("POST", "/backup", json={"path": str(destination)}, waits=True)
        return Path(data["path"])

    @asynccontextmanager
    async def events(
        self, *, since: int | None = None, follow: bool = True
    ) -> AsyncIterator[AsyncIterator[models.Event]]:
        """What happens from now on, or from after the event `since`; without `follow`, what has happened."""
        params = {"follow": flag(follow)}
        if since is not None:
            params["since"] = str(since)
        async with self._stream("GET", "/events", params=params) as response:
            yield Lines(response, _event)

    @asynccontextmanager
    async def samples(self, wants: Iterable[str]) -> AsyncIterator[AsyncIterator[dict[str, Any]]]:
        """Figures at once and each second: of `overview`, `services`, and services by their ids."""
        async with self._stream("GET", "/events", params={"sample": ",".join(wants)}) as response:
            yield Lines(response, _samples())

    # Connections

    async def list_connections(self) -> tuple[models.Connection, ...]:
        return tuple(await self._all(models.Connection, "/connections", {}))

    async def disconnect(self, connection_id: str, *, code: int = 1008, reason: str = "") -> None:
        params = {"code": str(code), "reason": reason}
        await self._answer("DELETE", f"/connections/{quoted(connection_id)}", params=params)

    # On the control socket only

    async def get_digests(self) -> dict[str, Sequence[str]]:
        """Of the files that instances were launched with, by service; over the manager's own socket only."""
        return dict(await self._json("GET", "/digests"))

    async def get_environments(self) -> dict[str, dict[str, str]]:
        """The variables of each service, by its name, with their values."""
        return await self._json("GET", "/environments")

    async def get_hooks(self) -> dict[str, str]:
        """The `on_failure` of each service that has one, by its name, in full."""
        return dict(await self._json("GET", "/hooks"))

    async def request_shutdown(self, *, leave_running: bool = False) -> int:
        """Ends the manager; returns the pid of its process, which goes on for a moment."""
        data = await self._json("POST", "/shutdown", params={"leave_running": flag(leave_running)})
        return int(data["pid"])

    async def create_console_ticket(self, scopes: Iterable[str], *, own_user: bool = False) -> models.Ticket:
        """Logs one browser in to the console; with `own_user`, one of the user who runs the manager."""
        body = {"scopes": sorted(scopes), "own_user": own_user}
        return from_answer(await self._json("POST", "/console/tickets", json=body), models.Ticket)

    @asynccontextmanager
    async def open_listener(
        self,
        kind: ListenerKind,
        host: str,
        port: int,
        *,
        certfile: str | None = None,
        keyfile: str | None = None,
        proxy_protocol: bool = False,
    ) -> AsyncIterator[tuple[int, AsyncIterator[dict[str, Any]]]]:
        """A listener of the manager's that lives as long as the block: its port, and what it reports.

        Raises `PortNotAvailable`.
        """
        body = {
            "kind": kind,
            "host": host,
            "port": port,
            "certfile": certfile,
            "keyfile": keyfile,
            "proxy_protocol": proxy_protocol,
        }
        async with self._stream("POST", "/listeners", json=body) as response:
            lines: Lines[dict[str, Any]] = Lines(response, json.loads)
            first = await anext(lines)
            if error := first.get("error"):
                raise AgentManagerError.from_code(error["code"], error["detail"])
            yield first["port"], lines


def _event(line: bytes) -> models.Event | None:
    # One `data:` line per event is all that our server sends of the format.
    return from_answer(json.loads(line[6:]), models.Event) if line.startswith(b"data: ") else None


def _samples() -> Callable[[bytes], dict[str, Any] | None]:
    kind = b""

    def parse(line: bytes) -> dict[str, Any] | None:
        nonlocal kind
        name, _, value = line.partition(b": ")
        if name == b"event":
            kind = value
        # The kinds of events have a dot, as in `service.changed`.
        return json.loads(value) if name == b"data" and kind == b"sample" else None

    return parse
