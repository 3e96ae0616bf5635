"""One person's conversation with an agent: what they type goes to it, what it says is shown."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial

import trio

from .. import protocol
from ..client.events import AgentEvent, failure_message
from ..client.session import AgentSession
from ..core.plain_text import AGAIN, yes_or_no
from ..errors import AgentManagerError, AgentUnreachable, SessionLost, TurnFailed
from ..models.sessions import SHOWN_OF_AN_ID
from ..protocol import NoticeCode
from .out import note, say
from .screen import Screen, question_text
from .terminal import InputLines

Interrupts = AsyncIterator[int]

RECONNECT_FOR_S = 60.0  #: then a new session is begun; an agent with a large framework takes long to start
REPLAY_S = (
    10.0  #: before the first prompt, so long at most, comes what was said in a session that is taken up
)


class Talk:
    """One person's conversation with an agent, over one session or, after losses, several."""

    def __init__(
        self, begin: Callable[..., AbstractAsyncContextManager[AgentSession]], screen: Screen, *, yes: bool
    ) -> None:
        self._begin = begin
        self._screen = screen
        self._yes = yes
        self._lines = InputLines()
        self._open: dict[str, AgentEvent] = {}  #: questions that wait for an answer, by their step_id
        self._question = trio.CancelScope()
        self._seen, self._replay_to = 1, 0  #: numbers of events; the first one is not for us
        self._pending: str | None = None  #: sent, and not heard of yet
        self.session_id: str | None = None  #: in which a person at a terminal has said something last

    async def once(self, session: AgentSession, text: str, interrupts: Interrupts) -> None:
        """Prints the final answer to one message. Raises `TurnFailed`."""
        last = await self._turn(session, text, interrupts)
        if last.event != protocol.FINAL_ANSWER:
            raise TurnFailed(failure_message(last))
        self._screen.answer(last.content)

    async def through(
        self,
        locate: Callable[[], Awaitable[str]],
        session_id: str | None,
        interrupts: Interrupts,
    ) -> None:
        """Message after message, until the input ends or Ctrl-C comes at the prompt.

        Where a session does not outlive its agent, a new one begins. What the old one may not have taken is
        sent again, once: it could be what brought the agent down.
        """
        text: str | None = None
        again = False
        while True:
            established = False
            where = await locate()  # each time: without a gateway, a restarted agent answers elsewhere
            try:
                async with self._begin(
                    where,
                    session_id=session_id,
                    reconnect_for_s=RECONNECT_FOR_S,
                    on_disconnect=self._cut_off,
                    locate=locate,
                ) as session:
                    established = True
                    if self._lines.interactive:
                        note(f"connected to {where}, session {(session.session_id or '')[:SHOWN_OF_AN_ID]}")
                    if session_id is not None and not await self._catch_up(session, interrupts):
                        return
                    if text is None:
                        text = await self._message(session, interrupts)
                    while text is not None:
                        self.session_id = session.session_id if self._lines.interactive else None
                        await self._turn(session, text, interrupts)
                        again = False
                        text = await self._message(session, interrupts)
                return
            except (SessionLost, AgentUnreachable) as error:
                if not established:
                    raise
                happened = error.message
            session_id = None
            text, self._pending = self._pending, None
            if text is not None and not again:
                note(f"{happened}; your line goes to a new session")
                again = True
                continue
            # Not before there is something to say: the agent may have ended it because no line came.
            note(f"{happened}; your next line begins a new session")
            again = False
            if (text := await self._message(None, interrupts)) is None:
                return

    def _cut_off(self) -> None:
        if self._lines.interactive:
            say("\nthe connection is lost; trying to make it again", lines=True, error=True)

    async def _message(self, session: AgentSession | None, interrupts: Interrupts) -> str | None:
        """What the person says next; None when that is nothing more."""
        while (text := await self._read("you> ", session, interrupts)) is not None:
            while text.endswith("\\"):
                more = await self._read("...> ", session, interrupts)
                text = f"{text[:-1]}\n{more or ''}"
            if text.strip():
                break
        return text

    async def _turn(self, session: AgentSession, text: str, interrupts: Interrupts) -> AgentEvent:
        self._pending = text
        turn = await session.send(text)
        last = AgentEvent("")

        async def stop() -> None:
            self._open.clear()
            self._question.cancel()
            await turn.cancel()

        async with _on_interrupt(interrupts, stop):
            async for last in turn:
                self._take_in(last)
                while self._open:
                    last = await self._ask(session, turn) or last
        return last

    def _take_in(self, event: AgentEvent) -> None:
        if event.event != protocol.NOTICE:
            self._pending = None
        self._screen.show(event)
        self._seen = event.seq or self._seen
        if event.event == protocol.USER_CONFIRM:
            self._open[event.step_id or ""] = event
        elif event.event in protocol.TURN_ENDS:
            self._open.clear()
        elif event.code == NoticeCode.ANSWERED:
            self._open.pop(event.step_id or "", None)
        elif event.code in (NoticeCode.RESUMED, NoticeCode.GAP):
            self._replay_to = event.content.get("last_seq", self._replay_to)
            self._seen = event.content.get("missing_to", self._seen)

    async def _ask(
        self, session: AgentSession, events: AsyncIterator[AgentEvent], *, of_another: bool = False
    ) -> AgentEvent | None:
        """Puts the oldest open question to the person, until it is answered, here or by another client.

        What the agent says meanwhile is shown at once; returns the last of it. Only a question that is
        `of_another` client's turn may still be open then: the person leaves it.
        """
        step_id, question = next(iter(self._open.items()))
        last: AgentEvent | None = None
        answered = False

        async def listen() -> None:
            nonlocal last
            async for last in events:
                self._take_in(last)
                if step_id not in self._open:
                    self._question.cancel()

        with trio.CancelScope() as self._question:
            async with _meanwhile(listen):
                approved = await self._decide(question, of_another=of_another)
                if approved is not None:
                    await session.respond(question, approved)
                    answered = True
                    self._open.pop(step_id, None)
        if not answered and last is not None and last.code == NoticeCode.ANSWERED:
            self._lines.forget_unfinished()
            note(f"this question is closed: {last.content.get('message')}")
        return last

    async def _ask_for_another(self, session: AgentSession) -> bool:
        """The same for a turn that was not begun here, which is then followed to its end.

        False: the person leaves.
        """
        while self._open:
            step_id = next(iter(self._open))
            last = await self._ask(session, _events(session), of_another=True)
            if step_id in self._open:
                return False
            while not self._open and (last is None or last.event not in protocol.TURN_ENDS):
                last = await session.receive()
                self._take_in(last)
        return True

    async def _catch_up(self, session: AgentSession, interrupts: Interrupts) -> bool:
        """Shows what was said in a session that is taken up, and asks what it still asks.

        False: the person leaves.
        """
        stays = False
        with trio.CancelScope() as scope:
            async with _on_interrupt(interrupts, partial(_cancel, scope)):
                with trio.move_on_after(REPLAY_S):
                    while not self._replay_to or self._seen < self._replay_to:
                        self._take_in(await session.receive())
                stays = await self._ask_for_another(session)
        return stays

    async def _decide(self, question: AgentEvent, *, of_another: bool) -> bool | None:
        """The person's answer. An empty line, and the end of the input, mean no to a question of their own
        turn. One of another client's turn may come while they type: then the first is asked again, and the
        second is None.
        """
        if self._yes:
            return True
        choice = "[y/n]" if of_another else "[y/N]"
        prompt = f"{question_text(question.content)} {choice} "
        while (answer := await self._lines.read(prompt, remember=False)) is not None and (
            answer.strip() or of_another
        ):
            if (approved := yes_or_no(answer)) is not None:
                return approved
            prompt = f"{AGAIN} {choice} "
        return None if of_another else False

    async def _read(self, prompt: str, session: AgentSession | None, interrupts: Interrupts) -> str | None:
        """One line; None at the end of the input and at Ctrl-C.

        What the agent says meanwhile is shown at once. What it asks in a turn of another client, a person at
        a terminal is asked first; a script answers for itself. Raises what `AgentSession.receive` raises.
        """

        async def listen() -> None:
            while session is not None:
                self._take_in(await session.receive())
                if self._open and (self._lines.interactive or self._yes):
                    reading.cancel()
                    continue
                for question in self._open.values():
                    note(f"another client is asked: {question_text(question.content)}")
                self._open.clear()

        line: str | None = None
        with trio.CancelScope() as scope:
            async with _on_interrupt(interrupts, partial(_cancel, scope)):
                while True:
                    with trio.CancelScope() as reading:
                        async with _meanwhile(listen):
                            line = await self._lines.read(prompt)
                    if line is not None or session is None or not reading.cancel_called:
                        break
                    self._lines.forget_unfinished()
                    if not await self._ask_for_another(session):
                        break
        return line


async def _events(session: AgentSession) -> AsyncIterator[AgentEvent]:
    while True:
        yield await session.receive()


@asynccontextmanager
async def _on_interrupt(interrupts: Interrupts, do: Callable[[], Awaitable[None]]) -> AsyncIterator[None]:
    """Inside the block, Ctrl-C does this."""

    async def listen() -> None:
        async for _ in interrupts:
            await do()

    async with _meanwhile(listen):
        yield


@asynccontextmanager
async def _meanwhile(task: Callable[[], Awaitable[None]]) -> AsyncIterator[None]:
    """Runs a task for as long as the block; our errors, of either, leave as they are and not as a group."""
    failure: AgentManagerError | None = None
    async with trio.open_nursery() as nursery:

        async def run() -> None:
            nonlocal failure
            try:
                await task()
            except AgentManagerError as error:
                failure = error
                nursery.cancel_scope.cancel()

        nursery.start_soon(run)
        try:
            yield
        except AgentManagerError as error:
            failure = error
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure


async def _cancel(scope: trio.CancelScope) -> None:
    scope.cancel()
