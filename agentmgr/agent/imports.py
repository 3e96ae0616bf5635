"""Where the author's modules are found, and which of their names clash with modules that others import.

The host imports what it needs before `authors_first`, from the Python library and its own packages. After
that, the author's files come first, as when he runs `python agent.py`.
"""

from __future__ import annotations

import encodings.idna  # noqa: F401 - Python imports it to resolve names, and `stringprep`
import os
import re
import site
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib.abc import PathEntryFinder
from importlib.machinery import (
    BYTECODE_SUFFIXES,
    EXTENSION_SUFFIXES,
    SOURCE_SUFFIXES,
    ExtensionFileLoader,
    FileFinder,
    SourceFileLoader,
    SourcelessFileLoader,
)
from pathlib import Path
from typing import Any

from attrs import frozen

from .. import bootstrap

Finder = Callable[[str], PathEntryFinder]

_hosts_path: list[str] = []  #: `sys.path` as it was before the author's directories
_finders: list[Finder] = []  #: ours, of the author's directories

_JUST_SAVED_S = 2.0  # what is kept of a time of modification is its second


class AuthorsSource(SourceFileLoader):
    """Reads and writes no bytecode of a file that was saved just now.

    Python takes bytecode for that of a source which has as many bytes and was saved in the same second: the
    new code of a file that is saved twice in one second, and started in between, would never run.
    """

    def path_stats(self, path: Any) -> Mapping[str, Any]:
        """Raises OSError where there is to be no bytecode, as `importlib.abc.SourceLoader` has it."""
        stats = super().path_stats(path)
        if time.time() - stats["mtime"] < _JUST_SAVED_S:
            raise OSError(f"{path} was saved just now")
        return stats


def authors_first(directory: Path | None) -> None:
    """Searches `directory`, the current directory and `PYTHONPATH` first, in this order."""
    if not _hosts_path:
        _hosts_path[:] = sys.path
    directories = [] if directory is None else [str(directory)]
    with suppress(FileNotFoundError):  # it was removed
        directories.append(os.getcwd())
    directories = list(dict.fromkeys([*directories, *bootstrap.python_path()]))
    bootstrap.search_first(directories)
    if _finders:
        sys.path_hooks.remove(_finders.pop())
    _finders.append(_finder_in(directories))
    sys.path_hooks.insert(0, _finders[0])
    if "sitecustomize" not in sys.modules:
        # One in PYTHONPATH, as tracing tools put it there: Python did not find it when it started.
        site.execsitecustomize()


def _finder_in(directories: Sequence[str]) -> Finder:
    """As Python's own, for these directories and what is below them."""
    of = FileFinder.path_hook(
        (ExtensionFileLoader, EXTENSION_SUFFIXES),
        (AuthorsSource, SOURCE_SUFFIXES),
        (SourcelessFileLoader, BYTECODE_SUFFIXES),
    )

    def finder(path: str) -> PathEntryFinder:
        if not any(path == each or path.startswith(each + os.sep) for each in directories):
            raise ImportError(f"{path} is no directory of the author's", path=path)
        return of(path)

    for known in [path for path in sys.path_importer_cache if path in directories]:
        del sys.path_importer_cache[known]
    return finder


@contextmanager
def hosts_first() -> Iterator[None]:
    """Inside, the host imports what it needs only now."""
    path = sys.path[:]
    sys.path[:] = _hosts_path or path
    try:
        yield
    finally:
        sys.path[:] = path


@frozen
class Clash:
    """A file of the author's that has the name of another module."""

    name: str
    sentence: str


def clashes() -> list[Clash]:
    """Those in the directories that are searched before the Python library."""
    library = os.path.dirname(os.__file__)
    found: dict[str, Clash] = {}
    for directory in sys.path[: sys.path.index(library) if library in sys.path else 0]:
        for name, path in _modules(directory):
            standard = name in sys.stdlib_module_names
            what = "a module of the standard library" if standard else "a module that agentmgr uses"
            imported = getattr(sys.modules.get(name), "__file__", None)
            if imported not in (None, path) or name in sys.builtin_module_names:
                which = f"which `import {name}` gives"
            elif standard:
                which = "and is imported instead of it"
            else:
                continue
            found.setdefault(name, Clash(name, f"{path} has the name of {what}, {which}: rename the file"))
    return list(found.values())


def advice(text: str) -> str:
    """What to say of the clashes whose names an error's text has; empty where there is none."""
    about = [clash.sentence for clash in clashes() if re.search(rf"\b{re.escape(clash.name)}\b", text)]
    return "; ".join(about)


def _modules(directory: str) -> Iterator[tuple[str, str]]:
    try:
        entries = list(os.scandir(directory))
    except OSError:
        return
    for entry in entries:
        name, dot, ending = entry.name.partition(".")
        if ending == "py" and dot:
            yield name, entry.path
        elif not dot and os.path.isfile(package := os.path.join(entry.path, "__init__.py")):
            if name == "agentmgr" and os.path.isfile(os.path.join(entry.path, "bootstrap.py")):
                continue  # another copy of agentmgr, as in a clone of it, is no file of an author's
            yield name, package
