"""Names of a package that are imported when they are first used (PEP 562)."""

from __future__ import annotations

from importlib import import_module

TYPE_CHECKING = False  # as in typing, see `agentmgr.bootstrap`
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any


def later(package: str, places: Mapping[str, str]) -> Callable[[str], Any]:
    """A `__getattr__` for the package. `places`: the submodule that defines each name."""

    def find(name: str) -> Any:
        if name not in places:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(f".{places[name]}", package), name)

    return find
