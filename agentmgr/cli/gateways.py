"""Where an agent is reached, and how: what `chat` and `acp` have in common."""

from __future__ import annotations

import re
import ssl
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import asyncclick as click

from ..errors import InvalidRequest, NoServiceAvailable
from ..models import ServiceStatus
from .names import FILE
from .render import url, what_helps

if TYPE_CHECKING:
    from ..client.api import ManagerClient

F = TypeVar("F", bound=Callable[..., Any])

DEFAULT_GATEWAY = "ws://localhost:9090"


def gateway_options(function: F) -> F:
    """`gateway`, `token`, `headers`, `cafile` and `insecure`."""
    for option in (
        click.option(
            "--insecure", is_flag=True, help="Trust any certificate: for experiments on this machine."
        ),
        click.option(
            "--cafile", type=FILE, metavar="FILE", help="An authority to trust besides the system's, in PEM."
        ),
        click.option(
            "--header", "-H", "headers", multiple=True, metavar="NAME: VALUE", help="One more header."
        ),
        click.option("--token", envvar="AGENTMGR_TOKEN", help="Sent as `Authorization: Bearer`."),
        click.option(
            "--gateway",
            envvar="AGENTMGR_GATEWAY",
            metavar="URL",
            help=f"The gateway for names of services.  [default: the manager's, or {DEFAULT_GATEWAY}]",
        ),
    ):
        function = option(function)
    return function


def address(target: str | None, gateway: str = DEFAULT_GATEWAY) -> str:
    """The URL for what a user named: nothing, a URL, or a service. Raises `InvalidRequest`."""
    if target is None:
        return gateway
    if "://" in target:
        return target
    if not re.fullmatch(r"[\w.-]+", target):
        raise InvalidRequest(f"{target!r} is not the name of a service; write an address as ws://{target}")
    return f"{gateway.rstrip('/')}/services/{target}"


async def managed_address(manager: ManagerClient, target: str | None) -> str:
    """Where the manager that runs has its gateway; without one, where the service itself answers, which is
    started for that if it is asleep.

    Raises `ServiceNotFound`, `ServiceFailedToStart` and `NoServiceAvailable`.
    """
    if target is not None:
        address(target)  # refuses what cannot be a name
    service = None if target is None else await manager.get_service(target)
    listeners = (await manager.get_info())["listeners"]
    for listener in listeners:
        if listener["kind"] == "proxy":
            return address(target, url(**listener))
    if service is None:
        raise NoServiceAvailable(
            "the manager has no gateway open: `agentmgr proxy` opens one, and `agentmgr chat NAME` needs none"
        )
    if service.status is ServiceStatus.ASLEEP:
        await manager.check_service_health(service.name)
        service = await manager.get_service(service.name)
    if service.endpoint is None and any(instance.node_id for instance in service.instances):
        raise NoServiceAvailable(
            f"{service.name} runs on other nodes, and only gateways reach it: `agentmgr proxy` opens one"
        )
    if service.endpoint is None:
        if service.status is ServiceStatus.RUNNING and any(i.node_id for i in service.instances):
            problem = f"{service.name} runs on other nodes; `agentmgr proxy` opens a gateway to it"
            raise NoServiceAvailable(problem)
        raise NoServiceAvailable(what_helps(service))
    return service.endpoint.replace("http://", "ws://", 1)  # an HTTP service may speak WebSocket too


async def failed_services(manager: ManagerClient, target: str | None) -> str:
    """What helps where no instance serves: of that service, or of all that have failed; "" if none has."""
    services = await manager.list_services() if target is None else [await manager.get_service(target)]
    failed = (ServiceStatus.ERROR, ServiceStatus.BACKOFF)
    return "; ".join(what_helps(service) for service in services if service.status in failed)


def trusting(cafile: str | None, *, insecure: bool) -> ssl.SSLContext | None:
    """None: as the system does. Raises `InvalidRequest` for a file without certificates."""
    if cafile is None and not insecure:
        return None
    context = ssl.create_default_context()
    if cafile is not None:
        try:
            context.load_verify_locations(cafile)
        except OSError as error:  # ssl.SSLError is one
            raise InvalidRequest(f"--cafile {cafile} cannot be used: {error.strerror or error}") from None
    if insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def sent_headers(headers: Sequence[str], token: str | None) -> dict[str, str]:
    """What the two options say. Raises `InvalidRequest`."""
    sent = dict(map(_header, headers))
    return {**sent, "Authorization": f"Bearer {token}"} if token else sent


def _header(text: str) -> tuple[str, str]:
    name, colon, value = text.partition(":")
    if not colon or not name.strip():
        raise InvalidRequest(f"a header is written as NAME: VALUE, not {text!r}")
    return name.strip(), value.strip()
