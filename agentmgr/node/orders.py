"""The orders that a daemon has been given: each is done once, however often it is asked."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import trio

from ..errors import AgentManagerError
from .protocol import Answer, Failed, Order, Unknown

log = logging.getLogger(__name__)

Kind = TypeVar("Kind", bound=Order)
Handler = Callable[[Kind], Answer | Awaitable[Answer]]


class Orders:
    def __init__(self, answer: Callable[[str, Answer], None]) -> None:
        """`answer` sends one, if there is a link."""
        self._send = answer
        self._handlers: dict[type[Any], Handler[Any]] = {}
        self._answers: dict[str, Answer] = {}  #: that may not have arrived, by number
        self._under_way: dict[str, trio.CancelScope] = {}

    def handle(self, kind: type[Kind], handler: Handler[Kind]) -> None:
        self._handlers[kind] = handler

    def begin(self, number: str, order: Order | Unknown, nursery: trio.Nursery) -> None:
        """Answers it, now or when it is done; does nothing where it is under way."""
        if number in self._under_way:
            return
        if number in self._answers:
            self._send(number, self._answers[number])
            return
        if isinstance(order, Unknown) or type(order) not in self._handlers:
            name = order.name if isinstance(order, Unknown) else type(order).__name__
            self._done(number, Failed(f"it does not know the order {name}: update agentmgr on the node"))
            return
        try:
            answer = self._handlers[type(order)](order)
        except Exception as error:  # a fault in one order must not reach others
            self._done(number, _failed(order, error))
            return
        if isinstance(answer, Answer):
            self._done(number, answer)
        else:
            self._under_way[number] = trio.CancelScope()
            nursery.start_soon(self._do, number, order, answer)

    async def _do(self, number: str, order: Order, doing: Awaitable[Answer]) -> None:
        try:
            with self._under_way[number]:
                try:
                    answer = await doing
                except Exception as error:  # as above
                    answer = _failed(order, error)
                self._done(number, answer)
        finally:
            del self._under_way[number]

    def _done(self, number: str, answer: Answer) -> None:
        self._answers[number] = answer
        self._send(number, answer)

    def settle(self, number: str) -> None:
        """Its answer has arrived."""
        self._answers.pop(number, None)

    def cancel(self, number: str) -> None:
        """No answer is waited for any more."""
        self.settle(number)
        if (scope := self._under_way.get(number)) is not None:
            scope.cancel()

    def keep_only(self, numbers: frozenset[str]) -> None:
        """The manager waits for no others: it may be another one than before."""
        for number in {*self._answers, *self._under_way} - numbers:
            self.cancel(number)


def _failed(order: Order, error: Exception) -> Failed:
    if isinstance(error, OSError | AgentManagerError):
        return Failed(str(error))
    log.error("internal error: %s failed", type(order).__name__, exc_info=error)
    return Failed(f"internal error, its node's log has the traceback: {error!r}")
