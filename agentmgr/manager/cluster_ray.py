"""What a manager with `--cluster ray` needs beside its nodes: the engine, and how others reach it."""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from typing import TYPE_CHECKING

from ..core.hosts import is_loopback
from ..settings import ClusterMode, Settings
from .doctor import Finding

if TYPE_CHECKING:
    from ..cluster.ray_engine import RayEngine
    from .cluster import JoinedCluster

_ANYWHERE = "0.0.0.0"
_FAR_AWAY = ("192.0.2.1", 9)  #: of no machine (RFC 5737); a datagram socket that is connected sends nothing


def ray_engine(cluster: JoinedCluster, settings: Settings) -> RayEngine:
    from ..cluster.ray_engine import RayEngine  # here: other clusters do not pay for it

    return RayEngine(
        cluster.cluster_id,
        cluster.invite_machine,
        manager_port=cluster.port,
        manager_host=settings.cluster_host or "",  # that which Ray has of this machine
        generation=cluster.generation,
        obeys=cluster.node_obeys,
        address=settings.ray_address,
        python=settings.cluster_python,
    )


def exposure(settings: Settings) -> Finding | None:
    """Whether strangers in the network can use Ray, as far as this manager's environment says."""
    host = settings.ray_address.rpartition(":")[0]
    if os.environ.get("RAY_AUTH_MODE", "").lower() == "token" or (host and is_loopback(host)):
        return None
    return Finding(
        "ray",
        "warning",
        "it asks for no token: whoever reaches its ports runs code on every machine",
        "RAY_AUTH_MODE=token for each `ray start` and for this manager, and one token in ~/.ray/auth_token "
        "on every machine (`ray get-auth-token --generate`); RAY_USE_TLS=1 where the network is not private",
    )


def listen_host(settings: Settings) -> str:
    """Where the manager listens for nodes."""
    if settings.cluster_host is not None:
        return settings.cluster_host
    return _ANYWHERE if settings.cluster is ClusterMode.RAY else "localhost"


def own_host(settings: Settings) -> str:
    """The address by which others reach this machine, as far as that is known without Ray."""
    if settings.cluster_host is not None or settings.cluster is not ClusterMode.RAY:
        return settings.cluster_host or "localhost"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock, suppress(OSError):
        sock.connect(_FAR_AWAY)
        return str(sock.getsockname()[0])
    return socket.gethostname()
