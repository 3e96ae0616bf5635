"""`agentmgr serve FILE`: one agent, by hand, with no manager."""

from __future__ import annotations

import os

import asyncclick as click
import trio

from ...core.origin import is_origin
from ...errors import InvalidRequest
from ...models import OnDisconnect, Runtime, ServiceConfig, WhenBusy
from ..group import Cli, subcommand
from ..names import FILE
from ..out import note, say

_DEFAULTS = ServiceConfig()


@subcommand(
    "serve",
    example="agentmgr serve my_agent.py --port 8081\n"
    "agentmgr chat ws://localhost:8081          # in another terminal",
)
@click.argument("file", type=FILE)
@click.option(
    "--host",
    default="localhost",
    show_default=True,
    help="Address to listen on. On loopback only your own user and root may connect; on any other address "
    "every machine and user that reaches it.",
)
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8081, show_default=True, help="0: any free one."
)
@click.option(
    "--allow-origin",
    "allowed_origins",
    multiple=True,
    metavar="ORIGIN",
    help="A web page's origin that may connect, as https://app.example; repeatable. Default: those of this "
    "machine. *: all.",
)
@click.option(
    "--runtime",
    type=click.Choice([str(v) for v in Runtime]),
    default=str(_DEFAULTS.runtime),
    show_default=True,
    help="The event loop of the agent's code; auto: RUNTIME in the file, else by what it imports.",
)
@click.option("--max-conversations", type=click.IntRange(0), help="Sessions at a time.  [default: no limit]")
@click.option("--max-sessions", type=click.IntRange(0), hidden=True)  # as it was called before
@click.option(
    "--session-timeout",
    type=click.FloatRange(0),
    default=_DEFAULTS.session_timeout,
    show_default=True,
    help="Seconds that a session is kept without a connection; 0: for ever.",
)
@click.option(
    "--max-message-bytes",
    type=click.IntRange(0),
    default=_DEFAULTS.max_message_bytes,
    show_default=True,
    help="The largest message; 0: any size.",
)
@click.option(
    "--turn-timeout", type=click.FloatRange(0), default=0.0, help="Seconds for one answer; 0: no limit."
)
@click.option(
    "--on-disconnect",
    type=click.Choice([str(v) for v in OnDisconnect]),
    default=str(_DEFAULTS.on_disconnect),
    show_default=True,
    help="What a turn does when its client disconnects.",
)
@click.option(
    "--disconnect-grace",
    type=click.FloatRange(0),
    default=_DEFAULTS.disconnect_grace,
    show_default=True,
    help="Seconds that the turn then waits for the client to come back.",
)
@click.option(
    "--when-busy",
    type=click.Choice([str(v) for v in WhenBusy]),
    default=str(_DEFAULTS.when_busy),
    show_default=True,
    help="What to do with a message that comes during a turn.",
)
async def command(
    cli: Cli,
    file: str,
    host: str,
    port: int,
    allowed_origins: tuple[str, ...],
    runtime: str,
    max_conversations: int | None,
    max_sessions: int | None,
    session_timeout: float,
    max_message_bytes: int,
    turn_timeout: float,
    on_disconnect: str,
    disconnect_grace: float,
    when_busy: str,
) -> None:
    """Serve the agent in FILE (agent.py, agent.py:NAME or package.module:NAME) until Ctrl-C."""
    from ...agent.host import HostOptions, run
    from ...agent.limits import SessionLimits

    for origin in allowed_origins:
        if not is_origin(origin):
            raise InvalidRequest(
                f"--allow-origin must be an origin, as in https://app.example, or *, not {origin!r}"
            )
    if max_sessions is not None:
        note("--max-sessions is called --max-conversations now, and will not be read much longer")
        max_conversations = max_sessions if max_conversations is None else max_conversations
    options = HostOptions(
        path=file,
        host=host,
        port=port,
        allowed_origins=allowed_origins or None,
        open_beyond_loopback=True,
        runtime=Runtime(runtime),
        max_conversations=max_conversations or 0,
        max_message_bytes=max_message_bytes,
        limits=SessionLimits(
            session_timeout=session_timeout,
            turn_timeout=turn_timeout,
            on_disconnect=OnDisconnect(on_disconnect),
            disconnect_grace=disconnect_grace,
            when_busy=WhenBusy(when_busy),
        ),
    )

    class Announce(trio.TaskStatus[str]):
        def started(self, value: str | None = None) -> None:
            say(f"{file} answers at {value}; try: agentmgr chat {value}", flush=True)

    os.environ.pop("AGENTMGR_TOKEN", None)  # the operator's key is none of the agent's business
    await run(options, task_status=Announce())
