"""Makes one kind of agent of whatever a factory returned."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing
from functools import partial
from typing import Any

import trio
from attrs import frozen

from ..errors import AgentLoadError
from . import events
from .events import as_event
from .session import Message, Session

HEALTH_TIMEOUT_S = 3.0
MAX_THREADS = 64
"""Turns of blocking agents that run at once; more of them wait."""


@frozen
class Health:
    """What an agent says of itself."""

    status: str = "healthy"  #: `healthy`, `degraded` or `unhealthy`
    detail: str | None = None


class HostedAgent:
    """An agent as the host runs it: each of these awaits, whatever the author wrote."""

    def __init__(self, subject: Any) -> None:
        self._subject = subject
        self._threads = trio.CapacityLimiter(MAX_THREADS)

    async def on_session_start(self, session: Session) -> None:
        await self._hook("on_session_start", session)

    async def on_session_end(self, session: Session) -> None:
        await self._hook("on_session_end", session)

    async def on_message(self, session: Session, message: Message) -> Any:
        """Runs one turn; what it streams goes to the session, what it returns is the final answer."""
        raise NotImplementedError

    async def check_health(self) -> Health:
        """The agent's own opinion, if it has a `check_health`; one that is late is unhealthy."""
        with trio.move_on_after(HEALTH_TIMEOUT_S) as patience:
            said = await self._hook("check_health")
        if patience.cancelled_caught:
            return Health("unhealthy", f"check_health did not answer within {HEALTH_TIMEOUT_S:.0f} s")
        return _health(said)

    async def _hook(self, name: str, *args: Any) -> Any:
        hook = getattr(self._subject, name, None)
        return None if hook is None else await self._call(hook, *args)

    async def _call(self, function: Callable[..., Any], *args: Any) -> Any:
        """The value of a plain, async or blocking function."""
        if inspect.iscoroutinefunction(function):
            return await function(*args)
        answer = await self._in_thread(function, *args)
        return await answer if inspect.isawaitable(answer) else answer

    async def _in_thread(self, function: Callable[..., Any], *args: Any) -> Any:
        # Abandoned when cancelled: a blocking call cannot be stopped, but nobody has to wait for it.
        # Boxed, because trio takes a coroutine that comes back for a mistake, and here it may be meant.
        [answer] = await trio.to_thread.run_sync(
            lambda: [function(*args)], abandon_on_cancel=True, limiter=self._threads
        )
        return answer


class FunctionAgent(HostedAgent):
    """One function, or the `on_message` of an object, in any of the four colours."""

    def __init__(self, subject: Any, function: Callable[..., Any], arrange: Arrange) -> None:
        super().__init__(subject)
        self._function = function
        self._arrange = arrange
        target = function
        while isinstance(target, partial):
            target = target.func
        if not inspect.isroutine(target):
            target = type(target).__call__
        self._streams_async = inspect.isasyncgenfunction(target)
        self._streams = inspect.isgeneratorfunction(target)
        self._awaits = inspect.iscoroutinefunction(target)

    async def on_message(self, session: Session, message: Message) -> Any:
        if self._streams_async:
            return await _stream(session, self._function(*self._arrange(session, message)))
        if self._awaits:
            answer = await self._function(*self._arrange(session, message))
        else:
            args = self._arrange(BlockingSession(session), message)
            if self._streams:
                return await _stream(session, self._from_thread(self._function(*args)))
            answer = await self._in_thread(self._function, *args)
        # A plain function may also hand back something to be awaited or streamed.
        if inspect.isasyncgen(answer):
            return await _stream(session, answer)
        return await answer if inspect.isawaitable(answer) else answer

    async def _from_thread(self, items: Iterator[Any]) -> AsyncIterator[Any]:
        end = object()
        while (item := await self._in_thread(next, items, end)) is not end:
            yield item


