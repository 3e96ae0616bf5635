"""Whether an author's functions take what the host calls them with; asked at load."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from ..errors import AgentLoadError

_CALLS = {
    "serve": ("websocket",),
    "on_message": ("session", "message"),
    "on_session_start": ("session",),
    "on_session_end": ("session",),
    "export_memory": ("session",),
    "import_memory": ("session", "text"),
    "check_health": (),
}
"""What each method of an author's object is called with, in this order."""


def check_methods(subject: Any) -> None:
    """Raises `AgentLoadError` for a method that takes something else."""
    for name, arguments in _CALLS.items():
        method = getattr(subject, name, None)
        if callable(method) and not takes(method, *arguments):
            raise _refused(f"{type(subject).__name__}.{name}", name, method)
    method = getattr(subject, "on_message", None)
    if callable(method) and [p.name for p in positional(method)[:2]] == ["message", "session"]:
        raise _refused(f"{type(subject).__name__}.on_message", "on_message", method)


def _refused(what: str, name: str, method: Callable[..., Any]) -> AgentLoadError:
    called = f"{name}({', '.join(_CALLS[name])})"
    written = f"{name}({', '.join(('self', *_CALLS[name]))})"
    return AgentLoadError(f"{what}{inspect.signature(method)} is called as {called}: write it as {written}")


def takes(function: Callable[..., Any], *arguments: str) -> bool:
    """Whether it can be called with these, in this order."""
    try:
        inspect.signature(function).bind(*arguments)
    except TypeError:
        return False
    except ValueError:  # written in C, and does not say
        return True
    return True


def positional(function: Callable[..., Any]) -> list[inspect.Parameter]:
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError:  # as above
        return []
    return [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
