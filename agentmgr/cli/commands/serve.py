"""`agentmgr serve FILE`: one agent, by hand, with no manager."""

from __future__ import annotations

import os
from typing import Any

import asyncclick as click
import trio

from ...core.hosts import is_origin
from ...errors import InvalidRequest
from ...models import HostConfig, ServiceConfig
from ..group import Cli, subcommand
from ..names import FILE
from ..options import given, option_of, options_of
from ..out import note, say


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
    "--journal",
    type=click.Path(dir_okay=False),
    metavar="FILE|URL#NAME",
    help="Keep the sessions in this file, with a lock file beside it, or in a Redis, as "
    "redis://HOST:6379/0#NAME: they outlive the process.",
)
@click.option(
    "--reload",
    is_flag=True,
    help="Run new code when a Python file beside the agent's is saved; sessions go on, in --journal or a "
    "temporary file.",
)
@option_of(ServiceConfig, "python", help="The Python that runs it, as .venv/bin/python. Default: this one.")
@options_of(HostConfig)
@click.option("--max-sessions", type=int, hidden=True)  # as it was called before
async def command(
    cli: Cli,
    file: str,
    host: str,
    port: int,
    allowed_origins: tuple[str, ...],
    journal: str | None,
    reload: bool,
    python: str | None,
    max_sessions: int | None,
    **options: Any,
) -> None:
    """Serve the agent in FILE (agent.py, agent.py:NAME or package.module:NAME) until Ctrl-C."""
    from ...agent.host import HostOptions, run

    for origin in allowed_origins:
        if not is_origin(origin):
            raise InvalidRequest(
                f"--allow-origin must be an origin, as in https://app.example, or *, not {origin!r}"
            )
    if max_sessions is not None:
        note("--max-sessions is called --max-conversations now, and will not be read much longer")
        if options["max_conversations"] is None:
            options["max_conversations"] = max_sessions
    hosting = HostOptions(
        agent_factory_path=file,
        host=host,
        port=port,
        allowed_origins=allowed_origins or None,
        open_beyond_loopback=True,
        journal=journal,
        **given(options),
    )

    if reload:
        from ..reloading import serve_and_reload  # with the manager's parts

        await serve_and_reload(hosting, given(options), python)
        return
    if python is not None:
        from ..hosting import become_host

        await become_host(hosting, given(options), python)

    class Announce(trio.TaskStatus[str]):
        def started(self, value: str | None = None) -> None:
            say(f"{file} answers at {value}; try: agentmgr chat {value}", flush=True)

    os.environ.pop("AGENTMGR_TOKEN", None)  # the operator's key is none of the agent's business
    await run(hosting, task_status=Announce())
