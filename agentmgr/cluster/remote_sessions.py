"""The journals of services on nodes: read there, over their links."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, Protocol

import trio

from ..errors import StorageError
from ..journal import copies, sqlite_archive
from ..journal.archive import Found, SessionSummary
from ..journal.file_archive import Do, FileArchive, Options
from ..journal.journal import SessionSnapshot
from ..models.nodes import NodeState
from ..node.session_archives import SessionsRead, asks
from .node_handle import NodeHandle, NodeLost, OrderFailed

_ANSWER_S = 15.0  #: a disk may be slow


class Moves(Protocol):
    """Which journals have moved, and which do (`manager.session_moves`)."""

    def nodes_of(self, node_id: str) -> frozenset[str]: ...
    def is_moving(self, service_id: str, node_id: str) -> bool: ...
    async def settled(self, service_id: str, node_id: str) -> None: ...


class RemoteSessions:
    """`nodes`: all that are known, by `get` and in an iteration."""

    def __init__(
        self,
        nodes: Iterable[NodeHandle],
        get: Callable[[str], NodeHandle | None],
        moves: Moves | None = None,
    ) -> None:
        self._nodes, self._get, self._moves = nodes, get, moves

    def nodes_of(self, node_id: str) -> frozenset[str]:
        """Where sessions may be whose ids name that node; "" is the manager's own machine."""
        return frozenset({node_id}) if self._moves is None else self._moves.nodes_of(node_id)

    def is_moving(self, service_id: str, node_id: str) -> bool:
        """Whether the sessions of that service that are on that node are on their way to another one."""
        return self._moves is not None and self._moves.is_moving(service_id, node_id)

    async def settled(self, service_id: str, node_id: str) -> None:
        """Returns when they are not, or some seconds later. Raises `StorageError` then."""
        if self._moves is not None:
            with trio.move_on_after(_ANSWER_S) as patience:
                await self._moves.settled(service_id, node_id)
            if patience.cancelled_caught:
                where = f"node {self.name(node_id)}" if node_id else "the manager's machine"
                raise StorageError(f"its sessions are on their way from {where}: try again in a moment")

    def archives(self) -> list[NodeArchive]:
        """Of all nodes that are known."""
        return [NodeArchive(self, handle.node_id) for handle in self._nodes]

    def archive(self, node_id: str) -> NodeArchive:
        return NodeArchive(self, node_id)

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
        """What `do`, a function of `journal.sqlite_archive`, gives for the journals of these services (None:
        all that have one there), by service id; and why others cannot be read. Raises `StorageError`.
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

    def post(self, node_id: str, do: Callable[..., Any], service_id: str) -> None:
        """Has it done on the node, now or when that links again."""
        if (handle := self._get(node_id)) is not None:
            handle.post(asks(do, of={service_id: {}}))


class NodeArchive(FileArchive):
    """The journals of one node."""

    def __init__(self, nodes: RemoteSessions, node_id: str) -> None:
        self._nodes = nodes
        self.key = self.node_id = node_id

    @property
    def label(self) -> str:
        return f"node {self._nodes.name(self.key)}"

    async def ask(self, do: Do, of: Options, *args: object, **options: object) -> Found[Any]:
        values, unreadable = await self._nodes.read(self.key, do, *args, of=of, **options)
        return Found(values, unreadable)

    async def session(
        self, services: Collection[str], session_id: str
    ) -> Found[tuple[SessionSummary, SessionSnapshot] | None]:
        """Of all that the node has, so that the order names no services; there may be thousands."""
        values, unreadable = await self._nodes.read(self.key, sqlite_archive.session, session_id)
        return Found({it: one for it, one in values.items() if it in services}, unreadable)

    async def remove(self, service_id: str) -> None:
        self._nodes.post(self.key, copies.remove, service_id)
        await trio.lowlevel.checkpoint()
