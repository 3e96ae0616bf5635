"""Saves of files: which count, and when one follows another so closely that they are one."""

from __future__ import annotations

import os
import re
import stat
import sys
import threading
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from importlib.util import find_spec
from itertools import filterfalse
from pathlib import Path
from typing import TypeVar

import trio
from attrs import frozen

from ..errors import FieldProblem, InvalidRequest

Key = TypeVar("Key", bound=Hashable)

QUIET_S = 0.3  #: editors and checkouts write several files, each more than once
LONGEST_S = 3.0  #: saves that go on so long are taken as one even so
_NAMED = 10  #: files of a save, where there are more
_LOOK_S = 0.5  #: between looks at whether a watched place is another directory now

_IGNORED_DIRECTORIES = {
    *(".git", ".hg", ".svn", ".idea", ".venv", ".tox", ".nox", "node_modules", "site-packages"),
    *("__pycache__", ".mypy_cache", ".pytest_cache", ".ruff_cache", ".hypothesis"),
}
_TEMPORARY = re.compile(
    r".*(~|\.py[cod]|\.sw[a-z]|\.tmp|\.bak|\.orig|___jb_(tmp|old)___)"
    r"|\.#.*|#.*#|4913|\.DS_Store|flycheck_.*|\.goutputstream-.*|\.~lock\..*"
)


def require_watchfiles() -> None:
    """Raises `InvalidRequest` where the package that sees changes is not installed."""
    if find_spec("watchfiles") is None:
        known = f"needs a package: `{sys.executable} -m pip install 'agentmgr-trio[reload]'`"
        raise InvalidRequest(f"watching files {known}", fields=[FieldProblem("watch", known)])


@frozen
class Watched:
    """A file, or a directory with all that is below it."""

    path: str
    suffix: str = ""  #: only files whose names end so

    def covers(self, path: str) -> bool:
        if path == self.path:
            return True
        if not path.startswith(self.path.rstrip("/") + "/") or not path.endswith(self.suffix):
            return False
        *directories, name = path[len(self.path) :].strip("/").split("/")
        return _IGNORED_DIRECTORIES.isdisjoint(directories) and not _TEMPORARY.fullmatch(name)

    def newest(self, ignored: Callable[[str], bool]) -> tuple[float, str]:
        """When a file of it was last changed, in seconds since 1970, and which; 0: there is none."""
        if not os.path.isdir(self.path):
            return _changed_at(self.path), self.path
        found = [(0.0, self.path)]
        for directory, names, files in os.walk(self.path):
            names[:] = [name for name in names if name not in _IGNORED_DIRECTORIES]
            paths = (os.path.join(directory, name) for name in files)
            found += [(_changed_at(path), path) for path in paths if self.covers(path) and not ignored(path)]
        return max(found)


def _changed_at(path: str) -> float:
    try:
        return os.stat(path).st_mtime
    except OSError:
        return 0.0


