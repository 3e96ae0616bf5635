"""Where an instance runs on this machine: its address, its environment, its limits, and how it is started."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from ..core.hosting import host_flags
from ..core.restart import Cause
from ..models import InstanceRecord, OnManagerDeath, ServiceSpec, utc_now
from . import addresses, environment, listeners, procfs
from .child import LocalChild
from .launcher import CannotLaunch
from .limits import Limits
from .process import Census, Process
from .spawn import cannot, spawn
from .tokens import Mint
from .upkeep import Upkeep


class LocalPlace:
    def __init__(
        self,
        spec: ServiceSpec,
        instance_id: str,
        slot: int,
        log: Path,
        mint: Mint,
        ports: addresses.Ports,
        census: Census,
        upkeep: Upkeep,
    ) -> None:
        self._spec, self._instance_id, self._slot = spec, instance_id, slot
        self._log, self._mint, self._ports = log, mint, ports
        self._census, self._upkeep = census, upkeep
        self._listener: socket.socket | None = None
        self._port = spec.port  #: the last one it had, to have it again
        self._lent: int | None = None
        self._child: LocalChild | None = None  #: the last one
        self._limits = Limits(spec.config, instance_id)

    async def launch(self) -> LocalChild:
        try:
            return await self._launch()
        except OSError as error:
            raise cannot(error) from None

    async def _launch(self) -> LocalChild:
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
        inherited = [] if self._listener is None else [self._listener.fileno()]
        with ExitStack() as leash:
            if config.on_manager_death == OnManagerDeath.DIE and not config.command:
                # A pipe that nobody writes to: the child sees its end when we, who hold the other one, are
                # gone. Not PR_SET_PDEATHSIG: that follows the thread that spawned, and threads end before
                # processes.
                theirs, ours = os.pipe()
                leash.callback(os.close, ours)
                inherited.append(theirs)
            else:
                theirs = None
            try:
                spawned = spawn(
                    self._argv(host, port, theirs),
                    environment=environment.of_child(config, variables),
                    cwd=config.cwd,
                    output=self._log,
                    inherited=inherited,
                    token=token,
                    limits=self._limits,
                    census=self._census,
                )
            finally:
                if theirs is not None:
                    os.close(theirs)
            unenforced = spawned.unenforced
            if config.on_manager_death == OnManagerDeath.DIE and config.command:
                unenforced += ("on_manager_death: a command does not watch its manager",)
            record = InstanceRecord(
                instance_id=self._instance_id,
                service_id=spec.service_id,
                slot=self._slot,
                pid=spawned.process.pid,
                process_start=spawned.process.start_ticks,
                boot_id=procfs.boot_id(),
                token=token,
                host=addresses.to_dial(host),
                port=port,
                spec_version=spec.version,
                started_at=utc_now(),
            )
            self._upkeep.watch(self._instance_id, record.pid, self._log, config)
            log_start = spawned.log_start
            last = self._child.ready_after_s if self._child is not None else 0.0
            self._child = LocalChild(
                spec, record, spawned.process, self._log, log_start, unenforced, leash.pop_all(), last
            )
            return self._child

    def adopt(self, record: InstanceRecord) -> LocalChild | None:
        if record.boot_id != procfs.boot_id() or not self._is_that(record):
            return None
        try:
            process = Process(record.pid, record.token, self._census)
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
            inode = listeners.on_port(self._lent)
            if inode is None:
                return self._lent
            taken = addresses.taken(host, self._lent)
            if self._spec.port is not None:
                raise CannotLaunch(Cause.PORT_TAKEN, taken)
            self._ports.take_back(self._lent)
        self._lent = self._ports.lend(host, self._spec.port)
        return self._lent

    def _argv(self, host: str, port: int, manager_fd: int | None) -> Sequence[str]:
        config = self._spec.config
        if config.command:
            return [word.replace("{host}", host).replace("{port}", str(port)) for word in config.command]
        assert config.agent_factory_path is not None
        assert self._listener is not None
        argv = [config.python or sys.executable, "-m", "agentmgr.agent", config.agent_factory_path]
        argv += ["--fd", str(self._listener.fileno())]
        if manager_fd is not None:
            argv += ["--manager-fd", str(manager_fd)]
        return argv + host_flags(config)
