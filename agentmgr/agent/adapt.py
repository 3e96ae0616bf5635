"""Makes one kind of agent of whatever a factory returned."""

from __future__ import annotations

import inspect
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Generator
from contextlib import aclosing
from functools import partial
from typing import Any

import trio
from attrs import frozen

from ..boundary import shown
from ..errors import AgentLoadError
from ..models.host_config import Runtime
from . import adapters, events
from .events import as_event
from .message import Message
from .runtime import AgentRuntime, ClosableIterator, TrioRuntime, remedy
from .session import Session
from .signatures import check_methods, positional, takes

Make = Callable[[], Any]
Arrange = Callable[[Any, Message], tuple[Any, ...]]

HEALTH_TIMEOUT_S = 3.0
CLOSE_TIMEOUT_S = 5.0
"""How long the clean-up of a blocking generator may keep its session waiting; then it is left behind."""
MAX_THREADS = 64
"""Turns of blocking agents that run at once; more of them wait."""


@frozen
class Health:
    """What an agent says of itself."""

    status: str = "healthy"  #: `healthy`, `degraded` or `unhealthy`
    detail: str | None = None


class HostedAgent:
    """An agent as the host runs it: each of these awaits, whatever the author wrote."""

    def __init__(self, subject: Any, runtime: AgentRuntime) -> None:
        self._subject = subject
        self._threads = trio.CapacityLimiter(MAX_THREADS)
        self.runtime = runtime

    async def on_session_start(self, session: Session) -> None:
        await self._hook("on_session_start", session)

    async def on_session_end(self, session: Session) -> None:
        await self._hook("on_session_end", session)

    async def export_memory(self, session: Session) -> str | None:
        """What a framework remembers of the session, in its own words; None where it says nothing."""
        hook = getattr(await self._subject_of(session), "export_memory", None)
        memory = None if hook is None else await self._call(hook, session)
        if not isinstance(memory, str | None):
            raise TypeError(f"export_memory returned a {type(memory).__name__}: it returns a string or None")
        return memory

    async def import_memory(self, session: Session, text: str) -> None:
        """Gives it back, before the first turn of a session that is taken up."""
        hook = getattr(await self._subject_of(session), "import_memory", None)
        if hook is not None:
            await self._call(hook, session, text)

    async def _subject_of(self, session: Session) -> Any:
        """The author's object that answers in the session."""
        return self._subject

    async def on_message(self, session: Session, message: Message) -> Any:
        """Runs one turn; what it streams goes to the session, what it returns is the final answer."""
        raise NotImplementedError

    async def check_health(self) -> Health:
        """The agent's own opinion, if it has a `check_health`; one that is late is unhealthy."""
        hook = getattr(self._subject, "check_health", None)
        late = "the agent's event loop is blocked: it"
        with trio.move_on_after(HEALTH_TIMEOUT_S):
            await self.runtime.take_turn()
            late = "check_health"
            return _health(None if hook is None else await self._call(hook))
        return Health("unhealthy", f"{late} did not answer within {HEALTH_TIMEOUT_S:.0f} s")

    def explain(self, error: BaseException) -> str | None:
        """What an author can do about an error, where that is known."""
        return remedy(error, self.runtime.kind)

    async def _hook(self, name: str, session: Session) -> None:
        hook = getattr(self._subject, name, None)
        if hook is not None:
            await self._call(hook, session)

    async def _call(self, function: Callable[..., Any], *args: Any) -> Any:
        """The value of an async or a blocking function; a session among `args` is dressed for it."""
        if inspect.iscoroutinefunction(function):
            return await self.runtime.call(function, *map(self._dressed, args))
        answer = await self._in_thread(function, *map(_for_threads, args))
        return await self.runtime.call(_itself, answer) if inspect.isawaitable(answer) else answer

    async def _in_thread(self, function: Callable[..., Any], *args: Any) -> Any:
        # Abandoned when cancelled: a blocking call cannot be stopped, but the session need not wait for it.
        # Boxed, because trio takes a coroutine that comes back for a mistake, and here it may be meant.
        [answer] = await trio.to_thread.run_sync(
            lambda: [function(*args)], abandon_on_cancel=True, limiter=self._threads
        )
        return answer

    def _dressed(self, value: Any) -> Any:
        return self.runtime.dress(value) if isinstance(value, Session) else value


