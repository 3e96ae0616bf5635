"""A session: one conversation with one client, which outlives that client's connections.

It runs the client's messages as turns, one after another. What the agent says is numbered and kept in a
`ReplayBuffer`; the connection that serves the session, if there is one just now, reads from there.
"""

from __future__ import annotations

import math
import secrets
import sys
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import trio
from attrs import Factory, define, evolve

from .. import protocol
from ..boundary import Failure, attempt, contain, name_of, report
from ..models.choices import OnDisconnect, WhenBusy
from ..protocol import EndReason, ErrorCode
from . import history
from .budget import Budget, Offer
from .events import Event, as_event, encode, numbered
from .incoming import BadInput
from .limits import MAX_QUEUED, QUEUE_BYTES, REMEMBERED_STEPS, SESSION_BYTES, SessionLimits
from .message import Client, Decision, Message
from .replay import Reader, ReplayBuffer
from .turn import Turn
from .weight import weigh

ACK_PATIENCE_S = 5.0
STALL_S = 30.0
"""How long a turn waits for a connected client that does not read; then it goes on, and there is a gap."""
HOOK_TIMEOUT_S = 5.0
EMITS_PER_TURN = 16
"""Events an agent may say in a row before other tasks have their turn."""


class Agent(Protocol):
    """What `adapt` makes of whatever a factory returned. All of it runs under trio."""

    async def on_session_start(self, session: Session) -> None: ...
    async def on_message(self, session: Session, message: Message) -> Any: ...
    async def on_session_end(self, session: Session) -> None: ...
    def explain(self, error: BaseException) -> str | None: ...


@define(eq=False)
class _Question:
    answered: trio.Event = Factory(trio.Event)
    decision: Decision = Factory(lambda: Decision(False))


class Session:
    """What an author is handed: `id`, `state`, `history`, `client`, `emit` and `confirm`."""

    def __init__(
        self,
        session_id: str,
        agent: Agent,
        client: Client,
        limits: SessionLimits,
        budget: Budget,
        on_rest: Callable[[], None],
    ) -> None:
        """`on_rest` is called when a turn is over."""
        self.id = session_id  # whoever knows it may take up an anonymous session
        self.state: dict[str, Any] = {}
        self.history: list[dict[str, Any]] = []  #: turns before this one: `role` and `content`
        self.forgotten = 0  #: entries of the history that made room for newer ones
        self.client = client
        self.owner = client.identity
        self.limits = limits
        self.buffer = ReplayBuffer(max_events=limits.buffer_events, max_bytes=limits.buffer_bytes)
        self.last_used = trio.current_time()
        self.ended = False
        self.end_reason = EndReason.TIMEOUT
        self._agent = agent
        self._event_prefix = f"evt_{secrets.token_hex(4)}"
        self._life = trio.CancelScope()
        self._turns: deque[Turn] = deque()  # the first of them runs
        self._arrival = trio.Event()
        self._steps: deque[int] = deque(maxlen=REMEMBERED_STEPS)  # hashes: an id may be long
        self._questions: dict[str, _Question] = {}
        self._reader: Reader | None = None
        self._on_rest = on_rest
        self._news: Callable[[], None] = _no_link
        self._on_taken: Callable[[], None] = _no_link
        self._read = trio.lowlevel.ParkingLot()
        self._budget, self._share = budget, budget.share(self._give_up)
        self._history_bytes = 0
        self._client_bytes = weigh(dict(client.headers))
        self.account()

    def __repr__(self) -> str:
        return f"<Session {self.id[:8]}…>"  # the whole id is a secret

    # For the author.

    async def emit(
        self,
        event: str | Event | Mapping[str, Any],
        content: Any = "",
        *,
        metadata: Mapping[str, Any] | None = None,
        step_id: str | None = None,
    ) -> None:
        """Sends one event to the client, now or when it comes back.

        Waits while a connected client is so far behind that it would miss something. Raises `TypeError`
        or `ValueError` for what JSON cannot say.
        """
        made = Event(event, content, metadata or {}, step_id) if isinstance(event, str) else as_event(event)
        # A checkpoint, as trio asks for; the costly half of it, letting others run, only so often: most
        # agents wait for something else between two words anyway.
        if self.buffer.last_seq % EMITS_PER_TURN:
            await trio.lowlevel.checkpoint_if_cancelled()
        else:
            await trio.lowlevel.checkpoint()
        await self._say(made)

    async def confirm(
        self, tool: str, args: Any = None, *, message: str = "", timeout_s: float | None = None
    ) -> Decision:
        """Asks the person at the other end. No answer in time means no."""
        timeout_s = self.limits.confirm_timeout if timeout_s is None else timeout_s
        step_id = f"ask_{secrets.token_hex(8)}"
        question = self._questions[step_id] = _Question()
        content = {"tool": tool, "args": args, "message": message, "timeout_s": timeout_s}
        try:
            await self.emit(protocol.USER_CONFIRM, content, step_id=step_id)
            with trio.move_on_after(timeout_s):
                await question.answered.wait()
        finally:
            self._questions.pop(step_id, None)
        return question.decision

    # For the connection.

    @property
    def connected(self) -> bool:
        return self._reader is not None

    @property
    def busy(self) -> bool:
        return bool(self._turns)

    @property
    def asking(self) -> str | None:
        """The `step_id` of the oldest question that waits for its answer."""
        return next(iter(self._questions), None)

    def attach(
        self, client: Client, after: int, *, news: Callable[[], None], on_taken: Callable[[], None]
    ) -> Reader:
        """Gives the session to a connection, from the event after `after` on; another one loses it."""
        if self._reader is not None:
            self._on_taken()
        self.client, self._client_bytes = client, weigh(dict(client.headers))
        self._reader = Reader(self.buffer, sent=min(after, self.buffer.last_seq))
        self._news, self._on_taken = news, on_taken
        for turn in self._turns:
            turn.scope.deadline = math.inf
        self._used()
        return self._reader

    def detach(self, reader: Reader) -> None:
        """The connection is gone. What becomes of a running turn is the service's choice."""
        if self._reader is not reader:
            return
        self._reader = None
        self._news = self._on_taken = _no_link
        self._read.unpark_all()
        if self.limits.on_disconnect is OnDisconnect.CANCEL:
            for turn in self._turns:
                turn.scope.deadline = trio.current_time() + self.limits.disconnect_grace
        self._used()
        self.account()

    def progressed(self) -> None:
        """The connection has read or acknowledged something: a waiting turn may go on."""
        self._read.unpark_all()
        if not self._turns:
            self._offer()  # the replay of what it has read

    def accept(self, message: Message, step_id: str | None, size: int) -> None:
        """Takes a message, whose content takes `size` bytes, as the next turn.

        Raises `BadInput`: `busy`, `queue_full`, `host_full`, `duplicate`.
        """
        size += sys.getsizeof(message)
        if step_id is not None and hash(step_id) in self._steps:
            raise BadInput(ErrorCode.DUPLICATE, "a message with this step_id was taken before")
        if self._turns and self.limits.when_busy is WhenBusy.REJECT:
            raise BadInput(ErrorCode.BUSY, "a turn is running; send the message again when it has ended")
        if len(self._turns) > MAX_QUEUED:
            raise BadInput(ErrorCode.QUEUE_FULL, f"{MAX_QUEUED} messages wait already")
        if self._turns and size + sum(turn.size for turn in self._turns) > QUEUE_BYTES:
            raise BadInput(ErrorCode.QUEUE_FULL, f"the waiting messages would be over {QUEUE_BYTES} bytes")
        self._budget.require(size)
        if self._turns and self.limits.when_busy is WhenBusy.INTERRUPT:
            self.cancel("a newer message")
        self._steps.append(hash(step_id or ""))
        self._turns.append(Turn(message, step_id or f"turn_{secrets.token_hex(8)}", size))
        self._arrival.set()
        self._used()
        self.account()

    def cancel(self, reason: str = "cancelled by the client", *, step_id: str | None = None) -> bool:
        """Stops the running turn, or only the one of `step_id`, and says so at once.

        False when it does not run.
        """
        turn = self._turns[0] if self._turns else None
        if turn is None or turn.ended_by is not None or step_id not in (None, turn.step_id):
            return False
        self.publish(Event(protocol.INTERRUPTED, {"reason": reason}))
        turn.scope.cancel()
        return True

    def answer(self, step_id: str, content: Any) -> None:
        """A person's answer to a question. Raises `BadInput`: `unknown_step`, `invalid_field`."""
        fields = content if isinstance(content, Mapping) else {"confirmed": content}
        approved = fields.get("confirmed", fields.get("approved"))
        if not isinstance(approved, bool):
            raise BadInput(ErrorCode.INVALID_FIELD, "content.confirmed must be true or false")
        question = self._questions.pop(step_id, None)
        if question is None:
            raise BadInput(ErrorCode.UNKNOWN_STEP, "no question with this step_id is open; it counts once")
        question.decision = Decision(approved, fields)
        question.answered.set()

    def snapshot(self) -> dict[str, Any]:
        """What `user.request_state` shows."""
        shown = history.show(self.state, self.history, self.forgotten)
        return {**shown, "last_seq": self.buffer.last_seq, "busy": self.busy}

    # Its life.

    async def run(self) -> None:
        """Turn after turn, until it was without a connection for `session_timeout`, or `end` is called."""
        with self._life:
            failed = await contain(self._run_turns)
            if isinstance(failed, Failure):
                self.publish(self._error(failed))
                self.end_reason = EndReason.FAILED
        self._turns.clear()
        self.ended = True
        self._offer()
        self.publish(Event(protocol.SESSION_END, {"reason": self.end_reason}))
        with trio.move_on_after(HOOK_TIMEOUT_S, shield=True):
            ended = await contain(lambda: self._agent.on_session_end(self))
            if isinstance(ended, Failure):
                report("on_session_end failed", ended.error)

    async def _run_turns(self) -> None:
        """Until cancelled. Raises what `on_session_start` does."""
        await self._agent.on_session_start(self)
        while True:
            while not self._turns:
                self._arrival = trio.Event()
                await self._arrival.wait()
            await trio.lowlevel.checkpoint_if_cancelled()  # the author's code may have swallowed it
            await self._take(self._turns[0])
            self._turns.popleft()
            self._used()
            self.account()
            self._news()  # also where the event that ends the turn was sent long before
            self._on_rest()

    def end(self, reason: EndReason) -> None:
        """Ends the session and the turn that runs; the client gets an `agent.session_end` with the reason."""
        self.end_reason = reason
        self._life.cancel()

    async def _take(self, turn: Turn) -> None:
        """One turn; it ends with exactly one event, whatever the author's code does."""
        # Twice contained: code that leaves a scope or a nursery open, as an abandoned generator does, makes
        # our own scopes fail.
        end = await contain(lambda: self._work_on(turn))
        if isinstance(end, Failure):
            end = self._error(end)
        said = await contain(lambda: self._say(end))
        if isinstance(said, Failure):  # an answer that JSON cannot say
            await self._say(self._error(said))

    async def _work_on(self, turn: Turn) -> Event:
        """The event that ends the turn."""
        if turn.given_up:
            reason = "the host needed its room while the client was away"
            return Event(protocol.INTERRUPTED, {"reason": reason})
        with turn.scope:
            if turn.scope.cancel_called:  # it waited for longer than its client may be away
                return Event(protocol.INTERRUPTED, {"reason": "the client went away"})
            limit = self.limits.turn_timeout or math.inf
            with trio.move_on_after(limit) as clock:
                answer = await contain(lambda: self._agent.on_message(self, turn.message))
                if isinstance(answer, Failure):
                    return self._error(answer)
                if answer is not None:
                    return Event(protocol.FINAL_ANSWER, answer)
                return Event(
                    protocol.FINAL_ANSWER, turn.streamed, {"truncated": True} if turn.truncated else {}
                )
            if clock.cancelled_caught:
                return Event(protocol.TIMEOUT, {"timeout_s": limit})
        return Event(protocol.INTERRUPTED, {"reason": "the client went away"})

    def _remember(self, turn: Turn, end: Event) -> None:
        if not turn.given_up:
            forgotten, self._history_bytes = history.remember(self.history, turn, end)
            self.forgotten += forgotten

    async def _say(self, event: Event) -> None:
        text = self._encode(event)
        if self._reader is not None and self.buffer.would_lose(self._reader.needed_from, len(text)):
            await self._wait_for_client(len(text))
        self._append(event, text)

    def publish(self, event: Event) -> None:
        """Says something at once, though a client that is far behind may miss what came before it."""
        self._append(event, self._encode(event))

    def _encode(self, event: Event) -> bytes:
        turn = self._turns[0] if self._turns else None
        if turn is not None and event.event in protocol.TURN_ENDS:
            event = evolve(event, step_id=turn.step_id)  # how a client knows which of its messages it ends
        return encode(event, session_id=self.id, step_id=turn.step_id if turn else None)

    def _append(self, event: Event, text: bytes) -> None:
        """Numbers an event, keeps it, and wakes the connection. A turn that has ended says no more."""
        turn = self._turns[0] if self._turns else None
        if turn is not None and turn.ended_by is not None:
            return
        seq = self.buffer.last_seq + 1
        self.buffer.append(numbered(text, seq, f"{self._event_prefix}-{seq}"))
        if turn is not None:
            if event.event == protocol.PARTIAL_ANSWER and isinstance(event.content, str):
                turn.stream(event.content)
            elif event.event in protocol.TURN_ENDS:
                turn.ended_by = event.event
                # `history` is the author's to change, and so need not be a list any more.
                remembered = attempt(lambda: self._remember(turn, event))
                if isinstance(remembered, Failure):
                    report("session.history cannot be added to", remembered.error)
        self.account()
        if not self._budget.make_room():
            # What an agent says cannot be refused: what it said before makes room.
            self.buffer.give_up(self._budget.used - self._budget.limit)
            self.account()
        self._news()

    def _error(self, failure: Failure) -> Event:
        error_id, name = f"err_{secrets.token_hex(6)}", name_of(failure.error)
        report(f"{error_id} in session {self.id[:8]}…", failure.error)
        why = attempt(lambda: self._agent.explain(failure.error))
        if not isinstance(why, str):
            why = f"its log has the details under {error_id}"
        text = f"the agent failed with {name}; {why}"
        return Event(protocol.AGENT_ERROR, {"error_id": error_id, "type": name, "message": text})

    async def _wait_for_client(self, size: int) -> None:
        # First for its acknowledgements, if it gives any: what is on the way could still get lost. One that
        # is late with them is then taken to have received what it was sent, which is likely and not certain.
        with trio.move_on_after(ACK_PATIENCE_S) as patience:
            await self._wait_for_room(size)
        if patience.cancelled_caught and self._reader is not None:
            self._reader.acks = False
            with trio.move_on_after(STALL_S):
                await self._wait_for_room(size)

    async def _wait_for_room(self, size: int) -> None:
        while self._reader is not None and self.buffer.would_lose(self._reader.needed_from, size):
            await self._read.park()

    def _used(self) -> None:
        """Resets the clock that runs while no client is connected and no turn runs."""
        self.last_used = trio.current_time()
        idle = self._reader is None and not self._turns and self.limits.session_timeout
        self._life.deadline = self.last_used + self.limits.session_timeout if idle else math.inf
        self._offer()

    # What it holds.

    def account(self) -> None:
        """Says what it holds now; nothing once it has ended and its last event is read."""
        held = 0
        if not self.ended or self._reader is not None:
            held = SESSION_BYTES + self._client_bytes + self._history_bytes + self.buffer.bytes_held
            held += sum(turn.bytes_held for turn in self._turns)
        self._share.hold(held)

    def _offer(self) -> None:
        if self.ended:
            offer = None
        elif self._turns:
            offer = Offer.WAITING if self._reader is None and len(self._turns) > 1 else None
        else:
            offer = Offer.ABSENT if self._reader is None else Offer.DELIVERED
        self._share.offer(offer)

    def _give_up(self) -> None:
        """What it offers, as far as there is any."""
        if self._reader is not None:
            self.buffer.forget(self._reader.needed_from - 1)
        elif self._turns:
            for turn in list(self._turns)[1:]:
                turn.give_up()
        else:
            self.buffer.forget(self.buffer.last_seq)
            attempt(self._forget_history)
        self.account()

    def _forget_history(self) -> None:
        self.forgotten += len(self.history)
        self._history_bytes = 0
        self.history.clear()


def _no_link() -> None:
    """Stands in for the callbacks of a link."""
