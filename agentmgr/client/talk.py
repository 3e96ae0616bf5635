"""What a program says in a session, and hears: the same under trio (`session`) and asyncio (`aio`)."""

from __future__ import annotations

import secrets
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping
from inspect import isawaitable
from typing import Any

from .. import protocol
from ..errors import TurnFailed
from .events import AgentEvent, failure_message

Confirm = Callable[[AgentEvent], bool | Awaitable[bool]]


class Talk(ABC):
    """A session: its messages, questions and events."""

    async def send(self, content: Any, *, metadata: Mapping[str, Any] | None = None) -> Turn:
        """Sends a message, text or an object, and returns the turn that will answer it."""
        step_id = f"msg_{secrets.token_hex(8)}"
        said = {"content": content, "metadata": metadata or {}}
        await self._post(protocol.MESSAGE, key=step_id, step_id=step_id, **said)
        return Turn(self, step_id)

    async def ask(self, content: Any, *, confirm: Confirm | None = None) -> Any:
        """The final answer to a message. Questions go to `confirm`; without one they are answered no.

        Raises `TurnFailed` with the agent's reason, and what `receive` raises.
        """
        turn = await self.send(content)
        return await turn.answer(confirm=confirm)

    async def respond(self, question: AgentEvent, approved: bool, **content: Any) -> None:
        """Answers an `agent.user_confirm`."""
        step_id, answer = question.step_id or "", {**content, "confirmed": approved}
        await self._post(protocol.RESPONSE, key=step_id, step_id=step_id, content=answer)

    async def request_state(self) -> None:
        """Asks for the session's state; it comes as an `agent.state_exported`."""
        await self._post(protocol.REQUEST_STATE)

    @abstractmethod
    async def receive(self) -> AgentEvent:
        """The next event, of whatever turn or none.

        Raises `AgentUnreachable` when no connection could be made for `reconnect_for_s`, and `SessionLost`.
        """

    @abstractmethod
    async def _post(self, event: str, *, key: str = "", **fields: Any) -> None:
        """Sends an event; one with a `key` again on each new connection, until the agent has it."""


class Turn:
    """What the agent says to one message: an async iterator of events, up to the one that ends the turn.

    Turns are answered in the order in which their messages were sent; take them in in that order.
    """

    def __init__(self, session: Talk, step_id: str) -> None:
        self._session = session
        self._over = False
        self.step_id = step_id

    def __aiter__(self) -> Turn:
        return self

    async def __anext__(self) -> AgentEvent:
        if self._over:
            raise StopAsyncIteration
        event = await self._session.receive()
        if event.event in protocol.TURN_ENDS or event.event == protocol.ERROR:
            self._over = event.step_id == self.step_id
        return event

    async def cancel(self) -> None:
        """Asks the agent to stop; the turn ends with `agent.interrupted`."""
        await self._session._post(protocol.CANCEL, key=f"cancel_{self.step_id}", step_id=self.step_id)

    async def answer(self, *, confirm: Confirm | None = None) -> Any:
        """The final answer. Raises `TurnFailed` with the reason when there is none."""
        last = AgentEvent("")
        async for last in self:
            if last.event == protocol.USER_CONFIRM:
                approved = confirm(last) if confirm is not None else False
                await self._session.respond(last, await approved if isawaitable(approved) else approved)
        if last.event == protocol.FINAL_ANSWER:
            return last.content
        raise TurnFailed(failure_message(last))
