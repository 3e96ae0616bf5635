"""The Responses API: what a response goes on with, and how it is found again.

A response is a turn of a session, or the part of one between two questions, and its id says which. So it is
kept for as long as its session is, any gateway finds it, and it is read again from the session's journal,
which has nothing of its request (`metadata` and the like). To delete it ends its session, if it is the newest
there.

no id, no conversation  a new session, which begins with the history of the input
a conversation          the session of that name
a response before       its session, where it is the newest there; else a new session, a branch, which begins
                        with the history up to there
the answer to a question  the turn that asked goes on
"""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager
from functools import partial
from hashlib import sha256
from typing import Any

import trio
from attrs import define, evolve

from .. import protocol
from ..core.plain_text import yes_or_no
from ..protocol import ErrorCode
from . import history
from .cache import ConversationCache, ParkedTurn
from .door import Door, open_door
from .exchange import Exchange, Route
from .keyed import Conversation
from .openai_input import Approval, ResponsesRequest
from .openai_responses import Out, ResponseEvents, in_json, in_sse
from .place import Place, at_holder, no_sessions
from .playback import Playback
from .problem import HAS_RUN, NotTaken, Problem, invalid
from .prompt import ChatMessage, Prompt, is_retry, session_key
from .response_id import ResponseId
from .session import NoSessions, create_session, state_of
from .turn import Turn, response_to, say

_CANCELLED_S = 10.0  # it is at once, where the agent's host can be asked
_UNKNOWN = (403, 404)  # of a service: its responses are not there either


@define
class Response:
    """One that is made now, or read again."""

    events: ResponseEvents
    source: Turn | Playback
    made: list[Out]  #: its events until now

    @classmethod
    def of(
        cls, known: ResponseId, playback: Playback, past: list[dict[str, Any]], echo: Mapping[str, Any] = {}
    ) -> Response:
        """One that is read again; `past`: of its turn, until now."""
        events = ResponseEvents(known, echo)
        made = events.begin()
        for event in past:
            made += events.feed(event)
        return cls(events, playback, made)

    async def more(self) -> list[Out]:
        """Those that have come since. Raises `Problem`."""
        came = await self.source.events()
        if not came:
            raise Problem(HAS_RUN, "connection_lost", "The answer has no end.", retry=False)
        return [out for event in came for out in self.events.feed(event)]


