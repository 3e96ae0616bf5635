"""What a worker is told at its start."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path
from typing import Any

from attrs import frozen

from ..codec import to_json, to_plain
from ..proxy import Gateway
from ..settings import RuntimePaths, Settings

# Settings that change nothing of what a worker does for its clients.
_IRRELEVANT = frozenset(
    {
        "api_host",
        "api_port",
        "api_rate_limit",
        "health_check_interval",
        "log_format",
        "log_level",
        "proxy_host",
        "proxy_port",
        "proxy_workers",
    }
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
    leash: int | None = None  #: a pipe's descriptor; the worker ends at its end of file
    ready: int | None = None  #: a pipe's descriptor, which gets a line once it serves

    @property
    def log(self) -> Path:
        """The file that it logs to."""
        return RuntimePaths.of(self.settings.db_path).workers / f"{self.port}-{self.slot}.log"

    @property
    def options(self) -> str:
        """Equal for workers that do the same: one that does something else is not worth adopting."""
        settings = {k: v for k, v in to_plain(self.settings).items() if k not in _IRRELEVANT}
        same = [self.host, self.certfile, self.keyfile, self.guest, settings]
        return sha256(to_json(same).encode()).hexdigest()[:16]


def gateway(settings: Settings, **parts: Any) -> Gateway:
    """A gateway as the settings want it, in a worker and in the manager's own process alike."""
    return Gateway(
        allowed_origins=settings.allowed_origins or None, trusted_proxies=settings.trusted_proxies, **parts
    )
