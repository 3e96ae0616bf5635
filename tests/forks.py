"""Starts commands, workers and fork servers as forks of one process that has imported what they need: that
takes a manager 0.4 s of CPU time, a worker or a fork server 0.2.

For tests of what they do once they run. How one starts (what it imports from where, its environment, its
descriptors) is tested with processes of their own.
"""

from __future__ import annotations

import atexit
import ctypes
import os
import pickle
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

from agentmgr import bootstrap
from agentmgr.fork_server import in_proc
from agentmgr.process import detached
from agentmgr.supervisor import fork_server

_MODULES = ("agentmgr", "agentmgr.worker", "agentmgr.fork_server")
_OF_THIS_PYTHON = (["-m"], bootstrap.words("")[1:-1])
_SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER


@contextmanager
def forking() -> Iterator[type[subprocess.Popen[Any]]]:
    """The `Popen` that forks, for `agentmgr …` and what such commands start in the background.

    Other programs it starts as ever. The forks are children of the process that asks for them.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    root = Path(__file__).parents[1]
    command = [sys.executable, "-P", "-c", "from tests.forks import serve; serve()"]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    with subprocess.Popen(command, stdin=theirs, cwd=root, env=environment), ours:
        theirs.close()
        yield _popen_by(ours)  # the process ends when that is closed


def _popen_by(ours: socket.socket) -> type[subprocess.Popen[Any]]:
    libc, one_at_a_time = ctypes.CDLL(None), threading.Lock()

    class Fork(subprocess.Popen[Any]):
        def _execute_child(
            self,
            args: Any,
            executable: Any,
            preexec_fn: Any,
            close_fds: Any,
            pass_fds: Any,
            cwd: Any,
            env: Any,
            *rest: Any,
        ) -> None:
            gid, gids, uid = rest[10:13]
            if (words := _ours(args)) is None or (gid, gids, uid) != (None, None, None):
                given = (args, executable, preexec_fn, close_fds, pass_fds, cwd, env, *rest)
                return super()._execute_child(*given)  # type: ignore[misc]
            p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite = rest[3:9]
            start_new_session = rest[-2]
            streams = {n: n if fd == -1 else fd for n, fd in enumerate((p2cread, c2pwrite, errwrite))}
            handed = {**streams, **{fd: fd for fd in pass_fds}}
            wanted = (words, dict(os.environ if env is None else env), start_new_session, list(handed))
            directory = os.open(cwd or ".", os.O_PATH)  # it may have been removed
            try:
                with one_at_a_time:
                    libc.prctl(_SUBREAPER, 1, 0, 0, 0)
                    socket.send_fds(ours, [pickle.dumps(wanted)], [directory, *handed.values()])
                    self.pid = int(ours.recv(64))
                    libc.prctl(_SUBREAPER, 0, 0, 0, 0)
            finally:
                os.close(directory)
                self._close_pipe_fds(p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite)  # type: ignore[attr-defined]
            self._child_created = True
            return None

    return Fork


def _ours(args: Any) -> list[str] | None:
    """The module and its words; None for another program."""
    if not isinstance(args, list | tuple):
        return None
    python, *words = (str(os.fspath(word)) for word in args)
    if python == "agentmgr":
        return [python, *words]
    for start in _OF_THIS_PYTHON:
        if python == sys.executable and words[: len(start)] == start and words[len(start)] in _MODULES:
            return words[len(start) :]
    return None


def serve() -> None:
    import gc

    import agentmgr.api.app
    import agentmgr.api.server
    import agentmgr.cli.commands.daemon
    import agentmgr.cli.listeners
    import agentmgr.fork_server.__main__
    import agentmgr.worker.__main__  # noqa: F401

    gc.freeze()
    _serve(socket.socket(fileno=0))


def _serve(asked: socket.socket) -> None:
    with asked:
        while True:
            data, descriptors, _, _ = socket.recv_fds(asked, 2**20, 16)
            if not data:
                return
            words, environment, new_session, targets = pickle.loads(data)
            reading, writing = os.pipe()
            if not (middle := os.fork()):
                middle = os.getpid()
                if pid := os.fork():
                    os.write(writing, str(pid).encode())
                    os._exit(0)  # its child becomes one of the process that asked
                while os.getppid() == middle:
                    time.sleep(0.0005)
                if new_session:
                    os.setsid()
                os.fchdir(descriptors.pop(0))
                _become(words, environment, dict(zip(targets, descriptors, strict=True)))
            for descriptor in descriptors:
                os.close(descriptor)
            os.waitpid(middle, 0)
            asked.send(os.read(reading, 64))
            os.close(reading)
            os.close(writing)


def _become(words: list[str], environment: Mapping[str, str], handed: Mapping[int, int]) -> NoReturn:
    """The command, with these descriptors under their numbers and no others."""
    high = max(*handed, *handed.values()) + 1
    spare = {
        target: os.dup2(fd, high + n, inheritable=False) for n, (target, fd) in enumerate(handed.items())
    }
    for target, fd in spare.items():
        os.dup2(fd, target)
    keep = sorted(handed)
    for low, up in zip(keep, [*keep[1:], 2**16], strict=True):
        os.closerange(low + 1, up)
    if words[0] == "agentmgr":
        _fork_on()
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = ["agentmgr", *words[1:]]
    sys.orig_argv[:] = [*bootstrap.words(words[0]), *words[1:]]
    with suppress(OSError):  # of a kernel that cannot
        in_proc.show(sys.orig_argv, environment)
    sys.stdin, sys.stdout, sys.stderr = (
        open(fd, mode, buffering, closefd=False, errors=errors)  # noqa: SIM115  # for good
        for fd, mode, buffering, errors in (
            (0, "r", -1, None), (1, "w", -1, None), (2, "w", 1, "backslashreplace"),
        )
    )  # fmt: skip
    code: Any = 1
    try:
        bootstrap.search_python_path()
        bootstrap.run(words[0])
    except SystemExit as end:
        code = end.code or 0
        if isinstance(code, str):
            print(code, file=sys.stderr)
            code = 1
    except Exception:  # as the interpreter itself does with what a program raises
        sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]
    finally:  # not back into the loop of `serve`
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _fork_on() -> None:
    """What this process is to start in the background forks from another one: this one will have threads."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    if not os.fork():
        os.setsid()
        os.chdir("/")
        for number in range(3):
            os.dup2(os.open(os.devnull, os.O_RDWR), number)
        os.closerange(3, theirs.fileno())
        os.closerange(theirs.fileno() + 1, 2**16)
        _serve(theirs)
        os._exit(0)
    theirs.close()
    for module in (detached, fork_server):
        module.subprocess = background(_popen_by(ours))  # type: ignore[attr-defined]


def background(popen: type[subprocess.Popen[Any]]) -> SimpleNamespace:
    """In place of `subprocess` where a manager starts processes of ours."""
    return SimpleNamespace(Popen=popen, DEVNULL=subprocess.DEVNULL)
