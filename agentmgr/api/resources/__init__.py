"""The resources, one file each; together they are the table of operations."""

from __future__ import annotations

from ..operations import Operation
from . import (
    connections,
    console,
    control,
    docs,
    events,
    history,
    logs,
    nodes,
    routing,
    services,
    sessions,
    system,
    tokens,
)

_ALL = (
    system,
    services,
    history,
    logs,
    sessions,
    connections,
    routing,
    events,
    nodes,
    tokens,
    console,
    docs,
    control,
)


def operations(*, control: bool) -> tuple[Operation, ...]:
    """Every operation that a listener of that kind serves."""
    return tuple(
        operation for part in _ALL for operation in part.api.table if control or not operation.control_only
    )
