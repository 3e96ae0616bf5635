"""Instances as child processes of this machine."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import trio

from ..core.restart import Cause, Exit
from ..models import InstanceRecord, ServiceSpec, utc_now
from . import addresses, logs, procfs
from .launcher import CannotLaunch
from .probe import Probe
from .process import Process, kill_all
from .tokens import Mint

# Addressed to the manager itself by its service manager; a child that answered would speak in its name.
_MANAGERS_OWN = (
    "NOTIFY_SOCKET",
    "WATCHDOG_PID",
    "WATCHDOG_USEC",
    "LISTEN_PID",
    "LISTEN_FDS",
    "LISTEN_FDNAMES",
)
_SHORTAGES = (errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE)

# How long to wait before looking again whether a command listens yet. No event tells that, so it costs either
# time or work: a thirtieth of the time waited so far adds 3 % to a start, however long it takes.
_MIN_PAUSE_S, _MAX_PAUSE_S = 0.002, 0.25


class LocalLauncher:
    def __init__(self, log_dir: Path) -> None:
        self._log_dir = log_dir
        self._mint = Mint.of(log_dir)
        self._ports = addresses.Ports()

    def place(self, spec: ServiceSpec, instance_id: str, slot: int) -> LocalPlace:
        log = logs.path(self._log_dir, spec.name, slot)
        return LocalPlace(spec, instance_id, slot, log, self._mint, self._ports)

    async def sweep(self, keep: frozenset[str]) -> int:
        made = self._mint.made
        return await kill_all(
            lambda _pid, _stat, token: token is not None and token not in keep and made(token)
        )


class LocalPlace:
    def __init__(
        self, spec: ServiceSpec, instance_id: str, slot: int, log: Path, mint: Mint, ports: addresses.Ports
    ) -> None:
        self._spec, self._instance_id, self._slot = spec, instance_id, slot
        self._log, self._mint, self._ports = log, mint, ports
        self._listener: socket.socket | None = None
        self._port = spec.port  #: the last one it had, to have it again
        self._lent: int | None = None

    async def launch(self) -> LocalChild:
        spec, config = self._spec, self._spec.config
        host = await addresses.resolve(spec.host)
        port = self._lend_port(host) if config.command else self._listen(host)
        token = self._mint.new()
        argv = self._argv(host, port)
        environment = {
            **{name: value for name, value in os.environ.items() if name not in _MANAGERS_OWN},
            "PYTHONUNBUFFERED": "1",
            **config.env,
            "HOST": host,
            "PORT": str(port),
            "AGENTMGR_SERVICE": spec.name,
            "AGENTMGR_INSTANCE_ID": self._instance_id,
            procfs.TOKEN_VARIABLE: token,
        }
        pass_fds = () if self._listener is None else (self._listener.fileno(),)
        log_start, process = self._spawn(argv, environment, pass_fds, token)
        stat = procfs.stat(process.pid)
        assert stat is not None  # not reaped yet, so it is there, if only as a zombie
        record = InstanceRecord(
            instance_id=self._instance_id,
            service_id=spec.service_id,
            slot=self._slot,
            pid=process.pid,
            process_start=stat.start_ticks,
            boot_id=procfs.boot_id(),
            token=token,
            host=addresses.to_dial(host),
            port=port,
            spec_version=spec.version,
            started_at=utc_now(),
        )
        return LocalChild(spec, record, process, self._log, log_start)

    def adopt(self, record: InstanceRecord) -> LocalChild | None:
        if record.boot_id != procfs.boot_id() or not self._is_that(record):
            return None
        try:
            process = Process(record.pid, record.token)
        except OSError:
            return None
        if (
            not self._is_that(record) or process.exited()
        ):  # the number might have changed hands before the pidfd
            process.release()
            return None
        self._port = record.port
        if self._spec.config.command:
            self._lent = record.port
            self._ports.adopt(record.port)
        try:
            log_start = self._log.stat().st_size
        except OSError:
            log_start = 0
        return LocalChild(self._spec, record, process, self._log, log_start)

    def close(self) -> None:
        if self._listener is not None:
            self._listener.close()
        if self._lent is not None:
            self._ports.take_back(self._lent)

    @staticmethod
    def _is_that(record: InstanceRecord) -> bool:
        stat = procfs.stat(record.pid)
        return (
            stat is not None
            and stat.start_ticks == record.process_start
            and procfs.token(record.pid) == record.token
        )

    def _listen(self, host: str) -> int:
        if self._listener is None:
            fixed = self._spec.port is not None
            try:
                self._listener = addresses.listen(host, self._port, fixed=fixed)
            except CannotLaunch as problem:
                if problem.cause is Cause.PORT_LOST:
                    self._port = None  # another one next time
                raise
            self._port = int(self._listener.getsockname()[1])
        assert self._port is not None
        return self._port

    def _lend_port(self, host: str) -> int:
        # Kept over restarts, unless a stranger has been faster.
        if self._lent is not None:
            inode = procfs.listener(self._lent)
            if inode is None:
                return self._lent
            taken = addresses.taken(host, self._lent)
            if self._spec.port is not None:
                raise CannotLaunch(Cause.PORT_TAKEN, taken)
            self._ports.take_back(self._lent)
        self._lent = self._ports.lend(host, self._spec.port)
        return self._lent

    def _argv(self, host: str, port: int) -> Sequence[str]:
        config = self._spec.config
        if config.command:
            return [word.replace("{host}", host).replace("{port}", str(port)) for word in config.command]
        assert config.agent_factory_path is not None
        assert self._listener is not None
        options = {
            "--fd": self._listener.fileno(),
            "--runtime": config.runtime,
            "--max-sessions": config.max_sessions,
            "--session-timeout": config.session_timeout,
            "--max-message-bytes": config.max_message_bytes,
        }
        return [
            config.python or sys.executable,
            *("-m", "agentmgr.agent", config.agent_factory_path),
            *(str(word) for option in options.items() for word in option),
        ]

    def _spawn(
        self, argv: Sequence[str], environment: dict[str, str], pass_fds: Sequence[int], token: str
    ) -> tuple[int, Process]:
        """Starts it and says where its output begins in the log.

        Plain Popen takes 0.3 ms of the loop, a third of `trio.lowlevel.open_process`, and as it runs no
        code between fork and exec, it uses vfork. Signals that are ignored are dealt with by
        `signals.children_get_defaults`.
        """
        cwd = self._spec.config.cwd
        try:
            output = logs.open_for_append(self._log)
            try:
                log_start = os.fstat(output).st_size
                popen = subprocess.Popen(
                    argv,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    cwd=cwd,
                    env=environment,
                    start_new_session=True,
                    pass_fds=pass_fds,
                )
            finally:
                os.close(output)
        except (OSError, ValueError) as error:  # ValueError: a null byte in a word
            raise CannotLaunch(*_why_not(argv[0], cwd, error)) from None
        try:
            return log_start, Process(popen.pid, token, popen)
        except OSError as error:  # no descriptor left for watching it
            popen.kill()
            popen.wait()
            raise CannotLaunch(*_why_not(argv[0], cwd, error)) from None


class LocalChild:
    def __init__(
        self, spec: ServiceSpec, record: InstanceRecord, process: Process, log: Path, log_start: int
    ) -> None:
        self.record = record
        self._process = process
        self._log, self._log_start = log, log_start
        self._is_command = bool(spec.config.command)
        self._port_is_fixed = spec.port is not None
        self.probe = Probe(record.host, record.port, None if self._is_command else record.token)

    async def wait_ready(self) -> None:
        begin = trio.current_time()
        # A hosted agent has its socket from the start, so this handshake waits in the backlog until it is
        # accepted. A command is asked again and again until it listens.
        while not (await self.probe()).ok or not await self._is_our_listener():
            waited = trio.current_time() - begin
            await trio.sleep(min(max(waited / 30, _MIN_PAUSE_S), _MAX_PAUSE_S))

    async def wait_exit(self) -> Exit:
        return await self._process.wait_exit()

    async def end(self, grace_s: float) -> Exit:
        return await self._process.end(grace_s)

    def release(self) -> None:
        self._process.release()

    def last_words(self) -> str:
        return logs.last_words(self._log, self._log_start)

    async def misfortune(self) -> tuple[Cause, str] | None:
        port = self.record.port
        inode = procfs.listener(port) if self._is_command else None
        if inode is None or await self._process.holds(inode):
            return None
        cause = Cause.PORT_TAKEN if self._port_is_fixed else Cause.PORT_LOST
        return cause, addresses.taken(self.record.host, port)

    async def _is_our_listener(self) -> bool:
        """A hosted agent has shown its token. For a command, whoever listens must be of its session."""
        if not self._is_command:
            return True
        inode = procfs.listener(self.record.port)
        return inode is not None and await self._process.holds(inode)


def _why_not(program: str, cwd: str | None, error: Exception) -> tuple[Cause, str]:
    if not isinstance(error, OSError):
        return Cause.CANNOT_EXECUTE, f"cannot execute {program!r}: {error}"
    if error.errno in _SHORTAGES:
        return Cause.SHORTAGE, f"the system has no room for another process just now: {error.strerror}"
    if cwd is not None and error.filename == cwd:
        return Cause.CANNOT_EXECUTE, f"cannot work in directory {cwd!r}: {error.strerror}"
    return Cause.CANNOT_EXECUTE, f"cannot execute {program!r}: {error.strerror}"
