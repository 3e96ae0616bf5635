"""A worker's process, from outside: started or adopted, ended, and replaced whenever it has ended."""

from __future__ import annotations

import logging
import os
import random
from collections.abc import Awaitable, Callable
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from secrets import token_hex

import trio
from attrs import evolve

from ..codec import to_json
from ..core.restart import Again, Cause, Ending, Exit, History, decide
from ..models import RestartMode, ServiceConfig
from ..process import detached
from ..process.paths import reason
from ..supervisor import logs
from ..supervisor.process import Leader
from .pidfile import PidFile, living
from .spec import WorkerSpec

logger = logging.getLogger(__name__)

END_S = 30.0  #: from SIGTERM to SIGKILL: its connections are closed in batches, and each may take a while
_START_S = 30.0  #: until a new worker serves
STEADY = ServiceConfig(
    # Not zero, which would not double: a worker that cannot start would be tried ten times a second for ever.
    restart=RestartMode.ALWAYS,
    restart_delay=0.05,
    restart_delay_max=30.0,
    max_restart_count=10**6,
)


class DidNotStart(Exception):
    """A worker ended or was not ready in time; the message is the last line of its output."""


async def keep(
    process: Leader | None,
    start: Callable[[], Awaitable[Leader]],
    *,
    name: str,
    leaving: Callable[[], bool],
    is_last: Callable[[Exit], bool] = lambda exit: False,
    trouble: Callable[[str], None] = lambda why: None,
) -> None:
    """Keeps a worker running, this one first, until cancelled or one has ended that `is_last`.

    When cancelled it ends the worker, or leaves it running where `leaving` says so. `start` raises
    `DidNotStart`. `trouble` is called with why there is none, and with "" when there is one again.
    """
    history = History()
    while True:
        begun, served_s = trio.current_time(), None
        try:
            if process is None:
                process = await start()
            trouble("")
            begun = trio.current_time()
            exit = await _attend(process, leaving)
            if is_last(exit):
                return
            what = f"(pid {process.pid}) ended ({exit})"
            served_s = trio.current_time() - begun
        except DidNotStart as words:
            what = f"did not start ({words})"
        process = None
        ending = Ending(Cause.EXITED, what, ready_for_s=served_s)
        decision = decide(STEADY, history, ending, now=trio.current_time(), rand=random.random())
        assert isinstance(decision, Again), "it is always tried again"
        history = decision.history
        trouble(f"{name} {what}")
        logger.warning("%s %s; starting another in %.1f s", name, what, decision.delay_s)
        await trio.sleep(decision.delay_s)


async def _attend(process: Leader, leaving: Callable[[], bool]) -> Exit:
    """Returns how the process ended. When cancelled, ends it, or leaves it running."""
    exit: Exit | None = None
    try:
        exit = await process.wait_exit()
        return exit
    finally:
        if exit is not None or leaving():
            process.release()
        else:
            await process.end(END_S)


def new_id() -> str:
    return f"wrk_{token_hex(8)}"


def adopt(worker: PidFile, directory: Path) -> Leader | None:
    """The process of a worker whose file is in `directory`; None: it has just ended."""
    with suppress(OSError):
        process = Leader(worker.pid)
        if worker in living(directory):  # so the pid is still that worker's
            return process
        process.release()
    return None


async def end(worker: PidFile, directory: Path, grace_s: float) -> None:
    if (process := adopt(worker, directory)) is not None:
        await process.end(grace_s)


async def start(spec: WorkerSpec) -> Leader:
    """Returns when it serves. Raises `DidNotStart`."""
    output = spec.log.with_suffix(".err")
    reading, writing = os.pipe()
    # Closed without a checkpoint: a cancellation there would lose sight of a worker that serves.
    with closing(trio.lowlevel.FdStream(reading)) as ready:
        try:
            process = _spawn(evolve(spec, ready=writing), output)
        except OSError as error:
            raise DidNotStart(reason(error)) from None
        finally:
            os.close(writing)
        serving, exit = b"", Exit()
        try:
            with trio.move_on_after(_START_S) as patience:
                serving = bytes(await ready.receive_some())
        finally:
            if not serving:
                exit = await process.end(0)
    if not serving:
        said = logs.last_words(output, 0).splitlines()
        silent = f"it was not ready within {_START_S:g} s" if patience.cancelled_caught else str(exit)
        raise DidNotStart(said[-1] if said else silent)
    return process


def _spawn(spec: WorkerSpec, output: Path) -> Leader:
    """Raises OSError."""
    with ExitStack() as stack:
        out = logs.open_for_append(output)
        stack.callback(os.close, out)
        os.ftruncate(out, 0)
        spec_file = stack.enter_context(open(os.memfd_create("spec"), "w+b"))  # needs no room on a disk
        spec_file.write(to_json(spec).encode())
        spec_file.seek(0)
        popen = detached.start(
            "agentmgr.worker",
            f"{spec.host}:{spec.port}",  # the worker does not read it: it is for `ps`
            stdin=spec_file,
            stdout=out,
            stderr=out,
            inherited=[fd for fd in (spec.ready, spec.lifeline) if fd is not None],
        )
        try:
            process = Leader(popen.pid)
        except OSError:  # no descriptor left for watching it
            popen.kill()
            popen.wait()
            raise
        detached.disown(popen)  # `Leader` reaps it
        return process
