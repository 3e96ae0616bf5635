"""Contains what an agent's code raises: it ends one turn or session, not the process or another session.

An author's code may raise anything: `sys.exit()`, the `CancelledError` of an asyncio loop of its own, a
`BaseException` of a library's, a group of all of them. Two exceptions are the host's own, and go on:

* `trio.Cancelled`, while a scope around the boundary is cancelled. One that an author raised by hand, or kept
  from another scope, arrives while none is.
* `KeyboardInterrupt`, if a signal's handler raised it.

The text that describes an author's exception is made here too: its `__str__` may raise, or may return
megabytes, or half of a character.
"""

from __future__ import annotations

import logging
import math
import traceback
from collections.abc import Awaitable, Callable, Iterator
from types import TracebackType
from typing import TypeVar

import trio
from attrs import frozen

from .errors import leaves, members_of

T = TypeVar("T")

logger = logging.getLogger(__name__)

MAX_NAME = 100
MAX_MESSAGE = 1000
MAX_TRACEBACK = 32 * 1024
"""Characters. A traceback of Python's own is a few thousand; what is longer is the text of its exceptions."""
MAX_CAUSES = 100


@frozen
class Failure:
    """What an author's code raised instead of returning."""

    error: BaseException


async def contain(work: Callable[[], Awaitable[T]]) -> T | Failure:
    """Awaits `work`; an exception of the author's becomes a value, the host's own goes on."""
    try:
        return await work()
    # Of the author's code, which may raise any; `_failure` raises again what is the host's own.
    except BaseException as error:  # noqa: ASYNC103
        return _failure(error)  # noqa: ASYNC104


def attempt(work: Callable[[], T]) -> T | Failure:
    """Calls `work`, as `contain` awaits it."""
    try:
        return work()
    except BaseException as error:  # noqa: ASYNC103 - as above
        return _failure(error)  # noqa: ASYNC104


def name_of(error: BaseException) -> str:
    """The name of its class."""
    return _text(lambda: type(error).__name__, MAX_NAME, otherwise="an exception without a name")


def message_of(error: BaseException) -> str:
    """What `str` makes of it; or that it makes nothing."""
    return shown(error, otherwise=f"<the str() of {name_of(error)} failed>")


def shown(value: object, *, otherwise: str = "<its str() failed>") -> str:
    """What `str` makes of an author's value, bounded, in valid Unicode."""
    return _text(lambda: str(value), MAX_MESSAGE, otherwise=otherwise)


def describe(error: BaseException) -> str:
    """The name of its class, and what it says."""
    message = message_of(error)
    return f"{name_of(error)}: {message}" if message else name_of(error)


def traceback_of(error: BaseException, *, skip: Callable[[TracebackType], bool] | None = None) -> str:
    """The traceback as Python prints it, without the frames at its start that are to be skipped."""

    def printed() -> str:
        tb = error.__traceback__
        while skip is not None and tb is not None and skip(tb):
            tb = tb.tb_next
        return "".join(traceback.format_exception(type(error), error, tb)).rstrip()

    return _text(printed, MAX_TRACEBACK, otherwise=describe(error))


def report(what: str, error: BaseException, *, level: int = logging.ERROR) -> None:
    """Logs it with its traceback. Does not fail, though an author's own log handlers may."""
    if logger.isEnabledFor(level):
        attempt(lambda: logger.log(level, "%s\n%s", what, traceback_of(error)))


def causes(error: BaseException) -> Iterator[BaseException]:
    """The exception, the members of a group, and what each was raised from; each once, 100 at most."""
    pending, seen = [error], set[int]()
    while pending and len(seen) < MAX_CAUSES:
        found = pending.pop()
        if id(found) in seen:  # as `raise error from error` makes them
            continue
        seen.add(id(found))
        yield found
        before = found.__context__ if found.__cause__ is None else found.__cause__
        if before is not None:
            pending.append(before)
        pending += members_of(found)[:MAX_CAUSES]


def _failure(error: BaseException) -> Failure:
    """Raises instead what is the host's own."""
    found = list(leaves(error))
    own = [leaf for leaf in found if _is_the_hosts(leaf)]
    if not own:
        return Failure(error)
    if len(own) < len(found):
        report("failed while being cancelled", error)
    raise own[0] from None


def _is_the_hosts(error: BaseException) -> bool:
    if type(error) is trio.Cancelled:
        return trio.lowlevel.in_trio_task() and trio.current_effective_deadline() == -math.inf
    return type(error) is KeyboardInterrupt and _is_of_a_signal(error)


def _is_of_a_signal(error: KeyboardInterrupt) -> bool:
    """Whether it was raised in trio's handler of SIGINT, or where that one has it raised."""
    tb = error.__traceback__
    while tb is not None and tb.tb_next is not None:
        tb = tb.tb_next
    return tb is not None and str(tb.tb_frame.f_globals.get("__name__")).startswith("trio._core.")


def _text(make: Callable[[], str], limit: int, *, otherwise: str) -> str:
    made = attempt(make)
    if isinstance(made, Failure):
        return otherwise
    text = str.__str__(made)  # `str` may also give an instance of a subclass, with methods of its own
    if len(text) > limit:
        half = limit // 2
        text = f"{text[:half]}… {len(text) - 2 * half} characters left out …{text[-half:]}"
    return text.encode("utf-8", "backslashreplace").decode()
