"""`python -m agentmgr.agent FILE`: what the supervisor runs for a service that is an agent file."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import threading
from collections.abc import Sequence
from functools import cache
from typing import Any

import trio
from attrs import fields

from ..errors import AgentManagerError
from ..jsontext import NotJson, parse
from ..models.host_config import HostConfig
from . import loaded
from .host import HostOptions, run
from .output import print_what_has_room


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0 after SIGTERM or SIGINT; 78 when the agent cannot be loaded, however often it is tried."""
    print_what_has_room()
    try:
        trio.run(run, _options(argv))
    except AgentManagerError as error:
        print(f"agentmgr: {error.message}", file=sys.stderr)
        return os.EX_CONFIG  # it would fail the same way each time
    if any(not thread.daemon for thread in threading.enumerate() if thread is not threading.main_thread()):
        # A thread of the agent's own, or one of `asyncio.to_thread`, may block for ever: do not wait for it.
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)
    return 0


@cache
def parser() -> argparse.ArgumentParser:
    """Of our command line. A fork server has it made: that takes 2 ms."""
    parser = argparse.ArgumentParser("python -m agentmgr.agent", description="Serves an agent file.")
    parser.add_argument(
        "agent_factory_path", metavar="FILE", help="agent.py, agent.py:NAME or package.module:NAME"
    )
    parser.add_argument("--fd", type=int, help="an inherited socket that listens already")
    parser.add_argument(
        "--lifeline-fd",
        "--manager-fd",  # from a manager before 0.2 that runs on while this package is replaced
        type=int,
        help="a pipe; at its end of file the manager is gone, and this process ends",
    )
    parser.add_argument("--ready-fd", type=int, help="a pipe; it gets a byte when the agent is served")
    parser.add_argument("--open-beyond-loopback", action="store_true")
    parser.add_argument("--allow-origin", dest="allowed_origins", action="append", metavar="ORIGIN")
    parser.add_argument(
        "--journal",
        metavar="FILE|URL#SERVICE",
        help="keeps the sessions, as AGENTMGR_SESSIONS_URL does; without both they end with this",
    )
    parser.add_argument("--host", default="localhost")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--options", type=parse, default={}, help="a JSON object of those below")
    for name in (*_names(), "max_sessions"):  # each is a flag too, as it was before 0.2
        field = "max_conversations" if name == "max_sessions" else name
        flag = f"--{name.replace('_', '-')}"
        parser.add_argument(flag, dest=field, metavar="JSON", type=_number_or_word, default=argparse.SUPPRESS)
    return parser


def _names() -> list[str]:
    return [field.name for field in fields(HostConfig) if field.name != "agent_factory_path"]


def _options(argv: Sequence[str] | None) -> HostOptions:
    """Raises `InvalidRequest` for options that no `HostConfig` has, and for values that it refuses."""
    words = vars(parser().parse_args(argv))
    given = words.pop("options") | {name: words.pop(name) for name in _names() if name in words}
    if given:
        from ..codec import from_plain  # 10 ms that a host of the defaults does not need

        config = from_plain(given, HostConfig)
        given = {name: getattr(config, name) for name in given}
    # Nothing that the agent starts needs it, and it may have a password.
    if (url := os.environ.pop("AGENTMGR_SESSIONS_URL", None)) is not None and words["journal"] is None:
        words["journal"] = url
    return HostOptions(
        **words,
        **given,
        token=os.environ.get("AGENTMGR_INSTANCE_TOKEN", ""),
        instance_id=os.environ.get("AGENTMGR_INSTANCE_ID", ""),
        node_id=os.environ.get("AGENTMGR_NODE", ""),
    )


def _number_or_word(text: str) -> Any:
    try:
        return parse(text)
    except NotJson:
        return text


loaded.note_own()

if __name__ == "__main__":
    sys.exit(main())
