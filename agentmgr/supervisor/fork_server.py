"""One fork server, as the manager sees it, and a process that it has forked.

`agentmgr.fork_server` says how one start goes. Whatever happens to the server, a start is over within a
bounded time: a server that does not answer is killed, and then no process but a child that it has just forked
can hold the other end of a start's socket. So that brings either the hello of that child, or its end.
"""

from __future__ import annotations

import os
import signal
import socket
import struct
import subprocess
import tempfile
from array import array
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing, suppress
from typing import Any

import trio

from .. import bootstrap
from ..process import handover
from ..process.descriptors import give_back
from . import procfs
from .accounts import Identity

_IMPORTING_S = 10.0  #: to be ready; on an idle machine it takes 0.2 s
_FORKING_S = 2.0  #: for a fork, which takes 1 ms
_BEGINNING_S = 10.0  #: for the child to become what it is to be

_PAUSE_UNREADY_S = 30.0  #: it will hardly become ready now: there is a fault in what it imports
_PAUSE_HUNG_S = 5.0

_CREDENTIALS = struct.Struct("3i")  #: struct ucred: pid, user, group
_LAST_WORDS = 2**12  #: bytes at the end of what it wrote on stderr


class ForkServer:
    """One process that forks. `run` has to run beside the rest."""

    def __init__(self, python: str | None, variables: Mapping[str, str], identity: Identity) -> None:
        """Starts it. Raises OSError."""
        self.problem: str | None = None  #: why it forks no more
        self.pause_s = _PAUSE_UNREADY_S  #: before another one of its kind is tried
        self.replaced = False
        self.forks = 0
        self._known = trio.Event()  #: whether it is ready, or has a problem
        self._made_of: dict[str, tuple[int, int] | None] = {}
        with ExitStack() as stack:
            ours, theirs = socket.socketpair()
            self._asked = trio.socket.from_stdlib_socket(ours)
            stack.callback(self._asked.close)
            self._errors = stack.enter_context(tempfile.TemporaryFile())
            with theirs:
                self._process = subprocess.Popen(
                    [
                        *bootstrap.words("agentmgr.fork_server", python),
                        *("--fd", str(theirs.fileno()), "--parent", str(os.getpid())),
                    ],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=self._errors,
                    cwd="/",
                    env=variables,
                    start_new_session=True,
                    pass_fds=(theirs.fileno(),),
                    **identity,
                )
            self.pid = self._process.pid
            try:
                self._pidfd = os.pidfd_open(self.pid)
            except OSError:  # no descriptor left to watch it with
                self._process.kill()
                self._process.wait()
                raise
            stack.callback(os.close, self._pidfd)
            self._resources = stack.pop_all()
        give_back(self.pid)

    @property
    def usable(self) -> bool:
        """Whether it runs, and what it has imported is still what is installed."""
        return self.problem is None and all(_stamp(path) == stamp for path, stamp in self._made_of.items())

    def close(self) -> None:
        """Lets it end when it has done what it was asked for."""
        if self.problem is None:
            self.problem, self.replaced = "it was replaced", True
        self._known.set()
        with suppress(OSError):
            self._asked.shutdown(socket.SHUT_WR)

    async def run(self) -> None:
        """Until it has ended, and is reaped; cancelled, it is ended."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._become_ready)
                await trio.lowlevel.wait_readable(self._pidfd)
                nursery.cancel_scope.cancel()
        finally:
            self._process.kill()
            self._process.wait()
            self._reap_unborn()
            self.problem = self.problem or f"it has ended{self._last_words()}"
            self._known.set()
            trio.lowlevel.notify_closing(self._pidfd)
            self._resources.close()

    async def _become_ready(self) -> None:
        with trio.move_on_after(_IMPORTING_S):
            if (answer := await _answer(self._asked)) is None:
                return None  # it ends, as `run` notices
            if answer[0]["version"] != handover.VERSION:
                return self._fail("it has another version of agentmgr")
            self._made_of = {path: _stamp(path) for path in answer[0]["made_of"]}
            self.pause_s = 0.0
            self._known.set()
            return None
        return self._fail(f"it was not ready within {_IMPORTING_S:g} s")

    def _fail(self, problem: str) -> None:
        """Kills it. `run` notices."""
        self.problem, self.pause_s = problem, max(self.pause_s, _PAUSE_HUNG_S)
        self._process.kill()

    async def fork(self) -> Fork | None:
        """A process that waits to be told what to become; None where it has a problem.

        Raises OSError as fork(2) does.
        """
        await self._known.wait()
        if self.problem is not None:
            return None
        ours, theirs = socket.socketpair()
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        start, pid = trio.socket.from_stdlib_socket(ours), None
        try:
            with trio.CancelScope(shield=True):
                pid = await self._ask(start, theirs)
        finally:
            if pid is None:
                start.close()
        return None if pid is None else Fork(pid, start)

    async def _ask(self, start: trio.socket.SocketType, theirs: socket.socket) -> int | None:
        answer = None
        with trio.move_on_after(_FORKING_S) as patience:
            with theirs:
                await self._hand_over(theirs)
            answer = await _answer(start)
        if patience.cancelled_caught:
            self._fail(f"it did not fork within {_FORKING_S:g} s")
            answer = await _answer(start)
        if answer is None:
            self._reap_unborn()
            return None
        value, pid = answer
        if "error" in value:
            raise OSError(*value["error"][:2])
        stat = procfs.stat(pid)
        if stat is None or stat.parent != os.getpid():
            self._fail(f"process {pid}, which it has forked, is no child of this one")
            return None
        self.forks += 1
        return pid

    async def _hand_over(self, theirs: socket.socket) -> None:
        rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", [theirs.fileno()]).tobytes())
        with suppress(OSError):  # it has ended; then ours is at its end as soon as `theirs` is closed
            await self._asked.sendmsg([b"f"], [rights])

    def _reap_unborn(self) -> None:
        """Reaps children that have died before they said hello: they are in its process group."""
        with suppress(ChildProcessError):
            while os.waitpid(-self.pid, os.WNOHANG)[0]:
                pass

    def _last_words(self) -> str:
        code = self._process.returncode
        how = f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
        size = self._errors.seek(0, os.SEEK_END)
        self._errors.seek(max(0, size - _LAST_WORDS))
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        return f" {how}" + (f": {lines[-1]}" if lines else "")


class Fork:
    """A process, our child, that waits to be told what to become."""

    def __init__(self, pid: int, start: trio.socket.SocketType) -> None:
        self.pid = pid
        self._start = start

    def abandon(self) -> None:
        """Ends and reaps it."""
        self._start.close()
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)

    async def begin(self, spec: Mapping[str, Any], descriptors: Sequence[int]) -> None:
        """Tells it; see `agentmgr.fork_server.become`. Raises OSError that hinders it, and that it dies of.

        One that dies of something else is noticed as any that dies.
        """
        answer = None
        data, ancillary = handover.packed(spec, descriptors)
        with trio.CancelScope(shield=True), closing(self._start):
            with (
                trio.move_on_after(_BEGINNING_S) as patience,
                suppress(BrokenPipeError, ConnectionResetError),
            ):
                sent = await self._start.sendmsg([data], ancillary)
                while sent < len(data):
                    sent += await self._start.send(data[sent:])
                answer = await _answer(self._start)
        if patience.cancelled_caught:
            os.kill(self.pid, signal.SIGKILL)
        if answer is not None and "error" in answer[0]:
            raise OSError(*answer[0]["error"])


async def _answer(source: trio.socket.SocketType) -> tuple[Any, int] | None:
    """The next message and the pid of its sender, which the kernel says; None at the end of the stream."""
    try:
        data, ancillary, _, _ = await source.recvmsg(2**16, socket.CMSG_SPACE(_CREDENTIALS.size))
        while data and (len(data) < handover.HEAD.size or len(data) < _size(data)):
            if not (more := await source.recv(2**16)):
                return None
            data += more
    except ConnectionResetError:
        return None
    if not data:
        return None
    pids = [_CREDENTIALS.unpack(said)[0] for _, kind, said in ancillary if kind == socket.SCM_CREDENTIALS]
    return handover.unpacked(data), pids[0] if pids else 0


def _size(data: bytes) -> int:
    return handover.HEAD.size + int(handover.HEAD.unpack_from(data)[0])


def _stamp(path: str) -> tuple[int, int] | None:
    """Changes when a file is replaced, or something is put into a directory or taken away."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns
