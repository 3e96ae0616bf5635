"""The journals of services on nodes: read there, over their links."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import trio

from ..errors import StorageError
from ..models.nodes import NodeState
from ..node.session_archives import SessionsRead, asks
from .node_handle import NodeHandle, NodeLost, OrderFailed

_ANSWER_S = 15.0  #: a disk may be slow


class RemoteSessions:
    """`nodes`: all that are known, by `get` and in an iteration."""

    def __init__(self, nodes: Iterable[NodeHandle], get: Callable[[str], NodeHandle | None]) -> None:
        self._nodes, self._get = nodes, get

    def node_ids(self) -> list[str]:
        return [handle.node_id for handle in self._nodes]

    def name(self, node_id: str) -> str:
        handle = self._get(node_id)
        return node_id if handle is None else handle.name

    async def read(
        self,
        node_id: str,
        do: Callable[..., Any],
        *args: object,
        of: Mapping[str, Mapping[str, object]] | None = None,
        **options: object,
    ) -> tuple[dict[str, Any], Mapping[str, str]]:
        """What `do`, a function of `journal.archive`, gives for the journals of these services (None: all
        that have one there), by service id; and why others cannot be read. Raises `StorageError`.
        """
        handle = self._get(node_id)
        if handle is None:
            raise StorageError(f"node {node_id} was forgotten, and what it kept with it")
        if not handle.linked:
            why = "lost" if handle.state is NodeState.LOST else "silent"
            raise StorageError(f"node {handle.name} is {why}: what it keeps cannot be read now")
        try:
            with trio.fail_after(_ANSWER_S):
                answer = await handle.call(asks(do, *args, of=of, **options), SessionsRead)
        except (NodeLost, OrderFailed, trio.TooSlowError) as error:
            raise StorageError(f"node {handle.name} cannot read its journals: {error}") from error
        return answer.values(do), answer.unreadable

    def post(self, do: Callable[..., Any], service_id: str) -> None:
        """Has it done on each node, now or when that links again."""
        for handle in self._nodes:
            handle.post(asks(do, of={service_id: {}}))
