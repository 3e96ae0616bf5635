"""A typed client of the manager's API, over its unix socket or over TCP.

Its methods have the names and the arguments of `AgentManager`'s, and raise the same errors.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import attrs

from .. import models
from ..codec import from_answer, to_plain
from ..core.bodies import rule_fields
from ..errors import AgentManagerError
from ..models import Service, ServiceConfig, ServiceStatus, Usage
from .http import Lines, Pieces
from .rest import RestClient, flag, quoted
from .sessions import SessionsClient

ListenerKind = Literal["proxy", "api"]


class ManagerClient(RestClient):
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

    # Services

    async def register_service(
        self,
        name: str,
        agent_factory_path: str | None = None,
        *,
        command: Iterable[str] = (),
        description: str = "",
        tags: Iterable[str] = (),
        host: str = "localhost",
        port: int | None = None,
        config: ServiceConfig | None = None,
        auto_start: bool = False,
        wait: bool = True,
        check: bool = False,
    ) -> Service:
        body = _config(config)
        if agent_factory_path is not None:
            body["agent_factory_path"] = agent_factory_path
        if command := tuple(command):
            body["command"] = list(command)
        body |= {
            "name": name,
            "description": description,
            "tags": sorted(tags),
            "host": host,
            "port": port,
            "auto_start": auto_start,
        }
        params = _wait(wait) | ({"check": flag(True)} if check else {})  # an older manager knows no `check`
        return await self._one(Service, "POST", "/services", json=body, params=params, waits=wait)

    async def update_service(
        self, ref: str, changes: Mapping[str, Any], *, expected_version: int | None = None
    ) -> Service:
        body = {name: to_plain(value) for name, value in changes.items()}
        headers = _if_match(expected_version)
        return await self._one(Service, "PATCH", f"/services/{quoted(ref)}", json=body, headers=headers)

    async def unregister_service(self, ref: str, *, force: bool = False) -> Service:
        params = {"force": flag(force)}
        return await self._one(Service, "DELETE", f"/services/{quoted(ref)}", params=params, waits=True)

    async def start_service(self, ref: str, *, wait: bool = True) -> Service:
        return await self._work(ref, "start", wait)

    async def stop_service(self, ref: str, *, force: bool = False, wait: bool = True) -> Service:
        return await self._work(ref, "stop", wait, force=force)

    async def restart_service(
        self, ref: str, *, rolling: bool = True, force: bool = False, wait: bool = True
    ) -> Service:
        return await self._work(ref, "restart", wait, rolling=rolling, force=force)

    async def scale_service(self, ref: str, instances: int | str, *, wait: bool = True) -> Service:
        path = f"/services/{quoted(ref)}/scale"
        body = {"instances": instances}
        return await self._one(Service, "POST", path, json=body, params=_wait(wait), waits=wait)

    async def run_service_now(self, ref: str) -> Service:
        return await self._one(Service, "POST", f"/services/{quoted(ref)}/run-now")

    async def get_service(self, ref: str) -> Service:
        return await self._one(Service, "GET", f"/services/{quoted(ref)}")

    async def list_services(
        self, *, status: ServiceStatus | None = None, tags: Iterable[str] = (), name: str | None = None
    ) -> list[Service]:
        params = {"tags": ",".join(sorted(tags))}
        if status is not None:
            params["status"] = str(status)
        if name is not None:
            params["name"] = name
        return await self._all(Service, "/services", params)

    async def service_rows(self) -> dict[str, dict[str, Any]]:
        """A short row for each service, by its id."""
        rows = await self._all(dict[str, Any], "/services", {"fields": "rows"})
        return {row["service_id"]: row for row in rows}

    async def get_ends(self, ref: str, *, limit: int = 50) -> tuple[models.InstanceEnd, ...]:
        """How its last instances ended, the newest first, each with the last lines of its output."""
        data = await self._json("GET", f"/services/{quoted(ref)}/ends", params={"limit": str(limit)})
        return from_answer(data["items"], tuple[models.InstanceEnd, ...])

    async def get_minutes(
        self, service_ids: Iterable[str], first: int, last: int
    ) -> dict[str, dict[int, models.MinuteFigures]]:
        """What services did in each minute (since 1970), of the last day; absent: nothing was measured."""
        params = {"since": str(first * 60), "until": str(last * 60)}
        found: dict[str, dict[int, models.MinuteFigures]] = {}
        for service_id in service_ids:
            data = await self._json("GET", f"/services/{quoted(service_id)}/history", params=params)
            columns = data["services"][service_id]
            rows = zip(data["minutes"], *columns.values(), strict=True)
            found[service_id] = {
                at // 60: from_answer(dict(zip(columns, row, strict=True)), models.MinuteFigures)
                for at, *row in rows
                if row[0] is not None
            }
        return found

    async def check_service_health(self, ref: str) -> models.HealthCheck:
        data = await self._json("GET", f"/services/{quoted(ref)}/health", waits=True)
        data.pop("history", None)
        return from_answer(data, models.HealthCheck)

    async def get_health_history(self, ref: str, *, limit: int = 100) -> tuple[models.HealthCheck, ...]:
        path, params = f"/services/{quoted(ref)}/health", {"history": str(limit)}
        data = await self._json("GET", path, params=params, waits=True)
        return from_answer(data["history"], tuple[models.HealthCheck, ...])

    async def get_service_stats(self, ref: str) -> dict[str, Any]:
        return await self._json("GET", f"/services/{quoted(ref)}/stats")

    async def get_service_usage(self, ref: str) -> dict[str, tuple[Usage, ...]]:
        """What its instances used of the machine: by instance id, a sample every 10 s, of the last hour."""
        return from_answer(
            await self._json("GET", f"/services/{quoted(ref)}/usage"), dict[str, tuple[Usage, ...]]
        )

    @asynccontextmanager
    async def read_logs(
        self,
        ref: str | Sequence[str],
        *,
        tail: int | None = None,
        follow: bool = False,
        instance: int | None = None,
        since: datetime | None = None,
        grep: str | None = None,
        timestamps: bool = False,
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        """The output of a service, or of several in the order of time, in pieces as it comes; without
        `follow` it ends.

        The last 100 lines of each instance, or `tail`; with `since` all that was written then or later.
        `grep`: only lines that this regular expression matches somewhere.
        """
        given = {
            "tail": None if tail is None else str(tail),
            "follow": flag(follow) if follow else None,
            "instance": None if instance is None else str(instance),
            "written_since": None if since is None else since.isoformat(),
            "grep": grep,
            "timestamps": flag(timestamps) if timestamps else None,
        }
        params = {name: value for name, value in given.items() if value is not None}
        if isinstance(ref, str):
            path = f"/services/{quoted(ref)}/logs"
        else:
            path, params["services"] = "/logs", ",".join(ref)
        async with self._stream("GET", path, params=params) as response:
            yield Pieces(response)

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

    async def list_tokens(self) -> tuple[models.Token, ...]:
        """Without what they open with: `digest` is empty."""
        return tuple(await self._all(_token, "/tokens", {}))

    async def create_token(
        self, name: str, scopes: Iterable[str], *, expires_in_days: float | None = None
    ) -> tuple[models.Token, str]:
        """A token and its key, which is kept nowhere."""
        body = {"name": name, "scopes": sorted(scopes), "expires_in_days": expires_in_days}
        data = await self._json("POST", "/tokens", json=body)
        key = str(data.pop("key"))
        return _token(data), key

    async def create_ticket(
        self, service: str | None = None, *, expires_in_s: float | None = None
    ) -> models.Ticket:
        """A key to the gateway for one connection, as `?ticket=`, to what this client's token opens."""
        asked = {"service": service, "expires_in_s": expires_in_s}
        body = {name: value for name, value in asked.items() if value is not None}
        return from_answer(await self._json("POST", "/tickets", json=body), models.Ticket)

    async def delete_token(self, ref: str, *, leave_open: bool = False) -> None:
        """What it opened ends with it, unless `leave_open`."""
        params = {"leave_open": flag(leave_open)}
        await self._answer("DELETE", f"/tokens/{quoted(ref)}", params=params)

    async def get_token_policy(self) -> models.TokenPolicy:
        """Whether the API over TCP and the gateway ask for tokens."""
        return await self._one(models.TokenPolicy, "GET", "/token-policy")

    async def require_tokens(
        self, *, api: bool | None = None, gateway: bool | None = None
    ) -> models.TokenPolicy:
        """Have the API over TCP and the gateway ask for tokens, or no longer; None: as before."""
        asked = {name: on for name, on in (("api", api), ("gateway", gateway)) if on is not None}
        return await self._one(models.TokenPolicy, "PATCH", "/token-policy", json=asked)

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

    # Routing

    async def list_routing_rules(self) -> list[models.RoutingRule]:
        return await self._all(models.RoutingRule, "/routing/rules", {})

    async def get_routing_rule(self, ref: str) -> models.RoutingRule:
        return await self._one(models.RoutingRule, "GET", f"/routing/rules/{quoted(ref)}")

    async def create_routing_rule(self, rule: models.RoutingRule) -> models.RoutingRule:
        body = rule_fields(rule)
        return await self._one(models.RoutingRule, "POST", "/routing/rules", json=body)

    async def update_routing_rule(
        self, ref: str, changes: Mapping[str, Any], *, expected_version: int | None = None
    ) -> models.RoutingRule:
        body = {name: to_plain(value) for name, value in changes.items()}
        path, headers = f"/routing/rules/{quoted(ref)}", _if_match(expected_version)
        return await self._one(models.RoutingRule, "PATCH", path, json=body, headers=headers)

    async def delete_routing_rule(self, ref: str) -> None:
        await self._answer("DELETE", f"/routing/rules/{quoted(ref)}")

    async def get_routing_hits(self) -> dict[str, Any]:
        """How many connections each rule has chosen an instance for, in the last hour."""
        return await self._json("GET", "/routing/hits")

    async def test_routing(
        self,
        *,
        path: str = "/",
        client_ip: str = "127.0.0.1",
        client_port: int = 0,
        headers: Mapping[str, str] | None = None,
    ) -> dict[str, Any]:
        """What the gateway would do with such a client: its rule, the candidates, the choice or why not."""
        body = {
            "path": path,
            "client_ip": client_ip,
            "client_port": client_port,
            "headers": dict(headers or {}),
        }
        return await self._json("POST", "/routing/test", json=body)

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

    async def _work(self, ref: str, verb: str, wait: bool, **flags: bool) -> Service:
        params = {**_wait(wait), **{name: flag(value) for name, value in flags.items()}}
        return await self._one(Service, "POST", f"/services/{quoted(ref)}/{verb}", params=params, waits=wait)


def _config(config: ServiceConfig | None) -> dict[str, Any]:
    """The fields of a configuration that are not at their default: the rest is for the manager to say."""
    if config is None:
        return {}
    plain, default = to_plain(config), to_plain(ServiceConfig())
    return {f.name: plain[f.name] for f in attrs.fields(ServiceConfig) if plain[f.name] != default[f.name]}


def _wait(wait: bool) -> dict[str, str]:
    return {"wait": flag(wait)}


def _if_match(version: int | None) -> dict[str, str]:
    return {} if version is None else {"If-Match": f'"{version}"'}


def _token(data: dict[str, Any]) -> models.Token:
    return from_answer({**data, "digest": ""}, models.Token)


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
