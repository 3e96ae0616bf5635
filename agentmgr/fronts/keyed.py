"""Where a message is said: in a session of its own, or in the one that the client's key names.

no key     a session in memory only, which begins with the client's history and ends with its door
no host    a service of another kind gets the newest message alone, as text or as an event
a key      the session of that name. Where it knows another history than the client's, the next branch of
           it: NAME~2, NAME~3 … One that is not there yet begins with the client's history. A turn that runs
           is part of that: of two requests at once, each is in a branch of its own. A client that has seen
           a part of its answer, stopped it and goes on waits until that turn is over
a question that the client was shown, as its last message, is answered by the message; only yes is yes
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import ExitStack, asynccontextmanager
from hashlib import sha256
from typing import Any

from attrs import define, evolve

from .. import protocol
from ..core.plain_text import yes_or_no
from ..protocol import ErrorCode
from . import history
from .cache import Branch, ConversationCache, ParkedTurn
from .door import Door, open_door
from .exchange import Exchange
from .place import Place, at_holder, no_sessions
from .problem import NotTaken, Problem
from .prompt import ChatMessage, Prompt
from .session import NoSessions, SessionInfo, create_session, recent, silent, state_of
from .turn import Turn, answer, say

_TRIES = 3  # to say a message behind the turns that run


@define
class Conversation:
    """What a request says, and where."""

    exchange: Exchange
    place: Place
    prompt: Prompt
    cache: ConversationCache
    again: bool = False  #: the client has asked before, and may not have got all of the answer
    needs_session: bool = False  #: a service that has none is not asked
    beside: bool = True  #: where a turn runs, it may be said in a branch, or when that is over

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[Turn]:
        """Says it; the turn's door is left with the block, unless it is parked.

        Raises `Problem` where the gateway or the agent's host refuses it, or the connection ends before that.
        """
        with ExitStack() as stack:
            turn = await self._parked(stack)
            if turn is None:
                try:
                    turn = await (self._keyed if self.place.name else self._alone)(stack)
                except NoSessions as other:
                    if self.needs_session:
                        raise no_sessions(self.place.model) from None
                    if self.cache.last_branch(self.place) and not other.speaks_text:
                        raise silent() from None  # it has had sessions
                    turn = await self._without(stack, other)
            self.prompt = self.prompt.outline
            self.exchange.body.close()
            try:
                yield turn
            finally:
                if turn.parked:
                    stack.pop_all()

    def remember(self, turn: Turn, text: str, question: str | None) -> None:
        """Remembers where the session is, now that the client has this text.

        A turn that asked a question is parked.
        """
        said = (*self.prompt.history, self.prompt.message, ChatMessage("assistant", text))
        if self.place.name is not None:
            self.cache.remember(self.place, Branch(turn.branch, history.digest(said)))
        if question is not None and (where := self.place.question_key(said)) is not None:
            turn.parked = True
            parked = ParkedTurn(turn, question, self.place.client)
            self.cache.park(where, parked, self.exchange.intake.nursery)

    async def _enter(self, stack: ExitStack) -> Door:
        """For a session in memory only: it ends with its instance, of which the client hears at once."""
        door = await open_door(self.exchange, self.place.model, resumes=False)
        stack.callback(door.leave)
        return door

    async def _parked(self, stack: ExitStack) -> Turn | None:
        """The turn that waits for this message. Raises `DoorClosed`."""
        where = self.place.question_key(self.prompt.history)
        parked = None if where is None else self.cache.take(where)
        if parked is None or parked.question is None:
            if self.cache.was_closed(where) and yes_or_no(self.prompt.message.text) is not None:
                late = "The agent's question is not open any more: it waited too long, or its instance ended."
                raise Problem(409, "question_closed", f"{late} Ask again.")
            return None
        stack.callback(parked.turn.door.leave)
        return await answer(parked.turn, parked.question, self.prompt.message)

    async def _alone(self, stack: ExitStack) -> Turn:
        """Raises `Problem`."""
        with ExitStack() as tried:
            door = await self._enter(tried)
            found = await create_session(door, self.prompt.history)
            turn = await say(door, found.session_id, self.prompt, f"req_{secrets.token_hex(12)}")
            stack.push(tried.pop_all())
            return turn

    async def _without(self, stack: ExitStack, other: NoSessions) -> Turn:
        """Says it to a service without sessions, in plain text or as an event: the newest message is all that
        it gets. Raises `Problem`.
        """
        door = await self._enter(stack)
        if other.speaks_text:
            await door.say(self.prompt.message.text)
            return Turn(door, "", None)
        turn = await say(door, "", self.prompt, f"req_{secrets.token_hex(12)}")
        turn.step_id = None
        return turn

    async def _keyed(self, stack: ExitStack) -> Turn:
        """Raises `Problem`."""
        return await at_holder(self.exchange, self.place, stack, self._in_a_branch)

    async def _in_a_branch(self, door: Door) -> Turn:
        """Raises `NotTaken`, `DoorClosed`."""
        known = self.cache.last_branch(self.place)
        for number in self.cache.branches(self.place):
            name = self.place.branch(number)
            found = await create_session(door, self.prompt.history, name=name)
            is_known = known == Branch(number, history.digest(self.prompt.history))
            goes_on = is_known and not (found.busy or history.asks(self.prompt.history))
            turn = await self._say(door, found, name) if found.is_new or goes_on else None
            if turn is None:
                turn = await self._go_on(door, found, name)
            if turn is not None:
                turn.branch = number
                return turn
        name = f"{self.place.name}~{secrets.token_hex(8)}"
        found = await create_session(door, self.prompt.history, name=name)
        turn = await self._say(door, found, name)
        assert turn is not None, "no other request has that name"
        return turn

    async def _go_on(self, door: Door, found: SessionInfo, name: str) -> Turn | None:
        """Says it in a session that is there; None where that is of another history."""
        theirs = self.prompt.history
        for _ in range(_TRIES):
            state = await state_of(door, found.session_id)
            ours, cut = state.get("history", []), bool(state.get("truncated"))
            running, found = state.get("turn"), evolve(found, last_seq=state.get("last_seq", 0))
            asked = running is not None and history.asks(theirs)
            if asked and (turn := await _asked(door, found, self.prompt)) is not None:
                return turn
            if running is not None and self.beside and running["step_id"] != self._step_id(name):
                if not history.same([*ours, *history.stopped(running)], theirs, older_dropped=cut):
                    return None
                await _outlast(door, found, running["step_id"])
                continue
            if self.again and history.ends_with(ours, self.prompt.message):
                ours = ours[:-2]  # it was answered, and is not to be answered twice
            if not history.same(ours, theirs, older_dropped=cut):
                return None
            if (turn := await self._say(door, found, name)) is not None:
                return turn
        raise NotTaken({"code": ErrorCode.BUSY, "message": "Other messages of this conversation run."})

    def _step_id(self, name: str) -> str:
        """That of the same message when it is sent again, so that it is not answered twice."""
        said = history.digest((*self.prompt.history, self.prompt.message))
        return f"req_{sha256(f'{name} {said}'.encode()).hexdigest()[:24]}"

    async def _say(self, door: Door, found: SessionInfo, name: str) -> Turn | None:
        """None where another turn runs, and it may be said beside that."""
        turn = await say(door, found.session_id, self.prompt, self._step_id(name), last_seq=found.last_seq)
        try:
            await turn.taken()
        except NotTaken as error:
            if error.code != ErrorCode.BUSY or not self.beside:
                raise
            return None
        return turn


async def _asked(door: Door, found: SessionInfo, prompt: Prompt) -> Turn | None:
    """The turn that waits for this message, as the session's last events say. Raises `Problem`."""
    if not (questions := _open_questions(await recent(door, found))):
        return None
    question, already = next(iter(questions.items()))
    return await answer(Turn(door, found.session_id, None, already), question, prompt.message)


