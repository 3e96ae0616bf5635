"""Agents of known frameworks, found by the object's type, importing nothing its author has not imported.

Each module here turns such an object into one with `on_message`, an async generator of strings and
events. All of these frameworks are at home in asyncio, except smolagents, which blocks. What they call thread
or session has the id of ours, which stays the same.

A framework gets all that a client says: the text, `message.attachments`, `message.instructions` (beside those
of the agent's author), and the history that a session begins with. What it cannot take is left out, and the
log says so.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from ... import jsontext
from ..events import usage
from ..imports import hosts_first
from ..message import Message

if TYPE_CHECKING:
    from ..session import Session

logger = logging.getLogger("agentmgr.agent")

_MODULES = {
    "langchain_core": "langchain",  # LangGraph's graphs are its Runnables too
    "pydantic_ai": "pydantic_ai",
    "agents": "openai_agents",
    "agno": "agno",
    "google.adk": "google_adk",
    "strands": "strands",
    "smolagents": "smolagents",
    "crewai": "crewai",
    "workflows": "llama_index",  # LlamaIndex's agents are workflows
    "haystack": "haystack",
    "semantic_kernel": "semantic_kernel",
    "agent_framework": "agent_framework",
}
_SHOWN_BY = {"agents": "Runner", "workflows": "Workflow", "haystack": "Pipeline"}
"""What such a package has: others may have one of that name too."""


def find(subject: Any) -> Callable[[Any], Any] | None:
    """What adapts this object; None for one of no framework that is known here."""
    for kind in type(subject).__mro__:
        for package, name in _MODULES.items():
            if is_of(kind, package):
                with hosts_first():
                    module = import_module(f"{__name__}.{name}")
                if module.fits(subject):
                    adapter: Callable[[Any], Any] = module.Adapter
                    return adapter
    return None


def is_of(thing: Any, package: str) -> bool:
    """Whether a module, a class or a function is the package's, by its name."""
    name = thing.__name__ if isinstance(thing, ModuleType) else getattr(thing, "__module__", None)
    return isinstance(name, str) and f"{name}.".startswith(f"{package}.")


def are_used_by(file: ModuleType) -> bool:
    """Whether an agent file has imported one of these frameworks, or something of one."""
    packages = [p for p in (*_MODULES, "llama_index") if _is_it(p)]
    return any(is_of(value, package) for value in vars(file).values() for package in packages)


def _is_it(package: str) -> bool:
    return package not in _SHOWN_BY or hasattr(sys.modules.get(package), _SHOWN_BY[package])


def said_before(session: Session) -> list[tuple[Message, str]]:
    """The session's history, for a framework that does not know it: messages, and who said each."""
    said = [(Message(entry["content"], entry), entry["role"]) for entry in session.history]
    return [(message, role) for message, role in said if message or message.attachments]


@cache
def leave_out(what: str, why: str) -> None:
    """Says so in the log, once for each."""
    logger.warning("a client sent %s, which the agent does not get: %s", what, why)


def plain(value: Any) -> Any:
    """The value itself where JSON can say it; else with `str` for what it cannot, as `"NaN"`."""
    return json.loads(json.dumps(value, default=_shown), parse_constant=str)


async def say_usage(session: Session, input_tokens: Any, output_tokens: Any, model: Any) -> None:
    """What a framework has counted, where it has."""
    read, written = (n if isinstance(n, int) else 0 for n in (input_tokens, output_tokens))
    if read or written:
        await session.emit(usage(read, written, model if isinstance(model, str) else ""))


def _shown(value: Any) -> Any:
    dump = getattr(value, "model_dump", None)  # pydantic, which they all use
    return dump(mode="json") if callable(dump) else str(value)


def arguments(value: Any) -> Any:
    """A tool's arguments, which a model gives as JSON text."""
    if isinstance(value, str):
        try:
            return jsontext.parse(value)
        except (ValueError, RecursionError):  # not JSON, or nested too deep
            return value
    return plain(value)
