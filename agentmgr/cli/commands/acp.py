"""`agentmgr acp`: an editor's agent, over stdin and stdout."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncclick as click
import trio

from ...acp.agent import EditorAgent
from ...acp.peer import Peer
from ...client.session import AgentSession, open_session
from ..gateways import DEFAULT_GATEWAY, address, gateway_options, managed_address, sent_headers, trusting
from ..group import Cli, subcommand
from ..managers import find_manager
from ..names import SERVICE
from ..out import note

_CHUNK_BYTES = 64 * 1024


@subcommand(
    "acp",
    example="agentmgr acp my-agent       # as the command of an agent in the editor's settings\n"
    "agentmgr acp ws://localhost:8081",
)
@click.argument("service", type=SERVICE)
@gateway_options
async def command(
    cli: Cli,
    service: str,
    gateway: str | None,
    token: str | None,
    headers: tuple[str, ...],
    cafile: str | None,
    insecure: bool,
) -> None:
    """Let an editor talk to SERVICE, the name of one or a ws:// URL.

    Zed, JetBrains, Neovim, Emacs and others start this command and speak the Agent Client Protocol with it.
    Their sessions are sessions of the service: an editor that is started again loads them. What goes wrong
    is said to the editor, and on stderr.
    """
    address(service)  # refuses what cannot be a name
    sent, trust = sent_headers(headers, token), trusting(cafile, insecure=insecure)

    managed = False

    async def locate() -> str:
        """Once there was a manager, it is its service: another gateway would not know our sessions."""
        nonlocal managed
        if gateway is None and "://" not in service:
            found = await find_manager(cli.paths, patience_s=0)
            managed = managed or found.client is not None
            if managed:
                return await managed_address(found.required(), service)
        return address(service, gateway or DEFAULT_GATEWAY)

    @asynccontextmanager
    async def begin(session_id: str | None, last_seq: int) -> AsyncIterator[AgentSession]:
        async with open_session(
            await locate(),
            headers=sent,
            ssl_context=trust,
            session_id=session_id,
            last_seq=last_seq,
            locate=locate,
        ) as session:
            yield session

    output = _only_ours()
    peer = Peer(
        _read, lambda data: trio.to_thread.run_sync(_write, output, data, abandon_on_cancel=True), note
    )
    agent = EditorAgent(service, begin, peer)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_stop_on_signals, peer)
        await peer.run(agent.handler_of, agent.leave)
        nursery.cancel_scope.cancel()


async def _stop_on_signals(peer: Peer) -> None:
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async for _ in signals:
            peer.stop()


def _only_ours() -> int:
    """The descriptor for what the editor reads; what anything else prints goes to stderr from now on."""
    output = os.dup(1)
    os.dup2(2, 1)
    return output


async def _read() -> bytes:
    try:
        await trio.lowlevel.wait_readable(0)
    except PermissionError:  # a file, or /dev/null: epoll does not take what is always ready
        await trio.lowlevel.checkpoint()
    return os.read(0, _CHUNK_BYTES)


def _write(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]
