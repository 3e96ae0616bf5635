"""One fork server, as the manager sees it, and a process that it has forked.

`agentmgr.fork_server` says how one start goes. Whatever happens to the server, a start is over within a
bounded time: a server that does not answer is killed, and then no process but a child that it has just forked
can hold the other end of a start's socket. So that brings either the hello of that child, or its end.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import struct
import subprocess
import tempfile
from array import array
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing, suppress
from typing import IO, Any, Protocol, Self

import trio

from .. import bootstrap
from ..process import handover
from ..process.descriptors import give_back
from . import procfs
from .accounts import Identity

_IMPORTING_S = 10.0  #: to be ready; on an idle machine it takes 0.2 s
_PRELOADING_S = 120.0  #: with what an agent imports, which can take a minute on a busy machine
_FORKING_S = 2.0  #: for a fork, which takes 1 ms
_BEGINNING_S = 10.0  #: for the child to become what it is to be

_PAUSE_UNREADY_S = 30.0  #: it will hardly become ready now: there is a fault in what it imports
_PAUSE_HUNG_S = 5.0

_CREDENTIALS = struct.Struct("3i")  #: struct ucred: pid, user, group
_ENDED = "it has ended"
_LAST_WORDS = 2**12  #: bytes at the end of what it wrote on stderr


class _Running(Protocol):
    """A process of ours: a `subprocess.Popen`, or a `_Forked`."""

    pid: int
    returncode: int | Any

    def kill(self) -> None: ...

    def wait(self) -> int: ...


class _Forked:
    """A process that another fork server has forked: it is our child all the same."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None

    def kill(self) -> None:
        if self.returncode is None:
            os.kill(self.pid, signal.SIGKILL)

    def wait(self) -> int:
        if self.returncode is None:
            self.returncode = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.returncode