class FunctionAgent(HostedAgent):
    """One function, or the `on_message` of an object, in any of the four colours."""

    def __init__(
        self, subject: Any, function: Callable[..., Any], arrange: Arrange, runtime: AgentRuntime
    ) -> None:
        super().__init__(subject, runtime)
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
        args = self._arrange(session, message)
        if self._streams_async:
            return await self._stream(session, self._function(*map(self._dressed, args)))
        if self._awaits:
            return await self.runtime.call(self._function, *map(self._dressed, args))
        args = tuple(map(_for_threads, args))
        if self._streams:
            return await _stream(session, self._from_thread(self._function(*args)))
        answer = await self._in_thread(self._function, *args)
        # A plain function may also hand back something to be awaited or streamed.
        if inspect.isasyncgen(answer):
            return await self._stream(session, answer)
        return await self.runtime.call(_itself, answer) if inspect.isawaitable(answer) else answer

    async def _stream(self, session: Session, items: AsyncIterator[Any]) -> Any:
        return await _stream(session, self.runtime.iterate(items))

    async def _from_thread(self, items: Generator[Any]) -> AsyncIterator[Any]:
        end = object()
        try:
            while (item := await self._in_thread(next, items, end)) is not end:
                yield item
        finally:
            # Collected here, its clean-up would run, and might block, in the host's own thread. If its code
            # still runs, because it was abandoned, it is collected where that ends.
            with trio.move_on_after(CLOSE_TIMEOUT_S, shield=True):
                await self._in_thread(_close, items)


class RunAgent(HostedAgent):
    """Anything with `run(str)`: a new one for each session, because such objects remember what was said."""

    def __init__(self, subject: Any, make: Make | None, runtime: AgentRuntime) -> None:
        super().__init__(subject, runtime)
        self._make = make
        self._spare: Any = subject
        self._of_session: dict[Session, Any] = {}

    async def on_session_start(self, session: Session) -> None:
        await self._subject_of(session)

    async def on_session_end(self, session: Session) -> None:
        self._of_session.pop(session, None)

    async def on_message(self, session: Session, message: Message) -> Any:
        subject = await self._subject_of(session)
        for what in ("instructions", "attachments"):
            if getattr(message, what):
                adapters.leave_out(
                    what, "`run` takes the text alone; a function gets `message` with all of it"
                )
        return answer_text(await self._call(subject.run, str(message)))

    async def _subject_of(self, session: Session) -> Any:
        if self._make is None:
            return self._subject
        if session not in self._of_session:
            subject, self._spare = self._spare, None
            if subject is None:
                subject = await self.runtime.call(produce, self._make)
            self._of_session[session] = subject
        return self._of_session[session]


class ConversationAgent(RunAgent):
    """A framework's agent that is one conversation: an adapted one for each session."""

    def __init__(
        self, subject: Any, make: Make, runtime: AgentRuntime, adapter: Callable[[Any], Any]
    ) -> None:
        super().__init__(subject, lambda: _adapted(make, adapter), runtime)
        self._spare = adapter(subject)

    async def on_session_start(self, session: Session) -> None:
        adapted = await self._subject_of(session)
        await self._call(adapted.on_session_start, session)

    async def on_message(self, session: Session, message: Message) -> Any:
        adapted = await self._subject_of(session)
        return await self._call(adapted.on_message, session, message)


async def _adapted(make: Make, adapter: Callable[[Any], Any]) -> Any:
    return adapter(await produce(make))


class RawAgent(HostedAgent):
    """An object with `serve(websocket)`: it has the connection to itself, and no sessions."""

    async def serve(self, websocket: Any) -> None:
        await self._call(self._subject.serve, self.runtime.dress_websocket(websocket))


class BlockingSession:
    """A session for code in threads, the turn's and the author's own: the same names, without `await`."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._token = trio.lowlevel.current_trio_token()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def emit(self, *args: Any, **kwargs: Any) -> None:
        self._await(partial(self._session.emit, *args, **kwargs))

    def confirm(self, *args: Any, **kwargs: Any) -> Any:
        return self._await(partial(self._session.confirm, *args, **kwargs))

    def _await(self, function: Callable[[], Awaitable[Any]]) -> Any:
        try:
            trio.from_thread.check_cancelled()
        except RuntimeError:  # a thread that the author started, as an executor does
            return trio.from_thread.run(function, trio_token=self._token)
        return trio.from_thread.run(function)  # in the turn's task, and cancelled with it


def adapt(subject: Any, make: Make | None = None, runtime: AgentRuntime | None = None) -> HostedAgent:
    """The agent for what a factory returned; `make` makes another one.

    Raises `AgentLoadError` when it is nothing that could answer a message.
    """
    runtime = runtime or TrioRuntime()
    if inspect.isclass(subject):
        name = subject.__name__
        raise AgentLoadError(f"the factory returned the class {name}: return an object of it, {name}()")
    if callable(getattr(subject, "serve", None)):
        check_methods(subject)
        return RawAgent(subject, runtime)
    if callable(on_message := getattr(subject, "on_message", None)):
        check_methods(subject)
        return FunctionAgent(subject, on_message, _session_first, runtime)
    if (adapter := adapters.find(subject)) is not None:
        if getattr(adapter, "holds_conversation", False):
            if make is None:
                raise AgentLoadError(
                    f"{_article(subject)} holds one conversation, and each client needs its own: "
                    "make it in `def create_agent():`, which is called for each session"
                )
            return ConversationAgent(subject, make, runtime, adapter)
        adapted = adapter(subject)
        return FunctionAgent(adapted, adapted.on_message, _session_first, runtime)
    if callable(subject) and not inspect.isclass(subject) and not hasattr(subject, "run"):
        return FunctionAgent(subject, subject, _arrangement(subject), runtime)
    if callable(run := getattr(subject, "run", None)) and takes(run, "text"):
        return RunAgent(subject, make, runtime)
    raise AgentLoadError(
        f"the factory returned {_article(subject)}, which cannot answer a message; return a function, "
        "or an object with on_message(session, message), run(text) or serve(websocket)"
        + ("" if type(subject).__module__ == "builtins" else _HOW_TO_WRAP)
    )


_HOW_TO_WRAP = """.
An object of a framework is wrapped in a function that calls it:

    def create_agent():
        theirs = ...                               # the object as the framework makes it

        async def agent(message, session):         # or `def`, which runs in a thread
            result = await theirs.its_method(str(message))
            return str(result)                     # or `yield` each piece of text as it comes

        return agent
