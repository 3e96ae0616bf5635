"""Where a conversation is held: under which name, and by which instance."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from hashlib import sha256
from typing import TypeVar

from attrs import frozen

from ..protocol import ErrorCode
from . import history
from .door import Door, open_door
from .exchange import Exchange
from .problem import NotTaken, Problem
from .prompt import ChatMessage

_TRIES = 3  # of instances, until one holds the session
_ELSEWHERE = (ErrorCode.SESSION_ELSEWHERE, ErrorCode.DRAINING)
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
    def affinity(self) -> str | None:
        """By which the gateway finds the same instance again."""
        if self.name is None:
            return None
        return f"key-{sha256(repr((self.model, self.name, self.owner)).encode()).hexdigest()[:32]}"

    def question_key(self, said: tuple[ChatMessage, ...]) -> tuple[Place, str] | None:
        """The place of a turn that waits, by all that the client knows of the conversation; None where that
        does not end with a question.
        """
        if not history.asks(said):
            return None
        return self, "" if self.name else history.digest(said)

    def branch(self, number: int) -> str:
        """The name of a branch of its session, from 1."""
        return f"{self.name}~{number}" if number > 1 else str(self.name)


async def at_holder(
    exchange: Exchange, place: Place, stack: ExitStack, work: Callable[[Door], Awaitable[Worked]]
) -> Worked:
    """Works with the instance that holds the session of that name; the door is left with the stack.

    Raises `Problem`, `NoSessions`.
    """
    affinity = place.affinity
    for tries in range(_TRIES):
        with ExitStack() as tried:
            door = await open_door(exchange, place.model, session=affinity)
            tried.callback(door.leave)
            try:
                worked = await work(door)
            except NotTaken as error:
                if error.code not in _ELSEWHERE or tries == _TRIES - 1:
                    raise
                affinity = error.content.get("named", affinity)  # the gateway finds its holder by that
                continue
            stack.push(tried.pop_all())
            return worked
    raise AssertionError("the last try returns or raises")


def no_sessions(model: str) -> Problem:
    """Of a request that makes no sense without."""
    return Problem(400, "no_sessions", f"{model!r} keeps no sessions, so there is nothing to go on with.")
