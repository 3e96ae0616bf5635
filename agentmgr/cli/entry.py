"""Runs a command, and turns however it ends into an exit code and at most one line on stderr."""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Sequence
from functools import partial
from io import StringIO

import asyncclick as click
import trio

from ..errors import AgentManagerError, InvalidRequest, leaves
from ..process.paths import current_directory, reason
from .group import Cli, root
from .out import complain, prepare, say, show_traceback


def run(argv: Sequence[str]) -> int:
    """The exit code of `agentmgr ARGV…`; not 0 when its output could not be written."""
    prepare()
    cli = Cli()
    code = _run(argv, cli)
    try:
        sys.stdout.flush()  # Python does it too at its end, but says so in its own words
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # where what is left of it goes
        return code or _explain(error, error, cli)
    return code


def _run(argv: Sequence[str], cli: Cli) -> int:
    try:
        result: object = trio.run(
            partial(root.main, list(argv), prog_name="agentmgr", standalone_mode=False, obj=cli)
        )
    # The last boundary: a user sees a sentence, not a traceback.
    except (Exception, KeyboardInterrupt, BaseExceptionGroup) as whole:
        # A command's nursery wraps whatever ends it; the user is to see the thing itself.
        errors = list(leaves(whole))
        if any(isinstance(error, KeyboardInterrupt) for error in errors):
            return 128 + signal.SIGINT
        # The first, and one that is meant for the user before others.
        first = max(errors, key=lambda error: isinstance(error, AgentManagerError | click.ClickException))
        return _explain(whole, first, cli)
    return result if isinstance(result, int) else 0


def _explain(whole: BaseException, error: BaseException, cli: Cli) -> int:
    if isinstance(error, BrokenPipeError):  # `agentmgr list | head`
        return 128 + signal.SIGPIPE
    if isinstance(error, click.exceptions.Exit):
        return int(error.exit_code)
    if cli.debug:
        show_traceback(whole)
    if isinstance(error, click.UsageError):
        _show_usage(error)
        return 2
    if isinstance(error, click.Abort):
        return 128 + signal.SIGINT
    if isinstance(error, AgentManagerError | click.ClickException):
        complain(error.message)
    elif isinstance(error, OSError):
        complain(_sentence(error))
    elif cli.debug:
        pass
    elif sys.platform != "linux" and isinstance(error, ImportError | AttributeError):
        complain(f"agentmgr needs Linux, and this is {sys.platform}: {error}")
    else:
        complain(f"internal error, please report it: {error!r} (with --debug it shows where)")
    return 1


def _show_usage(error: click.UsageError) -> None:
    text = StringIO()  # click would write what was typed as it is
    error.show(text)
    say(text.getvalue(), lines=True, end="", error=True)


def _sentence(error: OSError) -> str:
    if error.filename is None and error.errno in (errno.ENOSPC, errno.EIO, errno.EFBIG):
        return f"the output could not be written: {error.strerror}"  # the database's is a `StorageError`
    if error.filename is None and error.errno == errno.ENOENT:
        try:
            current_directory()
        except InvalidRequest as removed:
            return removed.message
    return reason(error)
