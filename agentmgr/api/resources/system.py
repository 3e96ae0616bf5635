"""The manager as a whole."""

from __future__ import annotations

from typing import Any

from ..operations import Answer, Call, Operations

api = Operations("system")
_root = Operations("system", base="")


@_root.add("GET", "/health", gives={200: dict[str, Any]})
async def health(call: Call) -> Answer:
    """Whether the manager is up; needs no token."""
    return Answer({"status": "healthy", "version": call.manager.get_info()["version"]})


@api.add("GET", "/info", gives={200: dict[str, Any]})
async def get_info(call: Call) -> Answer:
    """Version, uptime, database, listeners and limits."""
    return Answer(call.manager.get_info())


@api.add("GET", "/stats", gives={200: dict[str, Any]})
async def get_system_stats(call: Call) -> Answer:
    """Figures of the whole system."""
    return Answer(call.manager.get_system_stats())


api.table += _root.table