class RunAgent(HostedAgent):
    """Anything with `run(str)`: a new one for each session, because such objects remember what was said."""

    def __init__(self, subject: Any, make: Callable[[], Any] | None) -> None:
        super().__init__(subject)
        self._make = make
        self._spare: Any = subject
        self._of_session: dict[Session, Any] = {}

    async def on_session_start(self, session: Session) -> None:
        await self._subject_of(session)

    async def on_session_end(self, session: Session) -> None:
        self._of_session.pop(session, None)

    async def on_message(self, session: Session, message: Message) -> Any:
        subject = await self._subject_of(session)
        return answer_text(await self._call(subject.run, str(message)))

    async def _subject_of(self, session: Session) -> Any:
        if self._make is None:
            return self._subject
        if session not in self._of_session:
            subject, self._spare = self._spare, None
            if subject is None:
                subject = self._make()
                if inspect.isawaitable(subject):
                    subject = await subject
            self._of_session[session] = subject
        return self._of_session[session]


class RawAgent(HostedAgent):
    """An object with `serve(websocket)`: it has the connection to itself, and no sessions."""

    async def serve(self, websocket: Any) -> None:
        await self._call(self._subject.serve, websocket)


class BlockingSession:
    """A session for code in a worker thread: the same names, without `await`."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def emit(self, *args: Any, **kwargs: Any) -> None:
        trio.from_thread.run(partial(self._session.emit, *args, **kwargs))

    def confirm(self, *args: Any, **kwargs: Any) -> Any:
        return trio.from_thread.run(partial(self._session.confirm, *args, **kwargs))


def adapt(subject: Any, make: Callable[[], Any] | None = None) -> HostedAgent:
    """The agent for what a factory returned; `make` makes another one.

    Raises `AgentLoadError` when it is nothing that could answer a message.
    """
    if callable(getattr(subject, "serve", None)):
        return RawAgent(subject)
    if callable(on_message := getattr(subject, "on_message", None)):
        return FunctionAgent(subject, on_message, _session_first)
    if callable(subject) and not inspect.isclass(subject) and not hasattr(subject, "run"):
        return FunctionAgent(subject, subject, _arrangement(subject))
    if callable(getattr(subject, "run", None)):
        return RunAgent(subject, make)
    raise AgentLoadError(
        f"the factory returned {_article(subject)}, which cannot answer a message; return a function, "
        "or an object with on_message(session, message), run(text) or serve(websocket)"
    )


def answer_text(answer: Any) -> Any:
    """What to show of the result object of a foreign `run`: its text, or what it is made of."""
    if answer is None or isinstance(answer, str | int | float | bool | list | dict):
        return answer
    for name in ("final_output", "output", "content", "text", "answer", "result"):
        if isinstance(text := getattr(answer, name, None), str):
            return text
    return str(answer)


Arrange = Callable[[Any, Message], tuple[Any, ...]]


def _session_first(session: Any, message: Message) -> tuple[Any, ...]:
    return session, message


def _message_only(session: Any, message: Message) -> tuple[Any, ...]:
    return (message,)


def _message_first(session: Any, message: Message) -> tuple[Any, ...]:
    return message, session


def _arrangement(function: Callable[..., Any]) -> Arrange:
    positional = [
        parameter
        for parameter in inspect.signature(function).parameters.values()
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
    ]
    if not positional:
        raise AgentLoadError(f"{function!r} takes no message: write it as f(message) or f(message, session)")
    if len(positional) == 1:
        return _message_only
    # A second parameter that has a default and another name is the author's own business.
    second = positional[1]
    return _message_first if second.default is second.empty or second.name == "session" else _message_only


async def _stream(session: Session, items: AsyncIterator[Any]) -> Any:
    """Sends what a generator yields. Its answer is what it streamed: None."""
    async with aclosing(items):  # type: ignore[type-var]  # each of ours is an async generator
        async for item in items:
            event = events.partial_answer(item) if isinstance(item, str) else as_event(item)
            await session.emit(event)


def _health(said: Any) -> Health:
    if said is None or said is True:
        return Health()
    if said is False:
        return Health("unhealthy")
    if isinstance(said, dict):
        return Health(str(said.get("status", "healthy")), said.get("detail"))
    if said in ("healthy", "degraded", "unhealthy"):
        return Health(str(said))
    return Health("degraded", str(said))


def _article(subject: Any) -> str:
    return "None" if subject is None else f"a {type(subject).__name__}"
