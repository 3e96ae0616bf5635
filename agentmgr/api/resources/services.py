"""Services: register, read, change, run, unregister."""

from __future__ import annotations

import operator
from enum import StrEnum
from typing import Any

import attrs
from attrs import asdict, field, fields, frozen

from ...core.bodies import NewService, Registration
from ...manager.summaries import Row
from ...models import HealthCheck, Instance, Service, ServiceConfig, ServiceStatus, Usage
from ...models.fields import between, invalid, rule
from ..operations import BASE, Answer, Call, Operations
from ..queries import Page, PageQuery, page, page_by

api = Operations("services")


_SORTS = (
    "name", "status", "desired_status", "health", "instances", "ready", "connections", "restart_count",
    "started_at", "next_restart_at", "next_run_at", "port", "version",
)  # fmt: skip


@rule(pattern=rf"^-?({'|'.join(_SORTS)})$")
def _sort_key(_: Any, attribute: attrs.Attribute[Any], key: str) -> None:
    if key.removeprefix("-") not in _SORTS:
        raise invalid(attribute.name, f"must be one of {', '.join(_SORTS)}, or that after a '-'")


class Fields(StrEnum):
    ALL = "all"
    ROWS = "rows"  #: a few of them, as plain data: what a table of thousands shows


@frozen(kw_only=True)
class ServicesQuery(PageQuery):
    status: ServiceStatus | None = None
    tags: frozenset[str] = frozenset()  #: any of them
    name: str | None = None
    q: str | None = None  #: in the name, description, a tag, the agent's path or the command; in any case
    sort: str = field(default="name", validator=_sort_key)  #: a field of a row; with `-`: the greatest first
    fields: Fields = Fields.ALL


@frozen
class ServiceRows:
    """A page of rows, as the samples of `GET /events` have them."""

    items: tuple[dict[str, Any], ...]
    total: int
    limit: int
    next_cursor: str | None


@frozen
class Wait:
    wait: bool = False  #: answer when it is done


@frozen
class Register(Wait):
    check: bool = False  #: only say whether it can be registered


@frozen
class Stop(Wait):
    force: bool = False  #: sessions are cut instead of drained


@frozen
class Restart(Stop):
    rolling: bool = True  #: the new instance is ready before the old one goes


@frozen
class Scale:
    instances: int | str = field(validator=fields(ServiceConfig).instances.validator)


@frozen
class Unregister:
    force: bool = False  #: also where sessions are kept, which are erased; connections are not drained


@frozen
class HistoryQuery:
    history: int = field(default=0, validator=between(0, 1000))  #: so many past results besides


@frozen
class HealthAnswer(HealthCheck):
    history: tuple[HealthCheck, ...] | None = None


def _answer(service: Service, status: int = 200, **headers: str) -> Answer:
    return Answer(service, status, {"ETag": f'"{service.version}"', **headers})


@api.add("GET", "/services", query=ServicesQuery, gives={200: Page[Service] | ServiceRows}, problems=(400,))
async def list_services(call: Call, query: ServicesQuery) -> Answer:
    """The registered services, or a row for each."""
    rows = [row for row in (await call.manager.service_rows()).values() if _matches(row, query)]
    key = operator.itemgetter("name")
    if query.sort == "name":
        found = page(rows, query, key)
    else:
        by, descending = operator.itemgetter(query.sort.removeprefix("-")), query.sort.startswith("-")
        found = page_by(rows, query, key, by, descending=descending)
    if query.fields is Fields.ROWS:
        return Answer(ServiceRows(**asdict(found, recurse=False)))
    services = tuple(call.manager.get_service(row["service_id"]) for row in found.items)
    return Answer(Page(services, found.total, found.limit, found.next_cursor))


def _matches(row: Row, query: ServicesQuery) -> bool:
    if query.q is not None:
        texts = (row["name"], row["description"], *row["tags"], row["agent_factory_path"], row["command"])
        wanted = query.q.casefold()
        if not any(wanted in text.casefold() for text in texts if text):
            return False
    return (
        (query.status is None or row["status"] == query.status)
        and (not query.tags or not query.tags.isdisjoint(row["tags"]))
        and (query.name is None or query.name in row["name"])
    )


@api.add(
    "POST",
    "/services",
    query=Register,
    body=Registration,
    gives={200: Service, 201: Service},
    problems=(400, 409, 413, 415, 422),
    example={
        "name": "my-service",
        "agent_factory_path": "./my_agent.py",
        "description": "My test service",
        "tags": ["test"],
        "auto_start": True,
        "max_sessions": 10,
    },
)
async def register_service(call: Call, query: Register, body: Registration) -> Answer:
    """Registers a service, and starts it where `auto_start` says so.

    With `check` it does neither: 200 says that it could be registered, and how it would look.
    """
    service = await call.carry_out(
        lambda: call.manager.register_service(
            body.name,
            body.agent_factory_path,
            command=body.command,
            description=body.description,
            tags=body.tags,
            host=body.host,
            port=body.port,
            config=body.config,
            auto_start=body.auto_start,
            wait=query.wait,
            check=query.check,
        )
    )
    if query.check:
        return Answer(service)
    return _answer(service, 201, Location=f"{BASE}/services/{service.service_id}")


@api.add("GET", "/services/{ref}", gives={200: Service}, problems=(404,))
async def get_service(call: Call) -> Answer:
    """One service, by name or id."""
    return _answer(call.manager.get_service(call.ref))


