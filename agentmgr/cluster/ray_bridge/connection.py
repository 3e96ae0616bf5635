"""Connects with Ray, and says for people why that is not possible.

Ray itself says little: a token that it refuses looks like a network failure, after 20 s, and with TLS on one
side only a call hangs for over a minute. So what can be found out without it is found out before.
"""

from __future__ import annotations

import os
import socket
import ssl
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

_CONNECT_S = 25.0
"""Ray gives up after 20 s where it says anything at all."""
_PROBE_S = 3.0
_CURRENT = "ray_current_cluster"


class CannotConnect(Exception):
    """For the user, with what to do."""


def connect(address: str, namespace: str) -> None:
    """Raises `CannotConnect`."""
    try:
        import ray
    except ImportError as error:
        raise CannotConnect(
            f"{sys.executable} has no Ray ({error}): `{sys.executable} -m pip install 'agentmgr-trio[ray]'`, "
            "or name a Python that has it with --cluster-python"
        ) from None
    head = _head(address)
    if head is not None:
        _probe(head)
    where = head or address
    try:
        # Not in the main thread, where Ray would take over SIGTERM.
        _within(
            _CONNECT_S,
            lambda: ray.init(
                address=address, namespace=namespace, log_to_driver=False, logging_level="ERROR"
            ),
        )
    except TimeoutError:
        raise CannotConnect(f"Ray at {where} did not answer within {_CONNECT_S:g} s: {_BOTH}") from None
    except Exception as error:  # of Ray's, which has many kinds
        raise CannotConnect(_explained(error, where)) from None


_TOKEN = (
    "does it ask for a token (RAY_AUTH_MODE=token), and has the manager the same one, in ~/.ray/auth_token "
    "or RAY_AUTH_TOKEN, and RAY_AUTH_MODE=token?"
)
_BOTH = f"{_TOKEN} Or has one side TLS (RAY_USE_TLS=1) and the other one not?"


def _explained(error: Exception, where: str) -> str:
    text = str(error).strip()
    name = type(error).__name__
    if name == "AuthenticationError":
        return (
            "RAY_AUTH_MODE=token is set for this manager, and it has no token: copy ~/.ray/auth_token of "
            "Ray's head to this machine"
        )
    if "Version mismatch" in text:
        return (
            f"the Ray at {where} is of another version of Ray or Python than {sys.executable}: name a Python "
            f"of its version with --cluster-python ({' '.join(text.split())[:300]})"
        )
    if name == "ConnectionError" and "Could not find any running Ray" in text:
        return (
            "no Ray runs on this machine: `ray start --head`, or `ray start --address HEAD:6379` to be one "
            "of its workers"
        )
    if name == "ConnectionError":
        return f"Ray at {where} lets this manager not in: {_BOTH}"
    if "node_ip_address" in text or "raylet" in text:
        return (
            f"this machine is none of the Ray at {where}: `ray start --address {where} --num-cpus 0` here "
            f"({text.splitlines()[0][:300]})"
        )
    return f"cannot connect with the Ray at {where}: {(text.splitlines() or [name])[0][:300]}"


def _head(address: str) -> str | None:
    """HOST:PORT of Ray's head; None where only Ray knows."""
    if address == "auto":
        address = os.environ.get("RAY_ADDRESS", "")
    if not address:
        with suppress(OSError):
            address = Path(os.environ.get("RAY_TMPDIR", "/tmp"), "ray", _CURRENT).read_text().strip()
    host, colon, port = address.rpartition(":")
    return address if colon and host and port.isdigit() else None


def _probe(head: str) -> None:
    """Raises `CannotConnect` where nothing answers, and where one side only has TLS."""
    host, _, port = head.rpartition(":")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    try:
        plain = socket.create_connection((host.strip("[]"), int(port)), timeout=_PROBE_S)
    except OSError as error:
        raise CannotConnect(
            f"no Ray answers at {head} ({error.strerror or error}): start it there with `ray start --head`, "
            "or name the address of its head with --ray-address"
        ) from None
    with plain:
        try:
            with context.wrap_socket(plain):
                theirs = True
        except ssl.SSLError as error:
            # One that asks for our certificate says so only after the handshake, or by an alert.
            theirs = "ALERT" in (error.reason or "")
        except OSError:
            theirs = False
    ours = os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true")
    if theirs and not ours:
        raise CannotConnect(
            f"the Ray at {head} speaks TLS, and this manager was started without RAY_USE_TLS=1, "
            "RAY_TLS_SERVER_CERT, RAY_TLS_SERVER_KEY and RAY_TLS_CA_CERT: set them as for `ray start`"
        )
    if ours and not theirs:
        raise CannotConnect(
            f"the Ray at {head} does not speak TLS, and this manager was started with RAY_USE_TLS=1: leave "
            "it out, or set it for each `ray start` too"
        )


def _within(seconds: float, work: Callable[[], object]) -> None:
    """Raises `TimeoutError`, and what it raises."""
    failure: list[Exception] = []

    def run() -> None:
        try:
            work()
        except Exception as error:  # it is raised again below
            failure.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise TimeoutError
    if failure:
        raise failure[0]
