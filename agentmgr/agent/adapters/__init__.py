"""Agents of known frameworks, found by the object's type, importing nothing its author has not imported.

Each module here turns such an object into one with `on_message`, an async generator of strings and
events. All of these frameworks are at home in asyncio.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

from ..imports import hosts_first

_MODULES = {
    "langchain_core": "langchain",  # LangGraph's graphs are its Runnables too
    "pydantic_ai": "pydantic_ai",
    "agents": "openai_agents",
    "agno": "agno",
}


def find(subject: Any) -> Callable[[Any], Any] | None:
    """What adapts this object; None for one of no framework that is known here."""
    for kind in type(subject).__mro__:
        name = _MODULES.get(kind.__module__.partition(".")[0])
        if name is not None:
            with hosts_first():
                module = import_module(f"{__name__}.{name}")
            if module.fits(subject):
                adapter: Callable[[Any], Any] = module.Adapter
                return adapter
    return None
