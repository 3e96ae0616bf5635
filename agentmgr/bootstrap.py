"""Keeps modules of the user's from being imported in place of those that our processes are made of.

Python looks for modules in the current directory (`python -m`) and in `PYTHONPATH` before its own library: a
`secrets.py` or `trio.py` there would break our process, or run in it. So each process of ours starts as
`python -P bootstrap.py MODULE …`, with `PYTHONPATH` set aside; its entries are searched last, where agentmgr
itself may be found. A process that hosts an agent puts the user's directories first just before it loads it.

Another environment's Python starts with `other_python.py` instead. This file runs before anything else is
imported: it needs `os` and `sys` alone, and nothing of this package.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False  # as in typing, which is not imported yet
if TYPE_CHECKING:
    from collections.abc import Mapping

ASIDE = "AGENTMGR_PYTHONPATH"  #: where `environment` puts it


def words(module: str, python: str | None = None) -> list[str]:
    """The command line that runs the `main()` of `MODULE.__main__`; its arguments are to follow.

    `python`: another environment's, which may lack what the module needs, or `-P`.
    """
    here = os.path.abspath(__file__)
    if python is not None:
        return [python, os.path.join(os.path.dirname(here), "other_python.py"), module]
    return [sys.executable, "-P", here, module]


def environment(variables: Mapping[str, str]) -> dict[str, str]:
    """The environment for such a process; it puts `PYTHONPATH` back for what it starts itself."""
    given = dict(variables)
    given.pop(ASIDE, None)
    if theirs := given.pop("PYTHONPATH", ""):
        given[ASIDE] = theirs
    return given


def python_path() -> list[str]:
    """The directories of `PYTHONPATH`; an empty word is the current directory."""
    text = "" if sys.flags.ignore_environment else os.environ.get("PYTHONPATH", "")
    return [_absolute(entry) for entry in text.split(os.pathsep)] if text else []


def search_last(directories: list[str]) -> None:
    sys.path[:] = [*(entry for entry in sys.path if entry not in directories), *directories]


def search_first(directories: list[str]) -> None:
    sys.path[:] = [*directories, *(entry for entry in sys.path if entry not in directories)]


def drop_current_directory() -> None:
    """Takes back what `python -m` has put first."""
    if not sys.flags.safe_path:
        del sys.path[0]
    _find_clone()


def _find_clone() -> None:
    """Lets Python find a clone of agentmgr that was not installed, before one that was."""
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    if not _is_installed(root):
        others = [entry for entry in sys.path if entry != root]
        at = next((number for number, entry in enumerate(others) if _is_installed(entry)), len(others))
        sys.path[:] = [*others[:at], root, *others[at:]]


def _is_installed(directory: str) -> bool:
    return os.path.basename(directory) in ("site-packages", "dist-packages")


def _absolute(entry: str) -> str:
    try:
        return os.path.abspath(entry)
    except FileNotFoundError:  # the current directory was removed
        return entry


def search_python_path() -> None:
    """Puts `PYTHONPATH` back, and searches its directories last."""
    theirs = os.environ.pop(ASIDE, None)
    if theirs is not None:
        os.environ["PYTHONPATH"] = theirs
    search_last(python_path())


def run(module: str) -> None:
    import gc
    from importlib import import_module

    gc.disable()  # what is imported stays: to look for garbage in it takes 9 % of a host's or worker's start
    main = import_module(f"{module}.__main__").main
    gc.enable()
    sys.exit(main())


if __name__ == "__main__":
    _find_clone()
    search_python_path()
    run(sys.argv.pop(1))
