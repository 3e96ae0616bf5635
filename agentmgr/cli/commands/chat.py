"""`agentmgr chat`: a terminal client for any agent."""

from __future__ import annotations

import re
import signal
import ssl
from contextlib import suppress
from functools import partial

import asyncclick as click
import trio

from ...client.session import open_session
from ...errors import (
    AgentManagerError,
    AgentUnreachable,
    InvalidRequest,
    NoServiceAvailable,
    NotAnAgent,
    SessionLost,
    SessionNotFound,
)
from ...websocket.refusal import RefusalCode
from ..group import Cli, subcommand
from ..managers import find_manager, running
from ..names import FILE, SERVICE
from ..out import note
from ..render import url, what_helps
from ..screen import Screen
from ..talk import Talk
from .sessions import whole_id

DEFAULT_GATEWAY = "ws://localhost:9090"


@subcommand(
    "chat",
    example='agentmgr chat\nagentmgr chat my-echo-agent --once "hello"\nagentmgr chat ws://localhost:8081',
)
@click.argument("target", required=False, type=SERVICE)
@click.option(
    "--gateway",
    envvar="AGENTMGR_GATEWAY",
    metavar="URL",
    help=f"The gateway for names of services.  [default: the manager's, or {DEFAULT_GATEWAY}]",
)
@click.option("--token", envvar="AGENTMGR_TOKEN", help="Sent as `Authorization: Bearer`.")
@click.option("--header", "-H", "headers", multiple=True, metavar="NAME: VALUE", help="One more header.")
@click.option(
    "--cafile", type=FILE, metavar="FILE", help="An authority to trust besides the system's, in PEM."
)
@click.option("--insecure", is_flag=True, help="Trust any certificate: for experiments on this machine.")
@click.option(
    "--session",
    "session_id",
    help="Take up this session; the manager that runs here completes the beginning of an id.",
)
@click.option("--once", metavar="TEXT", help="Send one message, print the final answer, and exit.")
@click.option("--yes", is_flag=True, help="Answer every question of the agent with yes.")
@click.option("--raw", is_flag=True, help="Show the events as they come, one JSON object a line.")
async def command(
    cli: Cli,
    target: str | None,
    gateway: str | None,
    token: str | None,
    headers: tuple[str, ...],
    cafile: str | None,
    insecure: bool,
    session_id: str | None,
    once: str | None,
    yes: bool,
    raw: bool,
) -> None:
    """Talk to an agent: TARGET is a ws:// URL or the name of a service; without it, the gateway decides.

    A WebSocket server that is no agent is sent plain text, after a first message that asks what it is.

    Ctrl-C stops the answer that is being given; at the prompt it leaves, like Ctrl-D. A line that ends in a
    backslash goes on in the next. What the agent asks in another client's turn of the session is asked here
    too, until one of them has answered. With --once the exit code is 1 when there was no answer.
    """
    sent = dict(_header(text) for text in headers)
    if token:
        sent["Authorization"] = f"Bearer {token}"
    found = None
    if gateway is None and "://" not in (target or ""):
        found = (await find_manager(cli.paths, patience_s=0)).client
    managed = found is not None
    if found is not None and session_id is not None:
        with suppress(SessionNotFound):  # one that its agent has in memory only
            session_id = await whole_id(found, session_id)

    async def locate() -> str:
        if managed:
            return await _managed_address(cli, target)
        return address(target, gateway or DEFAULT_GATEWAY)

    begin = partial(open_session, headers=sent, ssl_context=_trusting(cafile, insecure=insecure))
    talk = Talk(begin, Screen(raw=raw, quiet=once is not None), yes=yes)
    with trio.open_signal_receiver(signal.SIGINT) as interrupts:
        try:
            if once is None:
                await talk.through(locate, session_id, interrupts)
                if talk.session_id is not None:
                    where = f" {target}" if target else ""
                    where += f" --gateway {gateway}" if gateway else ""
                    note(f"`agentmgr chat{where} --session {talk.session_id}` takes this session up again")
            else:
                async with begin(await locate(), session_id=session_id) as session:
                    await talk.once(session, once, interrupts)
        except NotAnAgent:
            from .. import plain_chat

            trust = _trusting(cafile, insecure=insecure)
            await plain_chat.talk(await locate(), sent, trust, once, interrupts)
        except SessionLost as error:
            how = "without --session" if session_id else "run the command again, and"
            raise SessionLost(f"{error.message}; {how} a new one begins") from None
        except AgentUnreachable as error:
            if error.refusal == RefusalCode.UNAUTHORIZED and "authorization" not in map(str.lower, sent):
                hint = "give one with --token or AGENTMGR_TOKEN; `agentmgr tokens create` makes it"
            elif managed or "://" in (target or "") or gateway is not None:
                raise
            elif target is not None and await _is_registered(cli, target):
                hint = f"no manager is running; `agentmgr start {target}` starts one, and the service"
            else:
                hint = "`agentmgr run FILE` runs an agent with a gateway, `agentmgr proxy` opens one"
            raise AgentUnreachable(f"{error.message}; {hint}", refusal=error.refusal) from None


async def _is_registered(cli: Cli, name: str) -> bool:
    from ..offline import offline

    try:
        async with offline(cli.paths) as manager:
            await manager.get_service(name)
    except AgentManagerError:
        return False
    return True


def address(target: str | None, gateway: str = DEFAULT_GATEWAY) -> str:
    """The URL for what a user named: nothing, a URL, or a service. Raises `InvalidRequest`."""
    if target is None:
        return gateway
    if "://" in target:
        return target
    if not re.fullmatch(r"[\w.-]+", target):
        raise InvalidRequest(f"{target!r} is not the name of a service; write an address as ws://{target}")
    return f"{gateway.rstrip('/')}/services/{target}"


async def _managed_address(cli: Cli, target: str | None) -> str:
    """Where the manager that runs has its gateway; without one, where the service itself answers.

    Raises `ServiceNotFound` and `NoServiceAvailable`.
    """
    if target is not None:
        address(target)  # refuses what cannot be a name
    manager = await running(cli)
    service = None if target is None else await manager.get_service(target)
    listeners = (await manager.get_info())["listeners"]
    for listener in listeners:
        if listener["kind"] == "proxy":
            return address(target, url(**listener))
    if service is None:
        raise NoServiceAvailable(
            "the manager has no gateway open: `agentmgr proxy` opens one, and `agentmgr chat NAME` needs none"
        )
    if service.endpoint is None:
        raise NoServiceAvailable(what_helps(service))
    return service.endpoint


def _trusting(cafile: str | None, *, insecure: bool) -> ssl.SSLContext | None:
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


def _header(text: str) -> tuple[str, str]:
    name, colon, value = text.partition(":")
    if not colon or not name.strip():
        raise InvalidRequest(f"a header is written as NAME: VALUE, not {text!r}")
    return name.strip(), value.strip()
