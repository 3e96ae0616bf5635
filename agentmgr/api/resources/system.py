"""The manager as a whole."""

from __future__ import annotations

import os
from typing import Any

from attrs import Attribute, field, frozen
from quart import Response

from ...manager.doctor import Finding
from ...models.fields import check_text, invalid, rule
from ..metrics import CONTENT_TYPE
from ..operations import Answer, Call, Operations

api = Operations("system")
_root = Operations("system", base="")
_public = Operations("system", base="", scope=None)


@_public.add("GET", "/health", gives={200: dict[str, Any]})
async def health(call: Call) -> Answer:
    """Whether the manager is up; needs no token."""
    return Answer({"status": "healthy", "version": call.manager.get_info()["version"]})


@_root.add("GET", "/metrics", gives={200: str}, media_type="text/plain")
async def metrics(call: Call) -> Response:
    """Figures for Prometheus."""
    return Response(call.server.metrics.text(), content_type=CONTENT_TYPE)


@api.add("GET", "/info", gives={200: dict[str, Any]})
async def get_info(call: Call) -> Answer:
    """Version, uptime, database, listeners and limits."""
    return Answer(call.manager.get_info())


@api.add("GET", "/stats", gives={200: dict[str, Any]})
async def get_system_stats(call: Call) -> Answer:
    """Figures of the whole system."""
    return Answer(call.manager.get_system_stats())


@frozen
class Diagnosis:
    findings: tuple[Finding, ...]


@api.add("GET", "/doctor", gives={200: Diagnosis})
async def diagnose(call: Call) -> Answer:
    """What is wrong with the database, its files, the ports and the services' files, and what to do."""
    return Answer(Diagnosis(tuple(await call.manager.diagnose())))


@rule(pattern=r"^/[^\x00]*$")
def _absolute(_: Any, attribute: Attribute[Any], path: str) -> None:
    check_text(_, attribute, path)
    if not os.path.isabs(path):
        raise invalid(attribute.name, "must be an absolute path")


@frozen
class NewBackup:
    path: str = field(validator=_absolute)  #: a file that is not there yet, on the manager's machine


@frozen
class Backup:
    path: str
    size_bytes: int


@api.add("POST", "/backup", body=NewBackup, gives={201: Backup}, problems=(400, 409, 413, 415, 503))
async def backup(call: Call, body: NewBackup) -> Answer:
    """A consistent copy of the database, and of all sessions beside it, while all goes on."""
    path = await call.carry_out(lambda: call.manager.backup(body.path))
    return Answer(Backup(str(path), path.stat().st_size), 201)


api.table += _public.table + _root.table
