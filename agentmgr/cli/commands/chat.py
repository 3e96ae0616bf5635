"""`agentmgr chat`: a terminal client for any agent."""

from __future__ import annotations

import signal
from contextlib import suppress
from functools import partial

import asyncclick as click
import trio

from ...client.session import open_session
from ...errors import AgentManagerError, AgentUnreachable, NotAnAgent, SessionLost, SessionNotFound
from ...websocket.refusal import RefusalCode
from ..gateways import (
    DEFAULT_GATEWAY,
    address,
    failed_services,
    gateway_options,
    managed_address,
    sent_headers,
    trusting,
)
from ..group import Cli, subcommand
from ..managers import find_manager, running
from ..names import SERVICE
from ..out import note
from ..screen import Screen
from ..talk import Talk
from .sessions import whole_id


@subcommand(
    "chat",
    example='agentmgr chat\nagentmgr chat my-echo-agent --once "hello"\nagentmgr chat ws://localhost:8081',
)
@click.argument("target", required=False, type=SERVICE)
@gateway_options
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
    sent = sent_headers(headers, token)
    found = None
    if gateway is None and "://" not in (target or ""):
        found = (await find_manager(cli.paths, patience_s=0)).client
    managed = found is not None
    if found is not None and session_id is not None:
        with suppress(SessionNotFound):  # one that its agent has in memory only
            session_id = await whole_id(found, session_id)

    async def locate() -> str:
        if managed:
            return await managed_address(await running(cli), target)
        return address(target, gateway or DEFAULT_GATEWAY)

    begin = partial(open_session, headers=sent, ssl_context=trusting(cafile, insecure=insecure))
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

            trust = trusting(cafile, insecure=insecure)
            await plain_chat.talk(await locate(), sent, trust, once, interrupts)
        except SessionLost as error:
            how = "without --session" if session_id else "run the command again, and"
            raise SessionLost(f"{error.message}; {how} a new one begins") from None
        except AgentUnreachable as error:
            if error.refusal == RefusalCode.UNAUTHORIZED and "authorization" not in map(str.lower, sent):
                hint = "give one with --token or AGENTMGR_TOKEN; `agentmgr tokens create` makes it"
            elif managed:
                if (hint := await failed_services(await running(cli), target)) == "":
                    raise
            elif "://" in (target or "") or gateway is not None:
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
