"""Runs a module of ours in the Python of another environment, as the option `python` of a service names it.

`PYTHON other_python.py MODULE …` takes agentmgr from here, whatever that environment has of it, so that
manager and host are of one version; all else is that environment's. Where it lacks what a host needs, a
message says what to install there, and the exit code is 78 (EX_CONFIG): it can never start. `--check` in
place of MODULE runs nothing else, and prints `ok`.

The first lines run in Python 3.8 too, to say that it is too old.
"""

from __future__ import annotations

import os
import sys

OLDEST = (3, 11)
NEEDS = {
    "attrs": ("attrs", "24.2"),
    "cattrs": ("cattrs", "25.1"),
    "h11": ("h11", "0.14"),
    "outcome": ("outcome", "1.3"),
    "trio": ("trio", "0.30"),
    "trio-websocket": ("trio_websocket", "0.12.2"),
    "wsproto": ("wsproto", "1.2"),
}
"""What a host imports, besides this package and the Python library: distribution, module, oldest version."""
NEEDS_FOR_REDIS = {"anyio": ("anyio", "4.11"), "coredis": ("coredis", "6")}
"""The same, of a host that keeps its sessions in a Redis."""


def lacking() -> str:
    """What is missing here, and the command that installs it; empty where nothing is."""
    if sys.version_info < OLDEST:
        here, oldest = (".".join(map(str, version[:2])) for version in (sys.version_info, OLDEST))
        return "%s is Python %s; a hosted agent needs %s or newer" % (sys.executable, here, oldest)  # noqa: UP031
    needs = NEEDS | NEEDS_FOR_REDIS if os.environ.get("AGENTMGR_SESSIONS_URL") else NEEDS
    found = _versions(needs)
    lacks = [name for name in needs if name not in found]
    old = {
        name: version
        for name, version in found.items()
        if version and _numbers(version) < _numbers(needs[name][1])
    }
    if not lacks and not old:
        return ""
    from importlib.util import find_spec
    from shlex import join

    problems = [f"it lacks {', '.join(lacks)}"] if lacks else []
    problems += [f"its {name} {version} is older than {needs[name][1]}" for name, version in old.items()]
    pip = [sys.executable, "-m", "pip", "install"]
    if find_spec("pip") is None:  # as in an environment that uv has made
        pip = ["uv", "pip", "install", "--python", sys.executable]
    wanted = [f"{name}>={needs[name][1]}" for name in (*lacks, *old)]
    return (
        f"{sys.executable} cannot run a hosted agent: {'; '.join(problems)}; this installs what it needs:\n"
        + join([*pip, *wanted])
    )


def _versions(needs: dict[str, tuple[str, str]]) -> dict[str, str]:
    """By package: its version; empty if it says none, as a package in a directory of `PYTHONPATH`."""
    from importlib.util import find_spec

    found: dict[str, str] = {}
    for directory in sys.path:
        for name in _files(directory):
            # As importlib.metadata looks for them, which takes 50 ms to import.
            stem, ending = os.path.splitext(name)
            distribution, _, rest = stem.partition("-")
            distribution = distribution.lower().replace("_", "-")
            if ending in (".dist-info", ".egg-info") and distribution in needs:
                found.setdefault(distribution, rest.partition("-")[0])
    return {name: "" for name, (module, _) in needs.items() if find_spec(module)} | found


def _files(directory: str) -> list[str]:
    try:
        return os.listdir(directory)
    except OSError:  # it is a zip file, or is gone
        return []


def _numbers(version: str) -> list[int]:
    """The numbers of a version: 0.30.0rc1 is [0, 30, 0]."""
    from re import match

    return [int(digits[0]) if (digits := match(r"\d+", part)) else 0 for part in version.split(".")]


def _take_package() -> None:
    """Has `import agentmgr` give the package that this file is in."""
    from importlib.util import module_from_spec, spec_from_file_location

    directory = os.path.dirname(os.path.abspath(__file__))
    spec = spec_from_file_location(
        "agentmgr", os.path.join(directory, "__init__.py"), submodule_search_locations=[directory]
    )
    assert spec is not None
    assert spec.loader is not None
    sys.modules["agentmgr"] = package = module_from_spec(spec)
    spec.loader.exec_module(package)


def _main(word: str) -> None:
    if not getattr(sys.flags, "safe_path", False):
        del sys.path[0]  # this directory, whose files have names that others have too
    if sys.version_info >= OLDEST:
        _take_package()
        from agentmgr import bootstrap

        bootstrap.search_python_path()
    if problem := lacking():
        print(f"agentmgr: {problem}", file=sys.stderr)
        sys.exit(os.EX_CONFIG)
    if word == "--check":
        print("ok")
    else:
        bootstrap.run(word)


if __name__ == "__main__":
    _main(sys.argv.pop(1))
