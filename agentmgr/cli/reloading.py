"""`agentmgr serve --reload`: the agent runs in a process of its own, which is replaced when files are saved.

All share one listening socket. The next process listens before the one before is asked to end, so no client
is refused; clients that go on with their sessions find them in the journal.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import trio
from attrs import Factory, frozen

from ..agent.host import HostOptions, open_listener
from ..errors import leaves
from ..manager.factory_path import located
from ..models import new_id
from ..process.paths import file_of
from ..process.watching import Saves, Watched, named, require_watchfiles, watch
from .hosting import announce, host_command, host_environment
from .out import note
from .signals import stop_signals

_AGAIN_S = 10.0  #: after a failure to watch, as where the system has no watches left
_GRACE_S = 10.0  #: for a process that is asked to end; its sessions are given up within 7 s


async def serve_and_reload(options: HostOptions, given: Mapping[str, Any], python: str | None) -> None:
    """Serves until a stop signal. `given`: the fields of `HostConfig` that are not as by default.

    Raises `AgentFileNotFound`, `InvalidRequest`, `PortNotAvailable`.
    """
    require_watchfiles()
    assert options.agent_factory_path is not None
    directory = Path.cwd()
    file = file_of(located(options.agent_factory_path, directory))
    code = Watched(str(directory) if file is None else os.path.dirname(file), ".py")
    listener = await open_listener(options)
    fd = listener.socket.fileno()
    with ExitStack() as stack:
        for descriptor in (lifeline := os.pipe()):
            stack.callback(os.close, descriptor)
        journal = options.journal or f"{stack.enter_context(tempfile.TemporaryDirectory())}/sessions.db"
        words = host_command(options, given, fd, python)
        words += ["--lifeline-fd", str(lifeline[0]), "--journal", journal]
        hosts = _Hosts(words, (fd, lifeline[0]))
        async with stop_signals() as signals, trio.open_nursery() as nursery:
            announce(options, listener.socket.getsockname())
            nursery.start_soon(hosts.run, code)
            await signals.first.wait()
            nursery.cancel_scope.cancel()


@frozen(eq=False)
class _Host:
    """One process; cancelling it asks it to end."""

    scope: trio.CancelScope = Factory(trio.CancelScope)
    over: trio.Event = Factory(trio.Event)


class _Hosts:
    """The processes of one agent: the one that serves, and those that end or begin."""

    def __init__(self, words: Sequence[str], descriptors: tuple[int, ...]) -> None:
        self._words, self._descriptors = words, descriptors
        self._began_at = 0.0
        self._serving: _Host | None = None
        self._saves = Saves()

    async def run(self, code: Watched) -> None:
        """Until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch, code)
            await self._replace(nursery)
            while True:
                files = named(await self._saves.settled())
                if await self._replace(nursery):
                    note(f"the new code of {files} is live")
                else:
                    serves = "what ran before serves on" if self._serving else "save a file to try again"
                    note(f"{files} is not live, as it does not start: {serves}")

    async def _watch(self, code: Watched) -> None:
        while True:
            try:
                await watch({code: [code]}, lambda _, path: self._saves.add(path), lambda _: self._began_at)
            except* (OSError, RuntimeError) as problems:  # the last one is watchfiles' own
                note(f"files are not watched; trying again in {_AGAIN_S:g} s: {next(leaves(problems))}")
            await trio.sleep(_AGAIN_S)

    async def _replace(self, nursery: trio.Nursery) -> bool:
        """Whether a process with the present code is ready; then the one before has ended."""
        self._began_at, host = time.time(), _Host()
        ours, theirs = os.pipe()
        async with trio.lowlevel.FdStream(ours) as pipe:
            nursery.start_soon(self._run, host, theirs)
            ready = bool(await pipe.receive_some(1))
        if ready:
            before, self._serving = self._serving, host
            if before is not None:
                before.scope.cancel()
                await before.over.wait()
        return ready

    async def _run(self, host: _Host, ready_fd: int) -> None:
        variables = {"AGENTMGR_INSTANCE_ID": new_id("ins"), "PYTHONUNBUFFERED": "1"}
        with host.scope:
            process = partial(
                trio.run_process,
                [*self._words, "--ready-fd", str(ready_fd)],
                env=host_environment(variables),
                pass_fds=(*self._descriptors, ready_fd),
                check=False,
                deliver_cancel=_end,
            )
            async with trio.open_nursery() as nursery:
                try:
                    await nursery.start(process)
                finally:
                    os.close(ready_fd)
        host.over.set()
        if self._serving is host and not host.scope.cancel_called:
            self._serving = None
            note("the agent's process has ended; save a file to start it again")


async def _end(process: trio.Process) -> None:
    process.terminate()
    await trio.sleep(_GRACE_S)
    process.kill()
