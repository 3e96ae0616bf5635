"""A second stage: a fork server that has also imported what an agent imports.

Imports may do more than define names. What forked processes would share, and must not, makes the stage
unsafe: threads, which a fork leaves behind with the locks that they hold; open files and sockets; child
processes. Whatever else imports change in this process, such as signal handlers or filters of warnings, an
agent has as it would have after its own imports.
"""

from __future__ import annotations

import builtins
import gc
import os
import re
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.machinery import all_suffixes
from select import POLLIN, poll
from signal import SIGKILL
from typing import Any

from attrs import frozen

from ..boundary import Failure, attempt, describe

_TRIAL_FORK_S = 5.0  #: for a fork whose child ends at once

_changed: dict[str, str | None] = {}  #: variables that imports have set, or removed


@frozen
class Preloaded:
    imported: int  #: modules
    packages: list[str]  #: that these are of, and single modules
    failed: str | None  #: the first that cannot be imported, and why
    unsafe: str | None  #: why this process must not be forked, as in "grpc started 3 threads"
    read: list[str]  #: files that imports have read, as litellm reads `.env`; those with code left out


def preload(names: Sequence[str]) -> Preloaded:
    """Imports them in this order; one that cannot be imported alone is left to the agent."""
    before, environment, shared = {*sys.modules}, dict(os.environ), _shared()
    failed = None
    gc.disable()  # what is imported stays
    with _blame(shared) as culprits, _note_read() as read:
        for name in names:
            outcome = attempt(partial(builtins.__import__, name))
            if isinstance(outcome, Failure) and failed is None:
                failed = f"{name} cannot be imported: {describe(outcome.error)}"
    gc.enable()
    gc.collect()
    _changed.update(
        (name, os.environ.get(name))
        for name in {*environment, *os.environ}
        if environment.get(name) != os.environ.get(name)
    )
    if any(thing.startswith(_THREAD) for thing in _shared() - shared):
        _try_to_fork()
    left = _shared() - shared
    imported = sys.modules.keys() - before
    packages = sorted({name.partition(".")[0] for name in imported})
    unsafe = _reason(left, culprits) or _child()
    return Preloaded(len(imported), packages, failed, unsafe, sorted(filter(_is_data, read)))


def in_child() -> None:
    """Gives a forked agent, whose environment is set, what its own imports would have given it."""
    for name, value in _changed.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    if "numpy.random" in sys.modules:
        attempt(sys.modules["numpy.random"].seed)  # else all have the same random numbers
    if "multiprocessing.process" in sys.modules:
        sys.modules["multiprocessing"].current_process().authkey = os.urandom(32)  # a secret of each process


@contextmanager
def _note_read() -> Iterator[set[str]]:
    read: set[str] = set()
    noting = True

    def hook(event: str, arguments: tuple[Any, ...]) -> None:  # it stays: Python cannot remove it
        if noting and event == "open":
            path, _, flags = arguments
            if isinstance(path, str | bytes | os.PathLike) and flags & os.O_ACCMODE == os.O_RDONLY:
                read.add(os.path.abspath(os.fsdecode(path)))

    sys.addaudithook(hook)
    try:
        yield read
    finally:
        noting = False


def _is_data(path: str) -> bool:
    """Whether it may differ at the next start, though the same packages are installed."""
    parts = path.split(os.sep)
    return (
        not path.endswith(tuple(all_suffixes()))
        and not path.startswith((*_OF_THE_KERNEL, os.path.dirname(os.__file__) + os.sep))
        and "site-packages" not in parts
        and "dist-packages" not in parts
        and os.path.isfile(path)
    )


_OF_THE_KERNEL = ("/proc/", "/sys/")

_THREAD = "thread "
_POLL = "anon_inode:[eventpoll]"


def _shared() -> frozenset[str]:
    """Threads and open descriptors; each as a text."""
    things = {f"{_THREAD}{thread}" for thread in os.listdir("/proc/self/task")}
    for number in os.listdir("/proc/self/fd"):
        try:
            things.add(f"{number} {os.readlink(f'/proc/self/fd/{number}')}")
        except OSError:  # that of the directory
            continue
    return frozenset(things)


@contextmanager
def _blame(known: frozenset[str]) -> Iterator[dict[str, str]]:
    """Which package brought what is shared, apart from `known`: the one whose import is the innermost."""
    culprits: dict[str, str] = {}
    original = builtins.__import__

    def importing(name: str, globals: Any = None, *rest: Any, **named: Any) -> Any:
        count = len(sys.modules)
        try:
            return original(name, globals, *rest, **named)
        finally:
            if len(sys.modules) != count:
                level = named.get("level", rest[2] if len(rest) > 2 else 0)
                package = (globals or {}).get("__package__") if level else name
                for thing in _shared() - known - culprits.keys():
                    culprits[thing] = str(package).partition(".")[0]

    builtins.__import__ = importing
    try:
        yield culprits
    finally:
        builtins.__import__ = original


def _reason(left: frozenset[str], culprits: dict[str, str]) -> str | None:
    if not left:
        return None
    thing = min(left, key=lambda thing: (not thing.startswith(_THREAD), not thing.endswith(_POLL), thing))
    culprit = culprits.get(thing, "what it imports")
    if thing.startswith(_THREAD):
        count = sum(it.startswith(_THREAD) and culprits.get(it, culprit) == culprit for it in left)
        return f"{culprit} started {count} thread{'s' * (count != 1)}"
    target = thing.partition(" ")[2]
    if target == _POLL:
        return f"{culprit} made an event loop"
    what = re.fullmatch(r"(socket|pipe):\[\d+\]", target)
    return f"{culprit} opened {f'a {what[1]}' if what else target}"


def _child() -> str | None:
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return None
    return "what it imports started a process"


def _try_to_fork() -> None:
    """Some libraries end their threads before a fork, and start others when they need them, as OpenBLAS does
    for numpy. `os.fork` lets them; the fork that makes an agent (`sibling`) would not.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # that there are threads
        pid = os.fork()
    if pid == 0:
        os._exit(0)
    pidfd = os.pidfd_open(pid)
    try:
        ended = poll()
        ended.register(pidfd, POLLIN)
        if not ended.poll(_TRIAL_FORK_S * 1000):
            os.kill(pid, SIGKILL)
    finally:
        os.close(pidfd)
        os.waitpid(pid, 0)
