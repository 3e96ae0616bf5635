"""Starts the process of one worker, waits for its exit, ends it. Starting another is up to `worker_set`."""

from __future__ import annotations

import os
import signal
import subprocess
from contextlib import ExitStack, suppress
from pathlib import Path

import trio
from attrs import evolve

from ..codec import to_json
from ..core.restart import Exit
from ..process import detached
from ..process.paths import reason
from ..supervisor import logs
from ..worker.spec import WorkerSpec

_START_S = 30.0  #: until a new worker serves
_KILL_PATIENCE_S = 10.0  #: a process in uninterruptible sleep dies when the disk lets it


class DidNotStart(Exception):
    """A worker ended or was not ready in time; the message is the last line of its output."""


class WorkerProcess:
    """One that was started here, or one that a former manager has left."""

    def __init__(self, pid: int, popen: subprocess.Popen[bytes] | None = None) -> None:
        """Raises OSError when there is no such process, or no descriptor to be had."""
        self.pid = pid
        self._popen = popen
        self._pidfd = os.pidfd_open(pid)

    @classmethod
    async def start(cls, spec: WorkerSpec, output: Path) -> WorkerProcess:
        """Returns when it serves. Raises `DidNotStart`."""
        reading, writing = os.pipe()
        async with trio.lowlevel.FdStream(reading) as ready:
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

    async def wait_exit(self) -> Exit:
        """How it ended; `Exit()`, not known, of one that a former manager started."""
        await trio.lowlevel.wait_readable(self._pidfd)
        if self._popen is None:
            return Exit()
        code = self._popen.wait()  # it has exited, so this does not block
        return Exit(signal=-code) if code < 0 else Exit(code=code)

    async def end(self, grace_s: float) -> Exit:
        """Sends SIGTERM, and SIGKILL after `grace_s` seconds; then forgets the process.

        Shielded from cancellation.
        """
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, signal.SIGTERM)
            signal.pidfd_send_signal(self._pidfd, signal.SIGCONT)  # stopped, it would not hear the TERM
        exit = Exit()
        with trio.move_on_after(grace_s, shield=True) as patience:
            exit = await self.wait_exit()
        if patience.cancelled_caught:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
            with trio.move_on_after(_KILL_PATIENCE_S, shield=True):
                exit = await self.wait_exit()
        self.forget()
        return exit

    def forget(self) -> None:
        """Lets go of a process that goes on, or has ended."""
        trio.lowlevel.notify_closing(self._pidfd)
        os.close(self._pidfd)
        if self._popen is not None and self._popen.poll() is None:
            detached.disown(self._popen)


def _spawn(spec: WorkerSpec, output: Path) -> WorkerProcess:
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
            f"{spec.host}:{spec.port}",  # not read by the worker: it is there for `ps`
            stdin=spec_file,
            stdout=out,
            stderr=out,
            inherited=[fd for fd in (spec.ready, spec.lifeline) if fd is not None],
        )
        try:
            return WorkerProcess(popen.pid, popen)
        except OSError:  # no descriptor left for watching it
            popen.kill()
            popen.wait()
            raise
