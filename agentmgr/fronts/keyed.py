"""Where a message is said: in a session of its own, or in the one that the client's key names.

no key     a session in memory only, which begins with the client's history and ends with its door
no host    a service of another kind gets the newest message alone, as text or as an event
a key      the session of that name. Where it knows another history than the client's, the next branch of
           it: NAME~2, NAME~3 … One that is not there yet begins with the client's history
a question that the client was shown, as its last message, is answered by the message; only yes is yes
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import ExitStack, asynccontextmanager
from hashlib import sha256
from typing import Any, TypeVar

from attrs import define, frozen

from .. import protocol
from ..core.plain_text import yes_or_no
from ..protocol import ErrorCode, NoticeCode
from . import history
from .conversation import (
    FROM_NOW_ON,
    NoSessions,
    Turn,
    answer,
    code_of,
    create_session,
    reconnect,
    say,
    target_of,
)
from .door import Door, open_door
from .exchange import Exchange
from .problem import NotTaken, Problem
from .saying import Said, Saying
from .threads import Branch, Threads, Waiting

MOST_BRANCHES = 16
"""Looked at; a history that none of them has gets a branch of a random name."""
_TRIES = 3  # of instances, until one holds the session
_ELSEWHERE = (ErrorCode.SESSION_ELSEWHERE, ErrorCode.DRAINING)
_LOOK_BACK = 256  # events, for questions that are open
Worked = TypeVar("Worked")


@frozen
class Place:
    """Where a conversation is held."""

    model: str
    name: str | None  #: of its session; None: it has none that lasts
    owner: str | None  #: as the client's token proves it
    client: str = ""  #: what else tells clients apart where there is no name

    @classmethod
    def of(cls, exchange: Exchange, model: str, name: str | None) -> Place:
        request = exchange.request
        owner = None if request.identity is None else request.identity.name
        shown = request.head.by_name.get("authorization", "")
        return cls(model, name, owner, "" if name else f"{request.client_ip} {shown}")

    @property
    def word(self) -> str | None:
        """By which the gateway finds the same instance again."""
        if self.name is None:
            return None
        return f"key-{sha256(repr((self.model, self.name, self.owner)).encode()).hexdigest()[:32]}"

    def question(self, said: tuple[Said, ...]) -> tuple[Place, str] | None:
        """The place of a turn that waits, by all that the client knows of the conversation; None where that
        does not end with a question.
        """
        if not history.asks(said):
            return None
        return self, "" if self.name else history.digest(said)


@define
class Conversation:
    """What a request says, and where."""

    exchange: Exchange
    place: Place
    saying: Saying
    threads: Threads
    again: bool = False  #: the client has asked before, and may not have got all of the answer
    needs_session: bool = False  #: a service that has none is not asked
    queue: bool = True  #: it may wait behind a turn that runs

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[Turn]:
        """Says it; the turn's door is left with the block, unless it `waits`.

        Raises `Problem` where the gateway or the agent's host refuses it, or the connection ends before that.
        """
        with ExitStack() as stack:
            turn = await self._waiting(stack)
            if turn is None:
                try:
                    turn = await (self._keyed if self.place.name else self._alone)(stack)
                except NoSessions as other:
                    if self.needs_session:
                        raise no_sessions(self.place.model) from None
                    turn = await self._without(stack, other)
            self.saying = self.saying.outline
            self.exchange.body.close()
            try:
                yield turn
            finally:
                if turn.waits:
                    stack.pop_all()

    def remember(self, turn: Turn, text: str, question: str | None) -> None:
        """Remembers where the session is, now that the client has this text.

        A turn that asked a question waits from now on.
        """
        said = (*self.saying.history, self.saying.message, Said("assistant", text))
        if self.place.name is not None:
            self.threads.remember(self.place, Branch(turn.branch, history.digest(said)))
        if question is not None and (where := self.place.question(said)) is not None:
            turn.waits = True
            waiting = Waiting(turn, question, self.place.client)
            self.threads.wait(where, waiting, self.exchange.intake.nursery)

    async def _enter(self, stack: ExitStack, word: str | None) -> Door:
        door = await open_door(self.exchange, target_of(self.place.model), session=word)
        stack.callback(door.leave)
        return door

    async def _waiting(self, stack: ExitStack) -> Turn | None:
        """The turn that waits for this message. Raises `DoorClosed`."""
        where = self.place.question(self.saying.history)
        waiting = None if where is None else self.threads.take(where)
        if waiting is None or waiting.question is None:
            if self.threads.was_closed(where) and yes_or_no(self.saying.message.text) is not None:
                late = "The agent's question is not open any more: it waited too long, or its instance ended."
                raise Problem(409, "question_closed", f"{late} Ask again.")
            return None
        stack.callback(waiting.turn.door.leave)
        return await answer(waiting.turn, waiting.question, self.saying.message)

    async def _alone(self, stack: ExitStack) -> Turn:
        """Raises `Problem`."""
        with ExitStack() as tried:
            door = await self._enter(tried, None)
            session_id, _ = await create_session(door, self.saying.history)
            turn = await say(door, session_id, self.saying, f"req_{secrets.token_hex(12)}")
            stack.push(tried.pop_all())
            return turn

    async def _without(self, stack: ExitStack, other: NoSessions) -> Turn:
        """Says it to a service without sessions, in plain text or as an event: the newest message is all that
        it gets. Raises `Problem`.
        """
        door = await self._enter(stack, None)
        if other.speaks_text:
            await door.say(self.saying.message.text)
            return Turn(door, "", None)
        turn = await say(door, "", self.saying, f"req_{secrets.token_hex(12)}")
        turn.step_id = None
        return turn

    async def _keyed(self, stack: ExitStack) -> Turn:
        """Raises `Problem`."""
        return await at_holder(self.exchange, self.place, stack, self._in_a_branch)

    async def _in_a_branch(self, door: Door) -> Turn:
        """Raises `NotTaken`, `DoorClosed`."""
        known = self.threads.branch(self.place)
        first = known.number if known else 1
        for number in (first, *(n for n in range(1, MOST_BRANCHES + 1) if n != first)):
            name = f"{self.place.name}~{number}" if number > 1 else str(self.place.name)
            session_id, last_seq = await create_session(door, self.saying.history, name=name)
            is_known = known == Branch(number, history.digest(self.saying.history))
            if last_seq is None or (is_known and not history.asks(self.saying.history)):
                turn: Turn | None = await self._say(door, session_id, name, last_seq)
            else:
                turn = await self._go_on(door, session_id, name, last_seq)
            if turn is not None:
                turn.branch = number
                return turn
        name = f"{self.place.name}~{secrets.token_hex(8)}"
        session_id, _ = await create_session(door, self.saying.history, name=name)
        return await self._say(door, session_id, name, None)

    async def _go_on(self, door: Door, session_id: str, name: str, last_seq: int) -> Turn | None:
        """Says it in a session that is there; None where that is of another history."""
        state, theirs = await state_of(door, session_id), self.saying.history
        ours, less = state.get("history", []), bool(state.get("truncated"))
        asked = state.get("busy") and history.asks(theirs)
        if asked and (turn := await _asked(door, session_id, last_seq, self.saying)) is not None:
            return turn
        if self.again and history.ends_with(ours, self.saying.message):
            ours = ours[:-2]  # it was answered, and is not to be answered twice
        if not history.same(ours, theirs, older_dropped=less):
            return None
        return await self._say(door, session_id, name, last_seq)

    async def _say(self, door: Door, session_id: str, name: str, last_seq: int | None) -> Turn:
        # The id is that of the same message when it is sent again, so that it is not answered twice.
        said = history.digest((*self.saying.history, self.saying.message))
        step_id = f"req_{sha256(f'{name} {said}'.encode()).hexdigest()[:24]}"
        return await say(door, session_id, self.saying, step_id, last_seq=last_seq, queue=self.queue)


async def at_holder(
    exchange: Exchange, place: Place, stack: ExitStack, work: Callable[[Door], Awaitable[Worked]]
) -> Worked:
    """Works with the instance that holds the session of that name; the door is left with the stack.

    Raises `Problem`, `NoSessions`.
    """
    word = place.word
    for tries in range(_TRIES):
        with ExitStack() as tried:
            door = await open_door(exchange, target_of(place.model), session=word)
            tried.callback(door.leave)
            try:
                worked = await work(door)
            except NotTaken as error:
                if error.code not in _ELSEWHERE or tries == _TRIES - 1:
                    raise
                word = error.content.get("named", word)  # the gateway finds its holder by that
                continue
            stack.push(tried.pop_all())
            return worked
    raise AssertionError("the last try returns or raises")


async def state_of(door: Door, session_id: str) -> Mapping[str, Any]:
    """Raises `NotTaken`, `DoorClosed`."""
    await door.send(reconnect(session_id, FROM_NOW_ON, with_state=True))
    state: Mapping[str, Any] = {}
    while True:
        for event in await door.receive():
            if event.get("session_id") != session_id:
                continue
            if event["event"] == protocol.STATE_RESTORED:
                state = event["content"]
            elif event["event"] == protocol.NOTICE and code_of(event) == NoticeCode.RESUMED:
                return state
            elif event["event"] == protocol.ERROR:
                raise NotTaken(event.get("content"))


def no_sessions(model: str) -> Problem:
    """Of a request that makes no sense without."""
    return Problem(400, "no_sessions", f"{model!r} keeps no sessions, so there is nothing to go on with.")


async def _asked(door: Door, session_id: str, last_seq: int, saying: Saying) -> Turn | None:
    """The turn that waits for this message, as the session's last events say. Raises `DoorClosed`."""
    await door.send(reconnect(session_id, max(0, last_seq - _LOOK_BACK)))
    resumed, seq, said, questions = False, 0, "", dict[str, str]()
    while not resumed or seq < last_seq:
        for event in await door.receive():
            name, content, step_id = event["event"], event.get("content"), str(event.get("step_id"))
            if event.get("session_id") != session_id:
                continue
            seq = event.get("seq", seq)
            if name == protocol.NOTICE:
                resumed = resumed or code_of(event) == NoticeCode.RESUMED
                questions.pop(step_id, None)  # it was answered
            elif name == protocol.USER_CONFIRM:
                questions[step_id] = said
            elif name == protocol.PARTIAL_ANSWER and isinstance(content, str):
                said += content
            elif name in protocol.TURN_ENDS:
                said, questions = "", {}
    if not questions:
        return None
    question, already = next(iter(questions.items()))
    return await answer(Turn(door, session_id, None, already), question, saying.message)
