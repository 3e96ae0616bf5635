"""What an agent's author is handed of a session, apart from what the host does with it (`session`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from .events import Event
from .message import Client, Decision


class Session(Protocol):
    """A client's conversation: `async def agent(message, session: Session)`. In a plain function, which runs
    in a thread, `emit` and `confirm` have the same names and are called without `await`.
    """

    id: str
    """Stays the same, whatever connection and instance; who knows it may take up an anonymous session."""
    name: str | None
    state: dict[str, Any]
    """The author's own, kept with the session as far as JSON can say it."""
    history: list[dict[str, Any]]
    """The turns before this one: `role` and `content`."""
    client: Client
    restored: bool
    """It was in memory before, here or in another process, and came back."""

    async def emit(
        self,
        event: str | Event | Mapping[str, Any],
        content: Any = "",
        *,
        metadata: Mapping[str, Any] | None = None,
        step_id: str | None = None,
    ) -> None:
        """Sends one event to the client, now or when it comes back. Raises `TypeError` or `ValueError` for
        what JSON cannot say.
        """

    async def confirm(
        self, tool: str, args: Any = None, *, message: str = "", timeout_s: float | None = None
    ) -> Decision:
        """Asks the person at the other end. No answer in time means no."""