async def watch(
    places: Mapping[Key, Sequence[Watched]],
    saved: Callable[[Key, str], None],
    loaded_at: Callable[[Key], float | None],
    *,
    ignored: Sequence[Path] = (),
) -> None:
    """Calls `saved` with the key and the file for each change that counts, until cancelled.

    A file that is newer than `loaded_at` (seconds since 1970) when the watch begins counts as well.
    `ignored`: files, and directories with all that is below them, with no link in their names.

    Raises `OSError`, as where the system has no watches left.
    """
    token = trio.lowlevel.current_trio_token()
    stop = threading.Event()

    def is_ignored(path: str) -> bool:
        real = os.path.realpath(path)
        return any(real == str(own) or real.startswith(f"{own}/") for own in ignored)

    def changed(saves: Iterable[tuple[Key, str]]) -> None:
        if not stop.is_set():
            for key, path in saves:
                saved(key, path)

    def begun(newest: Mapping[Key, tuple[float, str]]) -> None:
        for key, (at, path) in newest.items():
            if not stop.is_set() and (since := loaded_at(key)) is not None and at > since:
                saved(key, path)

    def report(paths: set[str]) -> None:
        """In the thread that looks: a checkout may change thousands of files."""
        saves: list[tuple[Key, str]] = []
        for path in paths:
            keys = [key for key, all_ in places.items() if any(one.covers(path) for one in all_)]
            if keys and not is_ignored(path):
                saves += ((key, path) for key in keys)
        token.run_sync_soon(changed, saves)

    def begin() -> None:
        newest = {key: max(one.newest(is_ignored) for one in all_) for key, all_ in places.items() if all_}
        token.run_sync_soon(begun, newest)

    roots = {one.path for all_ in places.values() for one in all_}
    # A file that is saved is often a new one that is renamed: only its directory knows.
    beside = set(map(os.path.dirname, filterfalse(os.path.isdir, roots)))
    limiter = trio.CapacityLimiter(2)  # not the one of all threads: these last

    async def look(paths: set[str], *, recursive: bool) -> None:
        while paths:
            if any(map(os.path.isdir, paths)):
                await trio.to_thread.run_sync(
                    _look, paths, recursive, stop, begin, report, abandon_on_cancel=True, limiter=limiter
                )
            else:
                await trio.sleep(_LOOK_S)

    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(look, roots, recursive=True))
            nursery.start_soon(partial(look, beside, recursive=False))
    finally:
        stop.set()


def _look(
    roots: set[str],
    recursive: bool,
    stop: threading.Event,
    begin: Callable[[], None],
    report: Callable[[set[str]], None],
) -> None:
    """Watches those roots that are directories. Returns when one is another directory than before, or has
    become one: links are turned, directories made anew.
    """
    from watchfiles import watch as changes

    identities = {root: _identity(root) for root in roots}
    there = [root for root, identity in identities.items() if identity is not None]
    if not there:
        return
    begun = False
    for found in changes(
        *there,
        watch_filter=None,
        debounce=200,
        stop_event=stop,
        rust_timeout=int(_LOOK_S * 1000),
        yield_on_timeout=True,
        raise_interrupt=False,
        recursive=recursive,
        ignore_permission_denied=True,
    ):
        if not begun:  # from here on nothing is missed
            begun = True
            begin()
        if found:
            report({path for _, path in found})
        others = {root for root, identity in identities.items() if _identity(root) != identity}
        if others:
            report(others)
            return


def _identity(path: str) -> tuple[int, int] | None:
    """Of a directory; None where there is none."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return (found.st_dev, found.st_ino) if stat.S_ISDIR(found.st_mode) else None


def forget_bytecode(paths: Iterable[str]) -> None:
    """Removes what Python has compiled of those sources.

    It would be taken for that of the new source if both have as many bytes and were saved in one second.
    """
    modules: dict[str, set[str]] = {}  # by directory
    for directory, name in map(os.path.split, paths):
        if name.endswith(".py"):
            modules.setdefault(directory, set()).add(name.removesuffix(".py"))
    for directory, names in modules.items():
        compiled = os.path.join(directory, "__pycache__")
        with suppress(OSError):
            for file in os.listdir(compiled):
                if file.endswith(".pyc") and file.partition(".")[0] in names:
                    os.unlink(os.path.join(compiled, file))


def named(files: Sequence[str]) -> str:
    """Some saved files, for people: where all are gone, those; else not what an editor wrote for a moment."""
    left = [file for file in files if os.path.exists(file)] or files
    names = list(dict.fromkeys(map(os.path.basename, left)))
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


class Saves:
    """Those of one program that its process does not know yet."""

    def __init__(self) -> None:
        self._paths: set[str] = set()
        self._another = trio.Event()

    def __bool__(self) -> bool:
        return bool(self._paths)

    def add(self, path: str) -> None:
        self._paths.add(path)
        self._another.set()

    async def settled(self) -> list[str]:
        """The files, once there was a save, and none for a moment."""
        await self._another.wait()
        with trio.move_on_after(LONGEST_S):
            while self._another.is_set():
                self._another = trio.Event()
                with trio.move_on_after(QUIET_S):
                    await self._another.wait()
        paths, self._paths, self._another = sorted(self._paths), set(), trio.Event()
        forget_bytecode(paths)
        return paths