async def _outlast(door: Door, found: SessionInfo, step_id: str) -> None:
    """Waits until that turn is over. A question that its client has not seen is answered with no, since it
    goes on without. Raises `Problem`.
    """
    turn = Turn(door, found.session_id, None)
    events = await recent(door, found)
    questions = list(_open_questions(events))
    while True:
        for question in questions:
            await answer(turn, question, ChatMessage("user", "it goes on without an answer, which means no"))
        for event in events:
            if event.get("session_id") != found.session_id:
                continue
            if event["event"] == protocol.SESSION_END:
                return
            if event["event"] in protocol.TURN_ENDS and event.get("step_id") == step_id:
                return
        events = await door.receive()
        questions = [str(event.get("step_id")) for event in events if event["event"] == protocol.USER_CONFIRM]


def _open_questions(events: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """By their ids, what was said of the answer before each."""
    said, questions = "", dict[str, str]()
    for event in events:
        name, content, step_id = event["event"], event.get("content"), str(event.get("step_id"))
        if name == protocol.NOTICE:
            questions.pop(step_id, None)  # it was answered
        elif name == protocol.USER_CONFIRM:
            questions[step_id] = said
        elif name == protocol.PARTIAL_ANSWER and isinstance(content, str):
            said += content
        elif name in protocol.TURN_ENDS:
            said, questions = "", {}
    return questions