"""


def needs(subject: Any) -> Runtime:
    """The runtime of an agent whose author says nothing of it.

    That of its framework; and an object with no more than `run`, like those of many an agent library, gets
    asyncio if that is imported already.
    """
    if hasattr(subject, "serve") or hasattr(subject, "on_message"):
        return Runtime.TRIO
    if adapters.find(subject) is not None:
        return Runtime.ASYNCIO
    return Runtime.ASYNCIO if hasattr(subject, "run") and "asyncio" in sys.modules else Runtime.TRIO


async def produce(make: Make) -> Any:
    """What a factory makes, be it async or not."""
    made = make()
    return await made if inspect.isawaitable(made) else made


def answer_text(answer: Any) -> Any:
    """What to show of the result object of a foreign `run`: its text, or what it is made of."""
    if answer is None or isinstance(answer, str | int | float | bool | list | dict):
        return answer
    for name in ("final_output", "output", "content", "text", "answer", "result"):
        if isinstance(text := getattr(answer, name, None), str):
            return text
    return str(answer)


def _session_first(session: Any, message: Message) -> tuple[Any, ...]:
    return session, message


def _message_only(session: Any, message: Message) -> tuple[Any, ...]:
    return (message,)


def _message_first(session: Any, message: Message) -> tuple[Any, ...]:
    return message, session


def _arrangement(function: Callable[..., Any]) -> Arrange:
    parameters = positional(function)
    # A second parameter that has a default and another name is the author's own business.
    arrange = _message_only
    if len(parameters) > 1:
        second = parameters[1]
        if second.default is second.empty or second.name == "session":
            arrange = _message_first
    arguments = ("message",) if arrange is _message_only else ("message", "session")
    if not takes(function, *arguments):
        name = getattr(function, "__qualname__", repr(function))
        raise AgentLoadError(
            f"{name}{inspect.signature(function)} cannot answer a message: write it as f(message) or "
            "f(message, session)"
        )
    return arrange


def _close(items: Generator[Any]) -> None:
    if inspect.getgeneratorstate(items) != inspect.GEN_RUNNING:
        items.close()


async def _itself(awaitable: Awaitable[Any]) -> Any:
    return await awaitable


def _for_threads(value: Any) -> Any:
    return BlockingSession(value) if isinstance(value, Session) else value


async def _stream(session: Session, items: ClosableIterator | AsyncIterator[Any]) -> Any:
    """Sends what a generator yields. Its answer is what it streamed: None."""
    async with aclosing(items):  # type: ignore[type-var]  # what is no generator has `aclose` too
        async for item in items:
            event = events.partial_answer(item) if isinstance(item, str) else as_event(item)
            await session.emit(event)


def _health(said: Any) -> Health:
    if said is None or said is True:
        return Health()
    if said is False:
        return Health("unhealthy")
    if isinstance(said, dict):
        detail = said.get("detail")
        return Health(shown(said.get("status", "healthy")), None if detail is None else shown(detail))
    if said in ("healthy", "degraded", "unhealthy"):
        return Health(shown(said))
    return Health("degraded", shown(said))


def _article(subject: Any) -> str:
    if subject is None:
        return "None"
    kind = type(subject)
    if kind.__module__ == "builtins":
        return f"a {kind.__name__}"
    return f"an object of the class {kind.__module__}.{kind.__name__}"