class ForkServer:
    """One process that forks. `run` has to run beside the rest."""

    def __init__(
        self, process: _Running, requests: socket.socket, errors: IO[bytes], preload: Sequence[str] = ()
    ) -> None:
        """`requests`: our end of its socket. `errors`: its standard error. Both are closed with it.

        `preload`: modules that it is to import before it is ready.
        Raises OSError when there is no descriptor left to watch it with; then it is gone.
        """
        self.problem: str | None = None  #: why it forks no more
        self.pause_s = _PAUSE_UNREADY_S  #: before another one of its kind is tried
        self.replaced = False
        self.forks = 0
        self.imported = 0  #: modules that it has imported for its agents
        self.packages: list[str] = []  #: that these are of
        self.failed: str | None = None  #: one of those that it was to import and could not, and why
        self.pid = process.pid
        self._process, self._preload = process, preload
        self._settled = trio.Event()  #: whether it is ready, or has a problem
        self._made_of: dict[str, tuple[int, int] | None] = {}
        with ExitStack() as stack:
            self._errors = stack.enter_context(errors)
            self._requests = trio.socket.from_stdlib_socket(requests)
            stack.callback(self._requests.close)
            try:
                self._pidfd = os.pidfd_open(self.pid)
            except OSError:
                process.kill()
                process.wait()
                raise
            stack.callback(os.close, self._pidfd)
            self._resources = stack.pop_all()

    @classmethod
    def spawned(cls, python: str | None, variables: Mapping[str, str], identity: Identity) -> Self:
        """A Python that imports the host. Raises OSError."""
        with ExitStack() as undo, ExitStack() as theirs_too:
            ours, theirs = socket.socketpair()
            undo.callback(ours.close)
            theirs_too.callback(theirs.close)
            errors = undo.enter_context(tempfile.TemporaryFile())
            process = subprocess.Popen(
                _words(python, theirs.fileno()),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                cwd="/",
                env=variables,
                start_new_session=True,
                pass_fds=(theirs.fileno(),),
                **identity,
            )
            undo.pop_all()
            server = cls(process, ours, errors)
        give_back(server.pid)
        return server

    @classmethod
    async def second_stage(
        cls,
        fork: Fork,
        python: str | None,
        environment: Mapping[str, str],
        cwd: str | None,
        modules: Sequence[str],
    ) -> Self:
        """A process that another one has forked, and that imports these too. Raises OSError."""
        with ExitStack() as undo, ExitStack() as theirs_too:
            undo.callback(fork.abandon)
            ours, theirs = socket.socketpair()
            undo.callback(ours.close)
            theirs_too.callback(theirs.close)
            errors = undo.enter_context(tempfile.TemporaryFile())
            directory = os.open(".", os.O_PATH | os.O_CLOEXEC)
            theirs_too.callback(os.close, directory)
            argv = [*_words(python, handover.FIRST_FD), "--preload"]
            spec = {"argv": argv, "environment": dict(environment), "cwd": cwd}
            await fork.begin(spec, [directory, errors.fileno(), theirs.fileno()])
            undo.pop_all()
            return cls(_Forked(fork.pid), ours, errors, modules)

    @property
    def usable(self) -> bool:
        """Whether it runs, and what it has imported is still what is installed."""
        return self.problem is None and all(_stamp(path) == stamp for path, stamp in self._made_of.items())

    def close(self) -> None:
        """Lets it end when it has done what it was asked for."""
        if self.problem is None:
            self.problem, self.replaced = "it was replaced", True
        self._settled.set()
        with suppress(OSError):
            self._requests.shutdown(socket.SHUT_WR)

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
            if self.problem in (None, _ENDED):
                self.problem = _ENDED + self._last_words()
            self._settled.set()
            trio.lowlevel.notify_closing(self._pidfd)
            self._resources.close()

    async def _become_ready(self) -> None:
        patience_s = _PRELOADING_S if self._preload else _IMPORTING_S
        with trio.move_on_after(patience_s):
            if self._preload:
                await _send(self._requests, *handover.packed({"modules": list(self._preload)}))
            if (answer := await _answer(self._requests)) is None:
                return  # it ends, as `run` notices
            hello = answer[0]
            if hello["version"] != handover.VERSION:
                self._fail("it has another version of agentmgr")
            elif hello.get("unsafe") is not None:
                self._fail(hello["unsafe"])
            else:
                self.imported, self.packages = hello.get("imported", 0), hello.get("packages", [])
                self.failed = hello.get("failed")
                self._made_of = {path: _stamp(path) for path in hello["made_of"]}
                self.pause_s = 0.0
                self._settled.set()
            return
        what = "it was not ready" if not self._preload else "its imports did not end"
        self._fail(f"{what} within {patience_s:g} s")

    def _fail(self, problem: str) -> None:
        """Kills it. `run` notices."""
        self.problem, self.pause_s = problem, max(self.pause_s, _PAUSE_HUNG_S)
        self._process.kill()

    async def ready(self) -> bool:
        """Waits until it is, or has a problem."""
        await self._settled.wait()
        return self.problem is None

    async def fork(self) -> Fork | None:
        """A new process, for `Fork.begin`; None where the server has a problem.

        Raises OSError as fork(2) does.
        """
        if not await self.ready():
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
            if self.problem is None and self._ended():
                self.problem = _ENDED  # `run` notices it later; it must not be asked again meanwhile
            if self.problem is None:
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
        # It may have ended; then the start's socket is at its end as soon as `theirs` is closed.
        with suppress(OSError, trio.ClosedResourceError):
            await self._requests.sendmsg([b"f"], [rights])

    def _ended(self) -> bool:
        # Its pidfd says so later: a process that dies closes its files first.
        poller = select.poll()
        poller.register(self._requests.fileno(), select.POLLRDHUP)
        return bool(poller.poll(0))

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
    """A forked process, our child, which waits for `begin`."""

    def __init__(self, pid: int, start: trio.socket.SocketType) -> None:
        self.pid = pid
        self._start = start

    def abandon(self) -> None:
        """Ends and reaps it."""
        self._start.close()
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)

    async def begin(self, spec: Mapping[str, Any], descriptors: Sequence[int]) -> None:
        """Has it become what `spec` says (`agentmgr.fork_server.become`).

        Raises the OSError that prevents that; then it ends. Any other end of it is noticed as that of any
        process.
        """
        answer = None
        data, ancillary = handover.packed(spec, descriptors)
        with trio.CancelScope(shield=True), closing(self._start):
            with (
                trio.move_on_after(_BEGINNING_S) as patience,
                suppress(BrokenPipeError, ConnectionResetError),
            ):
                await _send(self._start, data, ancillary)
                answer = await _answer(self._start)
        if patience.cancelled_caught:
            os.kill(self.pid, signal.SIGKILL)
        if answer is not None and "error" in answer[0]:
            raise OSError(*answer[0]["error"])


def _words(python: str | None, fd: int) -> list[str]:
    """The command line of one that has its socket there."""
    return [
        *bootstrap.words("agentmgr.fork_server", python),
        *("--fd", str(fd), "--parent", str(os.getpid())),
    ]


async def _send(to: trio.socket.SocketType, data: bytes, ancillary: handover.Ancillary) -> None:
    sent = await to.sendmsg([data], ancillary)
    while sent < len(data):
        sent += await to.send(data[sent:])


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
