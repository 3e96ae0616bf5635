"""What a worker is told at its start, and how it is known to live."""

from __future__ import annotations

import fcntl
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

import trio
from attrs import frozen

from ..codec import from_json, to_json, to_plain
from ..errors import InvalidRequest
from ..proxy import Gateway
from ..settings import RuntimePaths, Settings

_OF_OTHERS = frozenset(  # settings that change nothing of what a worker does for its clients
    {"api_host", "api_port", "api_rate_limit", "health_check_interval", "log_format", "log_level"}
    | {"proxy_host", "proxy_port", "proxy_workers"}
)


@frozen
class WorkerSpec:
    worker_id: str
    settings: Settings
    host: str
    port: int
    certfile: str | None = None  #: absolute; then it speaks TLS only
    keyfile: str | None = None
    slot: int = 0  #: which of those that share the port
    guest: bool = False  #: it belongs to a terminal of its own: no manager started it or starts it again
    leash: int | None = None  #: a pipe; when it comes to its end, so does the worker
    ready: int | None = None  #: a pipe that gets a line when it serves

    @property
    def log(self) -> Path:
        """Where it says what it does."""
        return RuntimePaths.of(self.settings.db_path).workers / f"{self.port}-{self.slot}.log"

    @property
    def options(self) -> str:
        """Equal for workers that do the same: one that does something else is not worth adopting."""
        settings = {k: v for k, v in to_plain(self.settings).items() if k not in _OF_OTHERS}
        same = [self.host, self.certfile, self.keyfile, self.guest, settings]
        return sha256(to_json(same).encode()).hexdigest()[:16]


def gateway(settings: Settings, **parts: Any) -> Gateway:
    """A gateway as the settings want it, in a worker and in the manager's own process alike."""
    return Gateway(
        allowed_origins=settings.allowed_origins or None, trusted_proxies=settings.trusted_proxies, **parts
    )


@frozen
class Mark:
    """What the file of a worker says, which it keeps locked as long as it lives."""

    worker_id: str
    pid: int
    guest: bool


@contextmanager
def marked(paths: RuntimePaths, mark: Mark) -> Iterator[None]:
    """Lets the next manager know that this process lives: the lock on its file dies with it."""
    paths.workers.mkdir(mode=0o700, exist_ok=True)
    path = paths.workers / f"{mark.worker_id}.lock"
    draft = path.with_suffix(".new")
    fd = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        os.write(fd, to_json(mark).encode())
        draft.rename(path)  # only now: one that is not locked is taken for a dead one's
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(fd)


def living(paths: RuntimePaths) -> list[Mark]:
    """The workers that live; what dead ones left is removed."""
    found = []
    for path in paths.workers.glob("*.lock"):
        if (mark := _look(path)) is not None:
            found.append(mark)
    return found


async def end_living(paths: RuntimePaths) -> int:
    """Ends those that no manager looks after, and no terminal; returns how many there were."""
    found = [mark for mark in living(paths) if not mark.guest]
    for mark in found:
        with suppress(ProcessLookupError):
            process = os.pidfd_open(mark.pid)
            try:
                signal.pidfd_send_signal(process, signal.SIGTERM)
                await trio.lowlevel.wait_readable(process)
            finally:
                os.close(process)
    return len(found)


def _look(path: Path) -> Mark | None:
    with suppress(FileNotFoundError, InvalidRequest):
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
            path.unlink()
        except BlockingIOError:
            return from_json(os.pread(fd, 4096, 0), Mark)
        finally:
            os.close(fd)
    return None
