"""The configuration that a worker gets at its start."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import trio
from attrs import frozen

from .. import telemetry
from ..codec import to_json, to_plain
from ..core.leases import LEASE_S
from ..core.routing import Gate
from ..fronts import Fronts
from ..process.paths import RuntimePaths
from ..proxy import Gateway
from ..settings import Settings
from . import protocol

#: Settings that affect how a worker serves its clients.
_USED_ON_NODES = ("allowed_origins", "trusted_proxies", "proxy_protocol", "fronts")
_USED = ("db_path", *_USED_ON_NODES)


@frozen
class ClusterManager:
    """How a worker on a node finds the manager."""

    file: str  #: as `dialing.ManagerFile`
    source: str | None = None  #: the local address to dial from


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
    listens: bool = True  #: False: it has a gate only, and no clients of its own
    node_id: str = ""  #: of the machine that it is on; "": the manager's own
    credentials: str | None = None  #: in a cluster, the directory of `agentmgr.credentials`
    gate_host: str | None = None  #: in a cluster, the address of its gate
    manager: ClusterManager | None = None  #: None: the socket beside the database
    directory: str | None = None  #: of its log and its lock; None: beside the database
    lease_s: float = LEASE_S  #: of its seats, where `node_id` is set
    lifeline: int | None = None  #: a pipe's descriptor; the worker ends at its end of file
    ready: int | None = None  #: a pipe's descriptor, which gets a line once it serves

    @property
    def files(self) -> Path:
        """The directory of its log and its lock."""
        if self.directory is not None:
            return Path(self.directory)
        return RuntimePaths.of(self.settings.db_path).workers

    @property
    def log(self) -> Path:
        """The file that it logs to."""
        return self.files / f"{self.port if self.listens else 'gate'}-{self.slot}.log"

    @property
    def options(self) -> str:
        """Equal for workers that serve clients alike: a manager adopts only those that match its own."""
        used = _USED if self.directory is None else _USED_ON_NODES
        settings = to_plain({name: getattr(self.settings, name) for name in used})
        same = [protocol.VERSION, self.host, self.certfile, self.keyfile, self.guest, settings]
        if self.credentials is not None:
            gate = [self.node_id, self.credentials, self.gate_host, to_plain(self.manager), self.lease_s]
            same += [self.listens, *gate]
        return sha256(to_json(same).encode()).hexdigest()[:16]


def gate_of(spec: WorkerSpec, listeners: Sequence[trio.SocketListener]) -> Gate | None:
    """Where gateways of other nodes find the gate that listens there; None where there is none."""
    if not listeners or spec.gate_host is None:
        return None
    host = socket.gethostname() if spec.gate_host in ("", "0.0.0.0", "::") else spec.gate_host
    return Gate(host, listeners[0].socket.getsockname()[1])


def gateway(settings: Settings, *, credentials: str | Path | None = None, **parts: Any) -> Gateway:
    """A gateway with these settings, for a worker and for the manager's own process.

    `credentials`: in a cluster, the directory of its node's.
    """
    if credentials is not None:
        from ..credentials import Credentials  # here: `ssl` is for clusters only

        parts["credentials"] = Credentials(credentials)
    return Gateway(
        allowed_origins=settings.allowed_origins or None,
        trusted_proxies=settings.trusted_proxies,
        fronts=Fronts(settings.fronts),
        telemetry=telemetry.begin("agentmgr"),
        **parts,
    )
