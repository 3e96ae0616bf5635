"""Conversations: see them, speak in them, answer what waits for a person, end them.

A token of the scope `read` sees that there are conversations, and nothing that was said in one or that would
let it speak there; the scope `sessions` sees and speaks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from attrs import Factory, evolve, frozen
from quart import Response

from ...manager.session_views import shortened, without_content
from ...models.sessions import SessionDetail, SessionPage, SessionQuestion, SessionState
from ...websocket.refusal import RefusalCode
from ..operations import Answer, Call, Operations
from ..problems import HttpProblem
from ..queries import Page, PageQuery, page
from ..streams import Send, StreamBody, stream
from .events import EventsQuery, since

api = Operations("sessions", scope="sessions")


@frozen(kw_only=True)
class SessionsQuery(PageQuery):
    state: SessionState | None = None
    owner: str | None = None
    q: str | None = None  #: in the name or the id


@frozen
class SessionEventsQuery(EventsQuery):
    messages: bool = False  #: also the `user.message` of each turn, without an id, before the turn's events


@frozen
class NewMessage:
    content: Any  #: a text, or an object as `user.message` takes it
    metadata: Mapping[str, Any] = Factory(dict)
    step_id: str | None = None  #: names the turn; a second message of the same is refused


@frozen
class Accepted:
    session_id: str
    step_id: str


@frozen
class NewAnswer:
    step_id: str  #: of the question
    confirmed: bool


@frozen(kw_only=True)
class AllSessionsQuery(SessionsQuery):
    service: str | None = None


@api.add(
    "GET",
    "/sessions",
    query=AllSessionsQuery,
    gives={200: SessionPage},
    problems=(400, 404),
    scope="read sessions",
)
async def list_all_sessions(call: Call, query: AllSessionsQuery) -> Answer:
    """The conversations of all services, the last used first; with the scope `read`, ids are shortened."""
    return await _listed(call, query.service, query)


@api.add(
    "GET",
    "/services/{ref}/sessions",
    query=SessionsQuery,
    gives={200: SessionPage},
    problems=(400, 404),
    scope="read sessions",
)
async def list_sessions(call: Call, query: SessionsQuery) -> Answer:
    """The conversations of a service, the last used first; with the scope `read`, ids are shortened."""
    return await _listed(call, call.ref, query)


async def _listed(call: Call, service: str | None, query: SessionsQuery) -> Answer:
    if query.q is not None and not call.sees_conversations:  # it would find out an id, letter by letter
        raise HttpProblem(403, RefusalCode.FORBIDDEN, "To search, this token needs the scope 'sessions'.")
    found = await call.manager.sessions.list(
        service,
        state=query.state,
        owner=query.owner,
        text=query.q,
        limit=query.limit,
        cursor=query.cursor,
    )
    if not call.sees_conversations:
        found = evolve(found, items=tuple(map(shortened, found.items)))
    return Answer(found)


@api.add("GET", "/questions", query=PageQuery, gives={200: Page[SessionQuestion]}, scope="read sessions")
async def list_questions(call: Call, query: PageQuery) -> Answer:
    """All questions that wait for a person, the oldest first."""
    found = await call.manager.sessions.questions()
    if not call.sees_conversations:
        found = tuple(map(without_content, found))
    return Answer(
        page(found, query, key=lambda one: f"{one.asked_at.isoformat()} {one.session_id} {one.step_id}")
    )


@api.add("GET", "/sessions/{ref}", gives={200: SessionDetail}, problems=(404,))
async def get_session(call: Call) -> Answer:
    """One conversation, with its last turns."""
    return Answer(await call.manager.sessions.get(call.ref))


@api.add(
    "GET",
    "/sessions/{ref}/events",
    query=SessionEventsQuery,
    gives={200: str},
    media_type="text/event-stream",
    problems=(400, 404),
    streams=True,
)
async def get_session_events(call: Call, query: SessionEventsQuery) -> Response:
    """Server-sent events: all of a conversation, then new ones as they come; an id is the event's `seq`."""
    sessions, last = call.manager.sessions, since(call, query) or 0
    await sessions.find(call.ref)

    async def produce(send: Send) -> None:
        async def pass_on(events: Sequence[tuple[int | None, bytes]]) -> None:
            heads = (b"" if seq is None else b"id: %d\n" % seq for seq, _ in events)
            await send(
                b"".join(
                    b"%bdata: %b\n\n" % (head, text) for head, (_, text) in zip(heads, events, strict=True)
                )
            )

        await send(b": the events of a session\n\n")
        await sessions.pass_on_events(
            call.ref, pass_on, since=last, following=query.follow, messages=query.messages
        )

    return stream(StreamBody(produce, call, keepalive=b": still here\n\n"), "text/event-stream")


@api.add(
    "GET",
    "/sessions/{ref}/export",
    gives={200: str},
    media_type="application/x-ndjson",
    problems=(404,),
    streams=True,
)
async def export_session(call: Call) -> Response:
    """All that is kept of a conversation as lines of JSON: the session, its turns, its events."""
    sessions = call.manager.sessions
    await sessions.find(call.ref)

    async def produce(send: Send) -> None:
        await sessions.pass_on_export(call.ref, send)

    return stream(StreamBody(produce, call), "application/x-ndjson")


@api.add(
    "POST",
    "/sessions/{ref}/messages",
    body=NewMessage,
    gives={202: Accepted},
    problems=(400, 404, 409, 413, 415, 422),
    scope="sessions",
)
async def send_message(call: Call, body: NewMessage) -> Answer:
    """Says something in a conversation; its events have the answer."""
    step_id = await call.manager.sessions.say(
        call.ref, body.content, metadata=body.metadata, step_id=body.step_id
    )
    return Answer(Accepted(call.ref, step_id), 202)


@api.add("POST", "/sessions/{ref}/cancel", gives={204: None}, problems=(400, 404, 409, 422), scope="sessions")
async def cancel_turn(call: Call) -> Answer:
    """Ends the turn that runs in a conversation."""
    await call.manager.sessions.cancel(call.ref)
    return Answer(None, 204)


@api.add(
    "POST",
    "/sessions/{ref}/answers",
    body=NewAnswer,
    gives={204: None},
    problems=(400, 404, 409, 413, 415, 422),
    scope="sessions",
)
async def answer_question(call: Call, body: NewAnswer) -> Answer:
    """Answers a question that waits for a person."""
    await call.manager.sessions.answer(call.ref, body.step_id, confirmed=body.confirmed)
    return Answer(None, 204)


@api.add("DELETE", "/sessions/{ref}", gives={204: None}, problems=(404,), scope="sessions")
async def erase_session(call: Call) -> Answer:
    """Ends a conversation, and erases all that was said in it."""
    await call.carry_out(lambda: call.manager.sessions.erase(call.ref))
    return Answer(None, 204)
