"""The calls about services: `ManagerClient`'s part for them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any

import attrs

from .. import models
from ..codec import from_answer, to_plain
from ..models import Service, ServiceConfig, ServiceStatus, Usage
from .http import Pieces
from .rest import RestClient, flag, if_match, quoted


class ServiceCalls(RestClient):
    """Services, their instances, figures and logs."""

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
        headers = if_match(expected_version)
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
