"""How a child process is started, with signal dispositions that do not hide how it ends."""

from __future__ import annotations

import errno
import logging
import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from attrs import frozen

from ..core.restart import Cause
from ..process import paths
from ..process.descriptors import give_back
from . import logs
from .accounts import Account
from .cgroup import ControlGroup
from .descendants import ProcessScan
from .instance_lock import InstanceLock
from .launcher import CannotLaunch
from .process import Process

log = logging.getLogger("agentmgr.supervisor")

_SHORTAGES = (errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE)

# A shell that waits until its standard input ends and then becomes the program.
_WHEN_LET_GO = ("/bin/sh", "-c", 'read -r _; exec "$@" </dev/null', "sh")


@frozen
class Launch:
    """What a process gets besides its command line, and how it is known afterwards."""

    environment: Mapping[str, str]
    cwd: str | None
    output: Path
    inherited: Sequence[int]
    token: str
    scan: ProcessScan
    group: ControlGroup
    lock: InstanceLock
    stop_signal: str = "SIGTERM"
    account: Account | None = None


@frozen
class Spawned:
    process: Process
    log_start: int  #: where its output begins in the log
    begin: Callable[[], Awaitable[None]]
    """Lets its program begin, where that was held back. Must be called. Raises `CannotLaunch`, and then the
    process is gone."""


def spawn(argv: Sequence[str], launch: Launch, *, held: bool = False) -> Spawned:
    """Starts a program in a session of its own. Raises `CannotLaunch`.

    Plain Popen takes 0.3 ms of the loop, a third of `trio.lowlevel.open_process`. It uses vfork, as no code
    runs between fork and exec; that is why `signals.children_get_defaults` resets ignored signals beforehand.
    Limits must hold before the first line of the program, which might be `fork()`: with `held`, a shell holds
    the program back until `Spawned.begin`.
    """
    with ExitStack() as stack:
        try:
            out = open_log(launch.output)
            stack.callback(os.close, out)
            log_start = os.fstat(out).st_size
            inherited = list(launch.inherited)
            if (descriptor := launch.lock.open()) is not None:
                stack.callback(os.close, descriptor)
                inherited.append(descriptor)
            stdin, gate = subprocess.DEVNULL, stack.enter_context(ExitStack())
            words = argv
            if held:
                program = os.path.join(launch.cwd or "", argv[0]) if "/" in argv[0] else argv[0]
                if (
                    shutil.which(program, path=launch.environment.get("PATH")) is None
                ):  # the shell would only exit with 127
                    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
                stdin, ours = os.pipe()
                stack.callback(os.close, stdin)
                gate.callback(os.close, ours)
                words = (*_WHEN_LET_GO, *argv)
            popen = subprocess.Popen(
                words,
                stdin=stdin,
                stdout=out,
                stderr=out,
                cwd=launch.cwd,
                env=launch.environment,
                start_new_session=True,
                pass_fds=tuple(inherited),
                **({} if launch.account is None else launch.account.identity),
            )
            try:
                process = Process(
                    popen.pid,
                    launch.token,
                    launch.scan,
                    launch.group,
                    launch.lock,
                    stop_signal=launch.stop_signal,
                )
            except OSError:  # no descriptor left to watch it with
                os.killpg(popen.pid, signal.SIGKILL)
                popen.wait()
                raise
        except (OSError, ValueError) as error:  # ValueError: a null byte in a word
            raise cannot(error, argv[0], launch.cwd) from None
        give_back(popen.pid)
        popen.returncode = 0  # `Process` reaps it from here on; Popen would poll it, and warn
        gate = gate.pop_all()

    async def begin() -> None:
        gate.close()

    return Spawned(process, log_start, begin)


def cannot(error: Exception, program: str | None = None, cwd: str | None = None) -> CannotLaunch:
    """Translates an error of a launch."""
    what = "launch" if program is None else f"execute {program!r}"
    if not isinstance(error, OSError):
        return CannotLaunch(Cause.CANNOT_EXECUTE, f"cannot {what}: {error}")
    if error.errno in _SHORTAGES:
        reason = f"the system has no room for another process just now: {error.strerror}"
        return CannotLaunch(Cause.SHORTAGE, reason)
    if cwd is not None and error.filename == cwd:
        reason = f"cannot work in directory {cwd!r}: {error.strerror}"
        return CannotLaunch(Cause.CANNOT_EXECUTE, reason)
    said = error.strerror if error.filename == program else paths.reason(error)
    return CannotLaunch(Cause.CANNOT_EXECUTE, f"cannot {what}: {said}")


def open_log(file: Path) -> int:
    """Without a log file the service runs all the same, and its output is lost."""
    try:
        return logs.open_for_append(file)
    except OSError as error:
        if error.errno in _SHORTAGES:
            raise
        log.warning("cannot open the log %s: %s; output is lost", file, error.strerror)
        return os.open(os.devnull, os.O_WRONLY)


def _nothing(_number: int, _frame: object) -> None:
    pass


@contextmanager
def children_get_defaults() -> Iterator[None]:
    """Within it, a child starts with default dispositions and no signal blocked, whatever holds for us.

    `nohup`, a shell's `&` and some container runtimes start this process with signals ignored. An ignored
    signal stays ignored over exec, so INT, HUP or CHLD would never reach a child that needs it. A handler
    that does nothing has the same effect here, and exec turns it into the default. SIGCHLD gets its default
    back: while it is ignored, the kernel reaps our children and their exit codes are lost.

    Only the main thread can change dispositions: in another thread this changes nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    ignored = [
        number
        for number in signal.valid_signals()
        - {signal.SIGKILL, signal.SIGSTOP, signal.SIGPIPE, signal.SIGXFSZ}
        if signal.getsignal(number) is signal.SIG_IGN  # Popen itself restores PIPE and XFSZ
    ]
    for number in ignored:
        signal.signal(number, signal.SIG_DFL if number == signal.SIGCHLD else _nothing)
    blocked = signal.pthread_sigmask(signal.SIG_SETMASK, ())
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        for number in ignored:
            if signal.getsignal(number) in (_nothing, signal.SIG_DFL):  # else other code has set one since
                signal.signal(number, signal.SIG_IGN)
