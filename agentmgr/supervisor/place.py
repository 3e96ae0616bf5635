"""Where an instance runs on this machine: its address, its environment, its limits, and how it is started."""

from __future__ import annotations

import errno
import logging
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from attrs import frozen

from ..core.restart import Cause
from ..models import InstanceRecord, OnManagerDeath, ServiceSpec, utc_now
from . import addresses, environment, logs, procfs
from .child import LocalChild
from .launcher import CannotLaunch
from .limits import Limits
from .process import Process
from .tokens import Mint
from .upkeep import Upkeep

log = logging.getLogger(__name__)

_SHORTAGES = (errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE)

# Fields of `ServiceConfig` that the agent host takes as options of the same name.
_HOST_OPTIONS = (
    "runtime",
    "max_sessions",
    "session_timeout",
    "max_message_bytes",
    "turn_timeout",
    "confirm_timeout",
    "on_disconnect",
    "disconnect_grace",
    "when_busy",
)


class LocalPlace:
    def __init__(
        self,
        spec: ServiceSpec,
        instance_id: str,
        slot: int,
        log: Path,
        mint: Mint,
        ports: addresses.Ports,
        upkeep: Upkeep,
    ) -> None:
        self._spec, self._instance_id, self._slot = spec, instance_id, slot
        self._log, self._mint, self._ports, self._upkeep = log, mint, ports, upkeep
        self._listener: socket.socket | None = None
        self._port = spec.port  #: the last one it had, to have it again
        self._lent: int | None = None
        self._limits = Limits(spec.config, instance_id)

    async def launch(self) -> LocalChild:
        spec, config = self._spec, self._spec.config
        host = await addresses.resolve(spec.host)
        port = self._lend_port(host) if config.command else self._listen(host)
        token = self._mint.new()
        variables = {
            "HOST": host,
            "PORT": str(port),
            "AGENTMGR_SERVICE": spec.name,
            "AGENTMGR_INSTANCE_ID": self._instance_id,
            procfs.TOKEN_VARIABLE: token,
        }
        dies_with_us = config.on_manager_death is OnManagerDeath.DIE
        leash = _Leash.new() if dies_with_us and not config.command else None
        try:
            argv = self._argv(host, port, leash)
            process, log_start = self._spawn(argv, environment.of_child(config, variables), leash, token)
        except CannotLaunch:
            if leash is not None:
                os.close(leash.ours)
            raise
        finally:
            if leash is not None:
                os.close(leash.theirs)
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
        self._upkeep.watch(self._instance_id, process.pid, self._log, config)
        unenforced = self._limits.impose(process.pid)
        if dies_with_us and leash is None:
            unenforced += ("on_manager_death: a command does not watch its manager",)
        return LocalChild(
            spec, record, process, self._log, log_start, unenforced, None if leash is None else leash.ours
        )

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
        self._limits.adopt()
        self._upkeep.watch(self._instance_id, record.pid, self._log, self._spec.config)
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
        self._limits.lift()
        self._upkeep.forget(self._instance_id)

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

    def _argv(self, host: str, port: int, leash: _Leash | None) -> Sequence[str]:
        config = self._spec.config
        if config.command:
            return [word.replace("{host}", host).replace("{port}", str(port)) for word in config.command]
        assert config.agent_factory_path is not None
        assert self._listener is not None
        argv = [config.python or sys.executable, "-m", "agentmgr.agent", config.agent_factory_path]
        argv += ["--fd", str(self._listener.fileno())]
        if leash is not None:
            argv += ["--manager-fd", str(leash.theirs)]
        for name in _HOST_OPTIONS:
            argv += [f"--{name.replace('_', '-')}", str(getattr(config, name))]
        return argv

    def _spawn(
        self, argv: Sequence[str], variables: dict[str, str], leash: _Leash | None, token: str
    ) -> tuple[Process, int]:
        """Starts it and says where its output begins in the log. Raises `CannotLaunch`.

        Plain Popen takes 0.3 ms of the loop, a third of `trio.lowlevel.open_process`. As it runs no code
        between fork and exec, it uses vfork; so ignored signals are seen to beforehand, by
        `signals.children_get_defaults`, and limits afterwards.
        """
        cwd = self._spec.config.cwd
        inherited = [] if self._listener is None else [self._listener.fileno()]
        if leash is not None:
            inherited.append(leash.theirs)
        try:
            output = self._open_log()
            try:
                log_start = os.fstat(output).st_size
                popen = subprocess.Popen(
                    argv,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    cwd=cwd,
                    env=variables,
                    start_new_session=True,
                    pass_fds=inherited,
                )
            finally:
                os.close(output)
        except (OSError, ValueError) as error:  # ValueError: a null byte in a word
            raise CannotLaunch(*_why_not(argv[0], cwd, error)) from None
        try:
            return Process(popen.pid, token, popen), log_start
        except OSError as error:  # no descriptor left for watching it
            popen.kill()
            popen.wait()
            raise CannotLaunch(*_why_not(argv[0], cwd, error)) from None

    def _open_log(self) -> int:
        """Better no log than no service: without a place for its output, it runs without."""
        try:
            return logs.open_for_append(self._log)
        except OSError as error:
            if error.errno in _SHORTAGES:
                raise
            log.warning("the output of %s is lost: %s: %s", self._spec.name, self._log, error.strerror)
            return os.open(os.devnull, os.O_WRONLY)


@frozen
class _Leash:
    """A pipe that nobody writes to. The child sees its end when we, who hold the other one, are gone.

    Not PR_SET_PDEATHSIG: that follows the thread that spawned, and threads end before their process does.
    """

    ours: int
    theirs: int

    @classmethod
    def new(cls) -> _Leash:
        """Raises `CannotLaunch`."""
        try:
            theirs, ours = os.pipe()
        except OSError as error:
            raise CannotLaunch(*_why_not("", None, error)) from None
        return cls(ours, theirs)


def _why_not(program: str, cwd: str | None, error: Exception) -> tuple[Cause, str]:
    if not isinstance(error, OSError):
        return Cause.CANNOT_EXECUTE, f"cannot execute {program!r}: {error}"
    if error.errno in _SHORTAGES:
        return Cause.SHORTAGE, f"the system has no room for another process just now: {error.strerror}"
    if cwd is not None and error.filename == cwd:
        return Cause.CANNOT_EXECUTE, f"cannot work in directory {cwd!r}: {error.strerror}"
    return Cause.CANNOT_EXECUTE, f"cannot execute {program!r}: {error.strerror}"