@api.add(
    "PATCH",
    "/services/{ref}",
    body=NewService,
    partial_body=True,
    gives={200: Service},
    problems=(400, 404, 409, 412, 413, 415, 422),
    example={"max_sessions": 20},
)
async def change_service(call: Call, body: dict[str, Any]) -> Answer:
    """Changes the fields that are given, and no others."""
    return await _update(call, body)


@api.add(
    "PUT",
    "/services/{ref}",
    body=NewService,
    gives={200: Service},
    problems=(400, 404, 409, 412, 413, 415, 422),
    example={"name": "my-service", "agent_factory_path": "./my_agent.py"},
)
async def replace_service(call: Call, body: NewService) -> Answer:
    """Replaces the registration; what is left out gets its default."""
    return await _update(call, {field.name: getattr(body, field.name) for field in attrs.fields(NewService)})


async def _update(call: Call, changes: dict[str, Any]) -> Answer:
    service = await call.carry_out(
        lambda: call.manager.update_service(call.ref, changes, expected_version=call.expected_version)
    )
    return _answer(service)


@api.add("DELETE", "/services/{ref}", query=Unregister, gives={200: Service}, problems=(400, 404, 409, 412))
async def unregister_service(call: Call, query: Unregister) -> Answer:
    """Unregisters a service, and answers what it was."""
    call.check_version(call.manager.get_service(call.ref).version)
    service = await call.carry_out(lambda: call.manager.unregister_service(call.ref, force=query.force))
    return Answer(service)


@api.add(
    "POST", "/services/{ref}/start", query=Wait, gives={200: Service, 202: Service}, problems=(400, 404, 422)
)
async def start_service(call: Call, query: Wait) -> Answer:
    """Starts a service; 200 where it runs already or `wait` saw it running."""
    before = call.manager.get_service(call.ref)
    running = [instance for instance in before.instances if instance.status is ServiceStatus.RUNNING]
    if running and len(running) == before.wanted_instances:
        return _answer(before)
    service = await call.carry_out(lambda: call.manager.start_service(call.ref, wait=query.wait))
    return _answer(service, 200 if query.wait else 202)


@api.add("POST", "/services/{ref}/stop", query=Stop, gives={200: Service, 202: Service}, problems=(400, 404))
async def stop_service(call: Call, query: Stop) -> Answer:
    """Stops a service: its sessions end first, unless `force` cuts them."""
    service = await call.carry_out(
        lambda: call.manager.stop_service(call.ref, force=query.force, wait=query.wait)
    )
    return _answer(service, 200 if query.wait else 202)


@api.add(
    "POST",
    "/services/{ref}/restart",
    query=Restart,
    gives={200: Service, 202: Service},
    problems=(400, 404, 422),
)
async def restart_service(call: Call, query: Restart) -> Answer:
    """Restarts a service, one instance after the other."""
    service = await call.carry_out(
        lambda: call.manager.restart_service(
            call.ref, rolling=query.rolling, force=query.force, wait=query.wait
        )
    )
    return _answer(service, 200 if query.wait else 202)


@api.add("POST", "/services/{ref}/run-now", gives={202: Service}, problems=(404, 409))
async def run_service_now(call: Call) -> Answer:
    """Begins a run of a service with a schedule, besides those by its schedule."""
    return _answer(await call.carry_out(lambda: call.manager.run_service_now(call.ref)), 202)


@api.add(
    "POST",
    "/services/{ref}/scale",
    query=Wait,
    body=Scale,
    gives={200: Service, 202: Service},
    problems=(400, 404, 409, 413, 415, 422),
    example={"instances": 3},
)
async def scale_service(call: Call, query: Wait, body: Scale) -> Answer:
    """Changes the number of instances, or the range, as in `"2..8"`, within which the load decides it."""
    service = await call.carry_out(
        lambda: call.manager.scale_service(call.ref, body.instances, wait=query.wait)
    )
    return _answer(service, 200 if query.wait else 202)


@api.add(
    "GET", "/services/{ref}/health", query=HistoryQuery, gives={200: HealthAnswer}, problems=(400, 404, 409)
)
async def check_service_health(call: Call, query: HistoryQuery) -> Answer:
    """Checks the service now."""
    check = await call.manager.check_service_health(call.ref)
    past = None
    if query.history > 0:
        past = tuple(await call.manager.get_health_history(call.ref, limit=query.history))
    values = {field.name: getattr(check, field.name) for field in attrs.fields(HealthCheck)}
    return Answer(HealthAnswer(**values, history=past))


@api.add("GET", "/services/{ref}/stats", gives={200: dict[str, Any]}, problems=(404,))
async def get_service_stats(call: Call) -> Answer:
    """Figures of one service, all measured."""
    return Answer(call.manager.get_service_stats(call.ref))


@api.add("GET", "/services/{ref}/usage", gives={200: dict[str, tuple[Usage, ...]]}, problems=(404,))
async def get_service_usage(call: Call) -> Answer:
    """What its instances used of the machine in the last hour: by instance id, the oldest sample first."""
    return Answer(call.manager.get_service_usage(call.ref))


@api.add("GET", "/services/{ref}/instances", query=PageQuery, gives={200: Page[Instance]}, problems=(404,))
async def list_instances(call: Call, query: PageQuery) -> Answer:
    """The instances of one service."""
    found = call.manager.get_service(call.ref).instances
    return Answer(page(found, query, key=lambda instance: f"{instance.slot:06} {instance.instance_id}"))