class Responses:
    def __init__(self, cache: ConversationCache) -> None:
        self._cache = cache
        self.routes: Sequence[Route] = (
            Route("POST", "/v1/responses", self._create),
            Route("GET", "/v1/responses/{id}", self._retrieve),
            Route("POST", "/v1/responses/{id}/cancel", self._cancel),
            Route("DELETE", "/v1/responses/{id}", self._delete),
        )

    async def _create(self, exchange: Exchange) -> None:
        asked = await exchange.read(ResponsesRequest.of)
        begun: list[Response] = []
        stream, waits = asked.stream, asked.stream or not asked.background
        if stream:
            exchange.stream(partial(_cut_off, begun))
        starting = self.begin(exchange, asked)
        del asked  # a stream lasts, and so does this frame; what was asked is most of its memory
        async with starting as response:
            begun.append(response)
            if stream:
                await exchange.send(in_sse(response.made))
            while waits and not response.events.finished:
                made = await response.more()
                if stream:
                    await exchange.send(in_sse(made))
        if stream:
            await exchange.end()
        else:
            await exchange.reply(200, in_json(response.events.response()))

    async def _retrieve(self, exchange: Exchange) -> None:
        query = exchange.request.query
        stream, after = _flag(query.get("stream", "false"), "stream"), query.get("starting_after", "")
        if after and not (after.isascii() and after.isdigit() and len(after) < 16):
            raise invalid("starting_after", "must be a whole number, 0 or more")
        begun: list[Response] = []
        if stream:
            exchange.stream(partial(_cut_off, begun))
        with ExitStack() as stack:
            response = await self._found(exchange, stack)
            begun.append(response)
            if not stream:
                await exchange.reply(200, in_json(response.events.response()))
                return
            first, made = int(after or -1) + 1, response.made
            if response.events.finished and first > (last := made[-1]["sequence_number"]) + 1:
                raise invalid("starting_after", f"must be {last} at most: that is the response's last event")
            while True:
                await exchange.send(in_sse(out for out in made if out["sequence_number"] >= first))
                if response.events.finished:
                    break
                made = await response.more()
        await exchange.end()

    async def _cancel(self, exchange: Exchange) -> None:
        with ExitStack() as stack:
            response = await self._found(exchange, stack)
            turn = response.source
            if not response.events.finished:
                step = {"session_id": turn.session_id, "step_id": turn.step_id}
                await turn.door.send({"event": protocol.CANCEL, **step})
            with trio.move_on_after(_CANCELLED_S):
                while not response.events.finished:
                    await response.more()
        await exchange.reply(200, in_json(response.events.response()))

    async def _delete(self, exchange: Exchange) -> None:
        with ExitStack() as stack:
            response = await self._found(exchange, stack)
            turn = response.source
            assert isinstance(turn, Playback)
            if turn.later or (turn.over and turn.busy):
                newer = "A newer response goes on from it; both are of one conversation: delete the newest."
                raise Problem(409, "not_the_newest", newer)
            await turn.door.send({"event": protocol.END_SESSION, "session_id": turn.session_id})
            ended = False
            while not ended:
                for event in await turn.door.receive():
                    if event["event"] == protocol.ERROR:
                        raise NotTaken(event.get("content"))
                    ended = ended or event["event"] == protocol.SESSION_END
        gone = {"id": exchange.parts["id"], "object": "response", "deleted": True}
        await exchange.reply(200, in_json(gone))

    async def _found(self, exchange: Exchange, stack: ExitStack) -> Response:
        """The response of the path. Raises `Problem`."""
        missing = Problem(404, "response_not_found", "There is no response of this id, or not any more.")
        known = ResponseId.parse(exchange.parts["id"])
        if known is None or not exchange.parts["id"].startswith("resp_"):
            raise missing
        playback, past = await _played(exchange, known, stack, missing)
        return Response.of(known, playback, past)

    @asynccontextmanager
    async def begin(
        self, exchange: Exchange, asked: ResponsesRequest, *, stays: bool = False
    ) -> AsyncIterator[Response]:
        """A response to that request. Its door is left with the block, unless its turn is to go on without a
        client: in the background, or while a person thinks about its question. Raises `Problem`.

        `stays`: so does its session, which would end with the door, until `forget` is called.
        """
        response = await self._begun(exchange, asked)
        exchange.body.close()
        background = asked.background
        del asked
        turn, events = response.source, response.events
        try:
            yield response
        finally:
            if turn.session_id and (stays or events.question or (background and not events.finished)):
                going_on = ParkedTurn(Turn(turn.door, turn.session_id, turn.step_id), None)
                going_on.now_asks(events.question is not None)
                self._cache.park(turn.session_id, going_on, exchange.intake.nursery)
            else:
                turn.door.leave()

    def forget(self, session_id: str) -> None:
        """Leaves the door that is kept open to that session, if one is."""
        if (parked := self._cache.take(session_id)) is not None:
            parked.turn.door.leave()

    async def _begun(self, exchange: Exchange, asked: ResponsesRequest) -> Response:
        """It has an open door, which is the caller's. Raises `Problem`."""
        if asked.approval is not None:
            return await self._approved(exchange, asked, asked.approval)
        if asked.previous is not None:
            return await self._continued(exchange, asked, asked.previous)
        if asked.conversation is not None:
            return await self._in_conversation(exchange, asked, asked.conversation)
        return await self._fresh(exchange, asked)

    async def _fresh(self, exchange: Exchange, asked: ResponsesRequest) -> Response:
        """In a session that begins with the history of the input; that of the client's key, if any."""
        once, again = _tried(exchange)
        name = None
        if asked.store:
            key = session_key(exchange.request.head.by_name, asked.metadata, asked.cache_key, asked.prompt)
            name = f"openai:{key or once or secrets.token_hex(12)}"
        place = Place.of(exchange, asked.model, name)
        conversation = Conversation(
            exchange, place, asked.prompt, self._cache, again, needs_session=asked.background, beside=False
        )
        async with conversation.turn() as turn:
            await turn.taken()
            turn.parked = True
        return _begins(turn, asked)

    async def _in_conversation(self, exchange: Exchange, asked: ResponsesRequest, name: str) -> Response:
        key = session_key({}, {"session_id": name}, None)
        place = Place.of(exchange, asked.model, f"openai:{key}")
        step_id = f"req_{_tried(exchange)[0] or secrets.token_hex(12)}"

        async def work(door: Door) -> Turn:
            found = await create_session(door, (), name=place.name)
            turn = await say(door, found.session_id, asked.prompt, step_id, last_seq=found.last_seq)
            await turn.taken()
            return turn

        with ExitStack() as stack:
            try:
                turn = await at_holder(exchange, place, stack, work)
            except NoSessions:
                raise no_sessions(asked.model) from None
            stack.pop_all()
        return _begins(turn, asked)

    async def _continued(self, exchange: Exchange, asked: ResponsesRequest, previous: str) -> Response:
        """Goes on from the response before."""
        name = "previous_response_id"
        missing = Problem(
            400, "previous_response_not_found", f"There is no response {previous!r}.", param=name
        )
        before = ResponseId.parse(previous)
        if before is None:
            raise missing
        asked = evolve(asked, model=asked.model or before.model)
        once, again = _tried(exchange)
        said = history.digest((ChatMessage("assistant", previous), asked.prompt.message))
        step_id = f"req_{once or sha256(said.encode()).hexdigest()[:24]}"
        with ExitStack() as stack:
            playback, past = await _played(exchange, before, stack, missing)
            ended = Response.of(before, playback, past).events
            if ended.question is not None:
                text = asked.prompt.message.text
                if is_open := _is_open(ended.question, past, playback):
                    content = {"confirmed": yes_or_no(text) is True, "message": text}
                    await playback.door.send(response_to(playback.session_id, ended.question, content))
                if is_open or again:
                    stack.pop_all()
                    return _goes_on(playback, past, asked, before)
                raise Problem(409, "answered", "Its question was answered already: go on from what followed.")
            if not ended.finished:
                raise Problem(409, "response_in_progress", "The response before is still in progress.")
            door, session_id = playback.door, playback.session_id
            # A message that was taken before is known by its step, and gets the same answer.
            newest = not playback.later or (again and step_id in playback.later)
            if asked.model == before.model and newest:
                turn = await say(door, session_id, asked.prompt, step_id, last_seq=playback.last_seq)
                await turn.taken()
                stack.pop_all()
                return _begins(turn, asked, after_seq=playback.end_seq)
            known = (await state_of(door, session_id)).get("history", [])
        branch = evolve(asked, prompt=_branched(asked.prompt, known, playback))
        return await self._fresh(exchange, branch)

    async def _approved(self, exchange: Exchange, asked: ResponsesRequest, given: Approval) -> Response:
        """Goes on with the turn that asked."""
        missing = Problem(400, "approval_not_found", "There is no such question.", param="input")
        with ExitStack() as stack:
            playback, past = await _played(exchange, given.asking, stack, missing)
            question = Response.of(given.asking, playback, past).events.question
            if question is None:
                raise missing
            if _is_open(question, past, playback):
                content = {"confirmed": given.approve, "message": given.reason}
                await playback.door.send(response_to(playback.session_id, question, content))
            stack.pop_all()
        # What was answered elsewhere, or by this client before it was cut off, goes on anyway.
        return _goes_on(playback, past, evolve(asked, model=given.asking.model), given.asking)


