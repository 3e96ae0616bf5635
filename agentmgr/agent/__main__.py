"""`python -m agentmgr.agent FILE`: what the supervisor runs for a service that is an agent file."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import threading
from collections.abc import Sequence

import trio

from ..errors import AgentManagerError
from ..models.choices import OnDisconnect, Runtime, WhenBusy
from .host import HostOptions, run
from .limits import SessionLimits
from .output import print_what_has_room


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0 after SIGTERM or SIGINT; 78 when the agent cannot be loaded, however often it is tried."""
    options = _options(_parser().parse_args(argv))
    print_what_has_room()
    try:
        trio.run(run, options)
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


def _options(args: argparse.Namespace) -> HostOptions:
    return HostOptions(
        path=args.path,
        fd=args.fd,
        host=args.host,
        port=args.port,
        runtime=Runtime(args.runtime),
        max_conversations=args.max_conversations,
        max_message_bytes=args.max_message_bytes,
        limits=SessionLimits(
            session_timeout=args.session_timeout,
            turn_timeout=args.turn_timeout,
            confirm_timeout=args.confirm_timeout,
            on_disconnect=OnDisconnect(args.on_disconnect),
            disconnect_grace=args.disconnect_grace,
            when_busy=WhenBusy(args.when_busy),
        ),
        lifeline_fd=args.lifeline_fd,
        token=os.environ.get("AGENTMGR_INSTANCE_TOKEN", ""),
        instance_id=os.environ.get("AGENTMGR_INSTANCE_ID", ""),
    )


def _parser() -> argparse.ArgumentParser:
    defaults, limits = HostOptions(path=""), SessionLimits()
    parser = argparse.ArgumentParser("python -m agentmgr.agent", description="Serves an agent file.")
    parser.add_argument("path", metavar="FILE", help="agent.py, agent.py:NAME or package.module:NAME")
    parser.add_argument("--fd", type=int, help="an inherited socket that listens already")
    parser.add_argument(
        "--lifeline-fd",
        "--manager-fd",  # from a manager before 0.2 that runs on while this package is replaced
        type=int,
        help="a pipe; at its end of file the manager is gone, and this process ends",
    )
    parser.add_argument("--host", default="localhost")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--runtime", default=defaults.runtime, choices=list(Runtime))
    parser.add_argument(
        "--max-conversations",
        "--max-sessions",  # as managers before 0.2 say
        type=int,
        default=defaults.max_conversations,
    )
    parser.add_argument("--max-message-bytes", type=int, default=defaults.max_message_bytes)
    parser.add_argument("--session-timeout", type=float, default=limits.session_timeout)
    parser.add_argument("--turn-timeout", type=float, default=limits.turn_timeout)
    parser.add_argument("--confirm-timeout", type=float, default=limits.confirm_timeout)
    parser.add_argument("--on-disconnect", default=limits.on_disconnect, choices=list(OnDisconnect))
    parser.add_argument("--disconnect-grace", type=float, default=limits.disconnect_grace)
    parser.add_argument("--when-busy", default=limits.when_busy, choices=list(WhenBusy))
    return parser


if __name__ == "__main__":
    sys.exit(main())
