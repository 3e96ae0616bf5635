"""Finds the agent in a file or module. What goes wrong there is shown as the author wrote it."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any, TypeVar

import outcome
from attrs import frozen

from ..boundary import Failure, attempt, traceback_of
from ..errors import AgentFileNotFound, AgentLoadError
from ..models.host_config import Runtime
from . import adapters
from .imports import AuthorsSource, advice, authors_first, clashes

T = TypeVar("T")

logger = logging.getLogger("agentmgr.agent")

FACTORY_NAMES = ("create_agent", "agent", "root_agent")  # the last one is that of Google's ADK


@frozen
class LoadedFile:
    """An agent file, imported. `make` gives the agent, or an awaitable of it; each call a new one."""

    path: str
    make: Callable[[], Any]
    makes_new: bool  #: False: `make` gives the same object each time
    runtime: Runtime


def load(path: str) -> LoadedFile:
    """Imports `agent.py`, `agent.py:name` or `package.module:name`.

    Raises `AgentFileNotFound`, and `AgentLoadError` whose message ends with the author's own lines.
    """
    target, name = _split(path)
    module = _import(target)
    return guarded(lambda: _loaded(path, module, target, name), f"{target} cannot be used")


def _loaded(path: str, module: ModuleType, target: str, name: str | None) -> LoadedFile:
    runtime = getattr(module, "RUNTIME", Runtime.AUTO)
    try:
        runtime = Runtime(runtime)
    except ValueError:
        raise AgentLoadError(
            f'{target}: RUNTIME is {runtime!r}; it may be "trio", "asyncio" or "auto"'
        ) from None
    if runtime is Runtime.AUTO:
        runtime = _written_for(module)
    found = _find(module, target, name)
    if _is_factory(found, name):
        return LoadedFile(path, found, True, runtime)
    return LoadedFile(path, lambda: found, False, runtime)


def _written_for(module: ModuleType) -> Runtime:
    """The runtime of a file that does not say it: by what it imports; AUTO where that decides nothing."""

    def has_of(*packages: str) -> bool:
        return any(adapters.is_of(value, package) for value in vars(module).values() for package in packages)

    aio = has_of("agentmgr.client.aio")
    if has_of("trio") or (has_of("agentmgr.client") and not aio):
        return Runtime.TRIO
    if adapters.are_used_by(module) or has_of("asyncio") or aio:
        return Runtime.ASYNCIO
    return Runtime.AUTO


def author_traceback(error: BaseException) -> str:
    """The traceback from the author's first line on, without the frames of this package before it."""
    packages = (importlib.__file__, outcome.__file__)  # the latter between asyncio's loop and ours
    ahead = (str(Path(__file__).parents[1]), *(str(Path(p).parent) for p in packages), "<frozen importlib")

    def is_machinery(frame: TracebackType) -> bool:
        return frame.tb_frame.f_code.co_filename.startswith(ahead)

    return traceback_of(error, skip=is_machinery)


def _split(path: str) -> tuple[str, str | None]:
    target, colon, name = path.rpartition(":")
    # `C:\agent.py` and `dir:x/agent.py` have a colon that is no separator: a name is an identifier.
    if colon and target and all(part.isidentifier() for part in name.split(".")):
        return target, name
    return path, None


def _import(target: str) -> ModuleType:
    file = Path(target)
    dotted = all(part.isidentifier() for part in target.split("."))
    if dotted and not (target.endswith(".py") or file.is_file()):
        _make_way(None)
        return guarded(lambda: importlib.import_module(target), f"importing {target} failed")
    if file.is_dir():
        raise AgentFileNotFound(f"{file.absolute()} is a directory: name the agent file in it")
    if not file.is_file():
        raise AgentFileNotFound(f"Agent factory file not found: {file.absolute()}")
    file = file.resolve()
    # As with `python agent.py`: the file's neighbours can be imported, and pickle finds its classes.
    _make_way(file.parent)
    taken = file.stem in sys.modules or file.stem in sys.stdlib_module_names
    name = file.stem if file.stem.isidentifier() and not taken else "__agent__"
    source = AuthorsSource(name, str(file)) if file.suffix == ".py" else None
    spec = importlib.util.spec_from_file_location(name, file, loader=source)
    if spec is None or spec.loader is None:
        raise AgentLoadError(f"{file} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    loader = spec.loader
    guarded(lambda: loader.exec_module(module), f"importing {target} failed")
    return module


def _make_way(directory: Path | None) -> None:
    """From here on the author's modules are found first; says which of them hide others, or are hidden."""
    authors_first(directory)
    for clash in clashes():
        logger.warning("%s", clash.sentence)


def guarded(work: Callable[[], T], what: str) -> T:
    """What `work` makes of the author's code. Raises `AgentLoadError` for whatever comes out of that."""
    made = attempt(work)
    if not isinstance(made, Failure):
        return made
    if isinstance(made.error, AgentLoadError):
        raise made.error
    raise failed(what, made.error) from made.error


def failed(what: str, error: BaseException) -> AgentLoadError:
    """The error for something the author's code raised; its last lines are the author's traceback."""
    text = author_traceback(error)
    if about := advice(text):
        what = f"{what}; {about}"
    return AgentLoadError(f"{what}:\n{text}")


def _find(module: ModuleType, target: str, name: str | None) -> Any:
    if name is not None:
        found: Any = module
        for part in name.split("."):
            if not hasattr(found, part):
                raise AgentLoadError(f"{target} has no {name!r}; {_what_it_has(module)}")
            found = getattr(found, part)
        return found
    for candidate in FACTORY_NAMES:
        if hasattr(module, candidate):
            return getattr(module, candidate)
    raise AgentLoadError(
        f"{target} has no create_agent() and no variable `agent`; define one, "
        f"or name another factory as in {target}:NAME; {_what_it_has(module)}"
    )


def _what_it_has(module: ModuleType) -> str:
    names = [
        name
        for name, value in vars(module).items()
        if callable(value) and getattr(value, "__module__", None) == module.__name__
    ]
    return f"it defines {', '.join(names)}" if names else "it defines no function and no class"


def _is_factory(found: Any, name: str | None) -> bool:
    """`create_agent` is called for the agent; other names may be the agent itself, `async def f(message)`."""
    if name is None and getattr(found, "__name__", None) == "create_agent":
        return True
    if inspect.isclass(found):
        return True
    return inspect.isroutine(found) and not _wants_arguments(found)


def _wants_arguments(function: Callable[..., Any]) -> bool:
    return any(
        parameter.default is parameter.empty
        and parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
        for parameter in inspect.signature(function).parameters.values()
    )
