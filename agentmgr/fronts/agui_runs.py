"""What is done with a thread of AG-UI: a run in it; to read it; to stop what runs in it.

A thread is the session of its name, and a run is a part of a turn: from the message, or from a question that
the run answers, to the next question or the turn's end. A run that is asked for again is read again. Where
the client's messages before its newest one are not those of the session, the run is in a branch of that
(NAME~2 …), as in `keyed`; a client that sends no messages but its newest goes on in the branch of before.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from typing import Any

from attrs import define, field

from .. import protocol
from ..protocol import ErrorCode, NoticeCode
from . import history
from .agui_events import RunStream, transcript
from .agui_input import RunInput, session_name
from .agui_turns import question_at, run_begins, settled, turn_of
from .cache import MOST_BRANCHES, Branch, ConversationCache, ParkedTurn
from .door import Door, DoorClosed, open_door
from .exchange import Exchange
from .place import Place, at_holder
from .problem import NotTaken, invalid
from .session import (
    NoSessions,
    SessionInfo,
    ask,
    code_of,
    create_session,
    find_session,
    recent,
    silent,
    state_of,
)
from .turn import Turn, message_of, response_to

_ENDS = protocol.TURN_ENDS | {protocol.USER_CONFIRM}

Event = dict[str, Any]


class Runs:
    """What the fronts that speak AG-UI share."""

    def __init__(self) -> None:
        self._cache = ConversationCache()

    async def run(self, exchange: Exchange, service: str, asked: RunInput) -> None:
        """A run, as server-sent events. Raises `Problem`."""
        await _Run.of(exchange, service, asked, self._cache).run()

    async def connect(self, exchange: Exchange, service: str, asked: RunInput) -> None:
        """What the thread has, and what runs in it up to its end or its question. Raises `Problem`."""
        await _Run.of(exchange, service, asked, self._cache).connect()

    async def stop(self, exchange: Exchange, service: str, thread_id: str, run_id: str | None = None) -> bool:
        """Ends the turn that runs in the thread, or waits for an answer; with a `run_id`, only if that run is
        a part of it. False: there is none. Raises `Problem`.
        """
        place = Place.of(exchange, service, session_name(thread_id))

        async def end(door: Door) -> bool:
            if (at := await _newest(door, place, self._cache)) is None:
                return False
            found = at[1]
            if run_id is not None:
                running = (await state_of(door, found.session_id)).get("turn", {}).get("step_id")
                events = await recent(door, found)
                asked, runs = (run_begins(events, str(each), running) for each in (run_id, running))
                if asked is None or runs is None or asked[0] != runs[0]:
                    return False
            cancel = {"event": protocol.CANCEL, "session_id": found.session_id}
            return all(code_of(event) != NoticeCode.NOTHING_RUNNING for event in await ask(door, cancel))

        with ExitStack() as stack:
            try:
                return await at_holder(exchange, place, stack, end)
            except NoSessions:
                return False


@define
class _Run:
    exchange: Exchange
    place: Place
    asked: RunInput
    cache: ConversationCache
    stream: RunStream
    after: int  #: the last of our events that the client has; 0: it does not say
    branch: int = 1
    state: Mapping[str, Any] = field(factory=dict)  #: of the session, before
    messages: Sequence[Mapping[str, Any]] | None = None  #: to begin with, in place of what the client has

    @classmethod
    def of(cls, exchange: Exchange, service: str, asked: RunInput, cache: ConversationCache) -> _Run:
        stream = RunStream(asked.thread_id, asked.run_id, asked.modern, asked.messages, asked.calls)
        place = Place.of(exchange, service, session_name(asked.thread_id))
        last = exchange.request.head.by_name.get("last-event-id", "")
        after = int(last) if last.isascii() and last.isdigit() and len(last) < 19 else 0
        return cls(exchange, place, asked, cache, stream, after)

    async def run(self) -> None:
        with ExitStack() as stack:
            await self._answer(stack, self._resume if self.asked.answers else self._say)

    async def connect(self) -> None:
        with ExitStack() as stack:
            await self._answer(stack, self._read)

    async def _answer(self, stack: ExitStack, begin: Callable[[Door], Awaitable[Turn | None]]) -> None:
        self.exchange.stream(self.stream.cut_off)
        try:
            try:
                turn = await self._parked(stack) or await at_holder(self.exchange, self.place, stack, begin)
            except NoSessions as other:
                turn = await self._without(stack, other)
        except NotTaken:
            await self.exchange.begin()  # it is about the run: said in its stream
            raise
        if turn is None:
            self.stream.nothing()
        data = self.stream.begin(self.state.get("state"), self.messages)
        while turn is not None and not self.stream.finished:
            await self.exchange.send(data)
            events = await turn.events()
            data = await self._state_behind(turn, events) + b"".join(map(self.stream.feed, events))
        self.cache.remember(self.place, Branch(self.branch, ""))
        if turn is not None and turn.session_id and (question := self.stream.question) is not None:
            # It waits before the client knows of the question, and may answer.
            turn.parked = True
            nursery = self.exchange.intake.nursery
            self.cache.park((self.place, question), ParkedTurn(turn, question), nursery)
            stack.pop_all()
        await self.exchange.send(data)
        await self.exchange.end()

    async def _state_behind(self, turn: Turn, events: list[Event]) -> bytes:
        """The session's state, where these end the run and it has changed."""
        if turn.session_id and any(event["event"] in _ENDS for event in events):
            with suppress(DoorClosed, NotTaken):  # the run ends all the same
                return self.stream.states((await state_of(turn.door, turn.session_id)).get("state"))
        return b""

    # Each of these finds where the run begins, and prepares the stream for it. None: there is nothing to be
    # read. They raise `Problem` and `NoSessions`.

    async def _parked(self, stack: ExitStack) -> Turn | None:
        """The turn that waits for this run with its door open."""
        for answer in self.asked.answers:
            if (parked := self.cache.take((self.place, answer.question))) is None:
                continue
            with ExitStack() as taken:
                taken.callback(parked.turn.door.leave)
                try:
                    turn = await self._resume(parked.turn.door)
                except DoorClosed:
                    return None
                stack.push(taken.pop_all())
                return turn
        return None

    async def _resume(self, door: Door) -> Turn | None:
        """Answers the questions, and goes on behind them."""
        answers, run_id = self.asked.answers, self.asked.run_id
        given_up = all(each.cancelled for each in answers)
        for number in self.cache.branches(self.place):
            if (found := await find_session(door, self.place.branch(number))) is None:
                break
            events = await recent(door, found)
            asked = [at for each in answers if (at := question_at(events, each.question)) is not None]
            if not asked:
                continue
            begins, is_over = turn_of(events, max(asked))
            notices = [settled(events, each.question) for each in answers]
            is_open = [
                not is_over and notice is None and question_at(events, each.question) is not None
                for each, notice in zip(answers, notices, strict=True)
            ]
            for each, notice, still in zip(answers, notices, is_open, strict=True):
                if not (still or each.cancelled or (notice or {}).get("answer_id") == run_id):
                    raise _unknown(each.question)
            if given_up and is_over and (turn := await self._say(door, or_nothing=True)) is not None:
                return turn
            responses = [
                response_to(found.session_id, each.question, each.content | {"answer_id": run_id})
                for each, still in zip(answers, is_open, strict=True)
                if still
            ]
            if responses:
                try:
                    events += [event for event in await ask(door, *responses) if "seq" in event]
                except NotTaken:  # it is open no more: its turn runs again after its instance died
                    if not given_up:
                        raise
            self.branch = number
            return self._behind(door, found, events, begins, max(asked) + 1)
        if given_up:
            return await self._say(door, or_nothing=True)
        raise _unknown(answers[0].question)

    async def _say(self, door: Door, *, or_nothing: bool = False) -> Turn | None:
        """Says the message in the branch that has the client's history, or in a new one; `or_nothing`: if it
        is not the next one of a branch that is there, nothing is said.
        """
        prompt = self.asked.prompt
        if prompt is None:
            return None
        is_new, theirs = not self.asked.nothing_new, prompt.history
        for number in self.cache.branches(self.place):
            name = self.place.branch(number)
            if (found := await find_session(door, name)) is None:
                if or_nothing:
                    return None
                return await self._say_in(door, number, await self._made(door, name))
            self.state = await state_of(door, found.session_id)
            ours, cut = self.state.get("history", []), bool(self.state.get("truncated"))
            running = self.state.get("turn")
            fits = not (theirs or or_nothing) or any(
                history.same([*ours, *part], theirs, older_dropped=cut) for part in _parts(running)
            )
            if is_new and fits:
                return await self._say_in(door, number, found)
            was_said = not is_new or history.ends_with(ours, prompt.message)
            if was_said and not or_nothing and (turn := await self._again(door, number, found)) is not None:
                return turn
        raise NotTaken(
            {"code": ErrorCode.MAX_SESSIONS, "message": f"the thread has {MOST_BRANCHES} branches"}
        )

    async def _made(self, door: Door, name: str) -> SessionInfo:
        if self.asked.nothing_new or self.asked.prompt is None:
            raise invalid("messages", "must end with a message of the user")
        self.state = {}
        return await create_session(door, self.asked.prompt.history, name=name)

    async def _say_in(self, door: Door, number: int, found: SessionInfo) -> Turn | None:
        assert self.asked.prompt is not None
        message = message_of(found.session_id, self.asked.prompt, self.asked.run_id)
        self.branch = number
        try:
            came = await ask(door, message, size=self.asked.prompt.size)
        except NotTaken as refused:
            if refused.code != ErrorCode.DUPLICATE:
                raise
            if (turn := await self._again(door, number, found)) is None:
                raise
            return turn
        turn = Turn(door, found.session_id, self.asked.run_id)
        turn.hold(came)
        return turn

    async def _again(self, door: Door, number: int, found: SessionInfo) -> Turn | None:
        """Reads a run that was begun before."""
        events = await recent(door, found)
        running = self.state.get("turn", {}).get("step_id")
        if (where := run_begins(events, self.asked.run_id, running)) is None:
            return None
        self.branch = number
        if self.asked.nothing_new and not self.after:
            self.messages = self.asked.messages  # what the client has of the answer comes again
        return self._behind(door, found, events, *where)

    async def _read(self, door: Door) -> Turn | None:
        """All that was said, and the turn that runs from its beginning."""
        self.messages = []
        if (at := await _newest(door, self.place, self.cache)) is None:
            return None
        self.branch, found = at
        self.state = await state_of(door, found.session_id)
        dropped = int(self.state.get("truncated") or 0)
        self.messages = transcript(self.state.get("history", []), self.asked.thread_id, dropped)
        if (running := self.state.get("turn")) is None:
            return None
        said = {"role": "user", "content": running["content"]}
        self.messages += transcript([said], self.asked.thread_id, dropped + len(self.messages))
        self.stream.messages = self.messages
        events = await recent(door, found)
        begins, _ = run_begins(events, running["step_id"], running["step_id"]) or (0, 0)
        turn = Turn(door, found.session_id, running["step_id"])
        turn.hold([event for event in events[begins:] if not _is_answered(event, events)])
        return turn

    async def _without(self, stack: ExitStack, other: NoSessions) -> Turn | None:
        """A service without sessions gets the newest message alone, as text or as an event."""
        if not other.speaks_text and (self.asked.answers or self.cache.last_branch(self.place)):
            raise silent()  # it has had sessions
        if self.asked.answers:
            raise _unknown(self.asked.answers[0].question)
        if self.asked.prompt is None:
            self.messages = []
            return None
        door = await open_door(self.exchange, self.place.model)
        stack.callback(door.leave)
        if other.speaks_text:
            await door.say(self.asked.prompt.message.text)
        else:
            await door.send(message_of("", self.asked.prompt, self.asked.run_id))
        return Turn(door, "", None)

    def _behind(self, door: Door, found: SessionInfo, events: list[Event], begins: int, run: int) -> Turn:
        """The turn, of which these are read: from where it begins to where the run does, and what the client
        has of that, only so that the stream knows them.
        """
        for event in events[begins:run]:
            self.stream.feed(event)
        self.stream.go_on()
        while self.after and run < len(events) and events[run]["seq"] <= self.after:
            self.stream.feed(events[run])
            run += 1
        turn = Turn(door, found.session_id, None)
        turn.hold(events[run:])
        return turn


async def _newest(door: Door, place: Place, cache: ConversationCache) -> tuple[int, SessionInfo] | None:
    """The branch that was used last, as far as this gateway knows; else the last one that was made."""
    known, newest = cache.last_branch(place), None
    for number in cache.branches(place):
        if (found := await find_session(door, place.branch(number))) is None:
            break
        newest = number, found
        if known is not None:
            break
    return newest


def _parts(running: Mapping[str, Any] | None) -> Iterator[list[Event]]:
    """What a client may have of the turn that runs: nothing, its message, a part of its answer."""
    yield []
    if running is not None:
        stopped = history.stopped(running)
        yield stopped[:1]
        yield stopped


def _unknown(question: str) -> NotTaken:
    message = f"No question {question!r} is open: it was answered, or has expired, or its turn has ended."
    return NotTaken({"code": ErrorCode.UNKNOWN_STEP, "message": message})


def _is_answered(event: Event, events: Sequence[Event]) -> bool:
    asks = event["event"] == protocol.USER_CONFIRM
    return asks and settled(events, str(event.get("step_id"))) is not None
