"""`PYTHON -P bootstrap.py agentmgr.fork_server --fd N --parent PID`: run by `agentmgr.supervisor.forking`."""

from __future__ import annotations

import argparse
import gc
import os
import random
import socket
import sys
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

from attrs import asdict

from ..agent import loaded
from ..agent.__main__ import main as run_host
from ..agent.__main__ import parser
from ..core.proof import proof
from ..process import handover
from . import become, in_proc, preloading
from .preloading import Preloaded
from .sibling import CannotFork, SiblingFork


def main() -> int:
    """Forks until the manager closes the socket; and in each child, runs the agent's host."""
    parser = argparse.ArgumentParser("python -m agentmgr.fork_server")
    parser.add_argument("--fd", type=int, required=True, help="a stream socket to the manager")
    parser.add_argument("--parent", type=int, required=True, help="the manager")
    parser.add_argument("--preload", action="store_true", help="its first message names modules to import")
    options = parser.parse_args()
    requests = socket.socket(fileno=options.fd)
    os.set_inheritable(requests.fileno(), False)
    try:
        fork = SiblingFork()
        in_proc.show(sys.orig_argv, os.environ)
    except (CannotFork, OSError) as why:
        return _refuse(f"cannot fork here: {why}")
    if os.getppid() != options.parent:
        return _refuse(f"{sys.executable} is no child of the manager: what starts it must exec it")
    preloaded = None
    if options.preload:
        received = handover.receive(requests)
        if received is None:  # the manager has died
            return 0
        preloaded = preloading.preload(received[0]["modules"])
    else:
        _warm_up()
        loaded.note_own()
    start = _serve(requests, fork, preloaded)
    return 0 if start is None else _begin(start)


def _warm_up() -> None:
    """Does ahead what each host would do first, as far as that leaves nothing but memory."""
    for module in _USED_LATER:
        import_module(module)
    parser().parse_args(["agent.py", "--fd", "3", "--journal", "agent.db"])
    proof("", "")  # has OpenSSL initialise itself
    loaded.roots()  # finds where packages are


_USED_LATER = ("agentmgr.codec", "agentmgr.journal.sqlite")
"""What a host imports only if it is needed; here it costs nothing."""


def _refuse(reason: str) -> int:
    sys.stderr.write(f"{reason}\n")
    return os.EX_UNAVAILABLE


def _serve(requests: socket.socket, fork: SiblingFork, preloaded: Preloaded | None) -> socket.socket | None:
    """In each child, its socket to the manager; None when there is nothing more to fork."""
    generators = [each for each in gc.get_objects() if isinstance(each, random.Random)]
    gc.disable()
    gc.collect()
    gc.freeze()  # a collection in a child would write to, and so copy, the memory that it shares with all
    hello: dict[str, Any] = {"version": handover.VERSION, "made_of": _made_of()}
    if preloaded is not None:
        hello["made_of"] += preloaded.read
        hello |= asdict(preloaded)
    handover.send(requests, hello)
    if preloaded is not None and preloaded.unsafe is not None:
        return None
    with requests:
        while True:
            data, descriptors, _, _ = socket.recv_fds(requests, 1, 1)
            if not data:
                return None
            if not descriptors:  # none was left to receive it with; its other end sees that it is closed
                continue
            with socket.socket(fileno=descriptors[0]) as start:
                try:
                    if fork() == 0:
                        for each in generators:
                            each.seed()
                        gc.enable()
                        return become.out_of_the_way(start)
                except OSError as error:
                    with suppress(OSError):  # the manager waits for it no more
                        handover.send(start, {"error": [error.errno, error.strerror, None]})


def _made_of() -> list[str]:
    """The interpreter, and the directories that change when a package is installed, upgraded or removed."""
    packages = [entry for entry in sys.path if os.path.basename(entry) in ("site-packages", "dist-packages")]
    return [os.path.realpath(sys.executable), str(Path(__file__).parents[1]), *packages]


def _begin(start: socket.socket) -> int:
    try:
        handover.send(start, {"forked": os.getpid()})
        # Not before: should it die until then, the manager, which does not know its pid yet, finds it in the
        # process group of the fork server.
        os.setsid()
        try:
            if (received := handover.receive(start)) is None:
                return 0  # the manager does not want it any more
            module = become.become(*received, start)
        except OSError as error:
            handover.send(start, {"error": [error.errno, error.strerror, error.filename]})
            return os.EX_UNAVAILABLE
        handover.send(start, {"begun": True})
        start.close()
    except OSError:  # the manager has died, or does not want it any more
        return 0
    if module == become.FORK_SERVER:
        return main()
    preloading.in_child()
    return run_host()
