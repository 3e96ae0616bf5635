"""The configuration that a worker gets at its start."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path
from typing import Any

from attrs import frozen

from .. import telemetry
from ..codec import to_json, to_plain
from ..fronts import Fronts
from ..process.paths import RuntimePaths
from ..proxy import Gateway
from ..settings import Settings
from . import protocol

# Settings that do not affect how a worker serves its clients.
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
    guest: bool = False  #: of an `agentmgr proxy` in a terminal: no manager starts or restarts it
    lifeline: int | None = None  #: a pipe's descriptor; the worker ends at its end of file
    ready: int | None = None  #: a pipe's descriptor, which gets a line once it serves

    @property
    def log(self) -> Path:
        """The file that it logs to."""
        return RuntimePaths.of(self.settings.db_path).workers / f"{self.port}-{self.slot}.log"

    @property
    def options(self) -> str:
        """Equal for workers that serve clients alike: a manager adopts only those that match its own."""
        settings = {k: v for k, v in to_plain(self.settings).items() if k not in _IRRELEVANT}
        same = [protocol.VERSION, self.host, self.certfile, self.keyfile, self.guest, settings]
        return sha256(to_json(same).encode()).hexdigest()[:16]


def gateway(settings: Settings, **parts: Any) -> Gateway:
    """A gateway with these settings, for a worker and for the manager's own process."""
    return Gateway(
        allowed_origins=settings.allowed_origins or None,
        trusted_proxies=settings.trusted_proxies,
        fronts=Fronts(settings.fronts),
        telemetry=telemetry.begin("agentmgr"),
        **parts,
    )
