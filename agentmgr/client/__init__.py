"""For programs that talk to a manager or to an agent, rather than being one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .api import ManagerClient as ManagerClient
    from .session import AgentSession as AgentSession
    from .session import open_session as open_session

__all__ = ["AgentSession", "ManagerClient", "open_session"]

_WHERE = {"ManagerClient": "api", "AgentSession": "session", "open_session": "session"}


def __getattr__(name: str) -> Any:
    # Imported when first used: each brings libraries that the other has no need of.
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f".{_WHERE[name]}", __name__), name)