async def _played(
    exchange: Exchange, known: ResponseId, stack: ExitStack, missing: Problem
) -> tuple[Playback, list[dict[str, Any]]]:
    """The turn of a response, and its events until now; the door is left with the stack.

    Raises `missing` where it is not there for this client, and other `Problem`s.
    """
    if not known.session_id:
        raise missing
    try:
        door = await open_door(exchange, known.model, session=known.session_id)
        stack.callback(door.leave)
        playback = Playback(door, known.session_id, known.step_id, known.after_seq)
        past = await playback.past()
    except NotTaken as error:
        if error.code == ErrorCode.SESSION_NOT_FOUND:
            raise missing from None
        raise
    except Problem as problem:
        if problem.status in _UNKNOWN:
            raise missing from None
        raise
    if not playback.found:
        raise missing
    return playback, past


def _begins(turn: Turn, asked: ResponsesRequest, *, after_seq: int | None = None) -> Response:
    after = turn.after_seq if after_seq is None else after_seq
    stored = bool(turn.session_id)
    known = ResponseId(
        asked.model,
        turn.session_id,
        turn.step_id or "",
        after,
        int(time.time()),
        background=asked.background,
    )
    events = ResponseEvents(known, asked.echo | {"store": asked.store and stored})
    return Response(events, turn, events.begin())


def _goes_on(
    playback: Playback, past: list[dict[str, Any]], asked: ResponsesRequest, asking: ResponseId
) -> Response:
    """The part of the turn behind a question."""
    known = evolve(asking, part=asking.part + 1, created=int(time.time()), background=asked.background)
    return Response.of(known, playback, past, asked.echo)


def _is_open(question: str, past: list[dict[str, Any]], playback: Playback) -> bool:
    answered = any(event["event"] == protocol.NOTICE and event.get("step_id") == question for event in past)
    return not (answered or playback.over)


def _branched(prompt: Prompt, known: list[dict[str, Any]], playback: Playback) -> Prompt:
    """What is said, behind what was said up to the turn of the playback."""
    turns = [place for place, entry in enumerate(known) if entry.get("role") == "user"]
    kept = len(turns) - len(playback.later)
    if kept < 1:
        raise Problem(410, "history_gone", "What was said up to that response is not kept any more.")
    until = turns[kept] if kept < len(turns) else len(known)
    return evolve(prompt, history=tuple(history.said(known[:until])))


def _tried(exchange: Exchange) -> tuple[str | None, bool]:
    """By which an attempt is known when it is made again, and whether this may be another one."""
    by_name = exchange.request.head.by_name
    key = by_name.get("idempotency-key")
    again = key is not None or is_retry(by_name)
    return (None if key is None else sha256(key.encode("latin-1")).hexdigest()[:24]), again


def _flag(value: str, name: str) -> bool:
    if value.lower() not in ("true", "false", "1", "0"):
        raise invalid(name, "must be true or false")
    return value.lower() in ("true", "1")


def _cut_off(begun: list[Response], problem: Problem) -> bytes:
    if not begun:
        said = {"code": problem.code, "message": problem.message, "param": problem.param}
        return in_sse([{"type": "error", "sequence_number": 0, **said}])
    return in_sse(begun[0].events.cut_off(problem))
