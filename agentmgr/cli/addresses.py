"""Where a listener is reached, as people and clients write it."""

from __future__ import annotations

from ..core.loopback import authority


def url(kind: str, host: str, port: int, *, tls: bool = False, **others: object) -> str:
    """As in `ws://localhost:9090`; of a listener on every address, what reaches it from this machine.

    `others`: what a manager of another version says besides.
    """
    scheme = {"proxy": "ws", "api": "http"}[kind] + ("s" if tls else "")
    if host in ("", "0.0.0.0", "::"):
        host = "localhost"
    return f"{scheme}://{authority(host, port)}"


def address(kind: str, host: str, port: int, *, tls: bool, **others: object) -> str:
    """As in `gateway at ws://localhost:9090`."""
    where = url(kind, host, port, tls=tls)
    return f"gateway at {where}" if kind == "proxy" else f"API at {where}/docs"
