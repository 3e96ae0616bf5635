"""A session: one conversation with one client, which outlives that client's connections.

It runs the client's messages as turns, one after another. What the agent says is numbered and kept in a
`ReplayBuffer`; the connections that read the session, if there are any just now, read from there. One that is
durable hands all that happens to its `Keeping`, and clients are given an event when that has committed it.
"""

from __future__ import annotations

import math
import secrets
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import trio
from attrs import Factory, define, evolve

from .. import protocol
from ..boundary import Failure, attempt, contain, name_of, report
from ..journal.journal import Held, SessionJournal
from ..models.choices import OnCrash, OnDisconnect, WhenBusy
from ..protocol import EndReason, ErrorCode, NoticeCode, TurnCode
from . import history, restoring
from .budget import Budget, Offer
from .events import Event, as_event, compact, expand
from .incoming import BadInput
from .keeping import Keeping, NotDurable, tokens
from .limits import MAX_JUMP, MAX_QUEUED, QUEUE_BYTES, REMEMBERED_STEPS, SESSION_BYTES, SessionLimits, weigh
from .message import Client, Decision, Message
from .readers import Link, Readers
from .replay import Gap, Reader, ReplayBuffer
from .turn import Turn

HOOK_TIMEOUT_S = 5.0
ENVELOPE_BYTES = 512  #: what an event has beside its content, at most
EMITS_PER_TURN = 16
"""Events an agent may say in a row before other tasks have their turn."""


class Agent(Protocol):
    """What `adapt` makes of whatever a factory returned. All of it runs under trio."""

    async def on_session_start(self, session: Session) -> None: ...
    async def on_message(self, session: Session, message: Message) -> Any: ...
    async def on_session_end(self, session: Session) -> None: ...
    async def export_memory(self, session: Session) -> str | None: ...
    async def import_memory(self, session: Session, text: str) -> None: ...
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
        *,
        name: str | None = None,
        on_rest: Callable[[], None],
    ) -> None:
        """`on_rest` is called when a turn is over."""
        self.id = session_id  # whoever knows it may take up an anonymous session
        self.name = name
        self.state: dict[str, Any] = {}
        self.history: list[dict[str, Any]] = []  #: turns before this one: `role` and `content`
        self.forgotten = 0  #: entries of the history that made room for newer ones
        self.restored = False  #: it was in memory before, here or in another process, and came back
        self.client = client
        self.owner = client.identity
        self.limits = limits
        self.buffer = ReplayBuffer(max_events=limits.buffer_events, max_bytes=limits.buffer_bytes)
        self.input_tokens = self.output_tokens = 0
        self.last_used = trio.current_time()
        self.last_turn = 0
        self.ended = False  #: no event comes any more
        self.end_reason: EndReason | None = EndReason.TIMEOUT  #: None: it goes on, later or elsewhere
        self.broken: str | None = None  #: why its author's code could not take it up
        self.started = trio.Event()  #: its author's code has taken it up, or could not
        self.gone = trio.Event()
        self._agent = agent
        self._life = trio.CancelScope()
        self._turns: deque[Turn] = deque()  # the first of them runs
        self._arrival = trio.Event()
        self._steps: deque[int] = deque(maxlen=REMEMBERED_STEPS)  # hashes: an id may be long
        self._questions: dict[str, _Question] = {}
        self._keeping: Keeping | None = None
        self._lost = False  # another instance holds it
        self._readers = Readers(self.buffer)
        self._on_rest = on_rest
        self._budget, self._share = budget, budget.share(self._give_up)
        self._history_bytes = 0
        self._client_bytes = weigh(dict(client.headers))
        self.account()

    def seed(self, entries: list[history.Entry]) -> None:
        """The history that it begins with."""
        self.history = entries
        self.forgotten, self._history_bytes = history.trim(self.history)
        self.account()

    def keep(self, held: Held, journal: SessionJournal, notes: NotDurable) -> None:
        """From now on it is durable."""
        self.buffer.journaled = True
        self.end_reason = None
        self._keeping = Keeping(self, held, journal, notes)
        self._keeping.knows(self.history)

    async def restore(self, held: Held, journal: SessionJournal, notes: NotDurable) -> None:
        """Makes it what the journal has of it, before it runs."""
        record, found = held.loaded.record, restoring.read(held.loaded, self.limits)
        self.restored = True
        self.state, self.history, self.forgotten = found.state, found.history, found.forgotten
        self._history_bytes = found.history_bytes
        self.last_turn = record.last_turn
        self.input_tokens, self.output_tokens = record.input_tokens, record.output_tokens
        self.buffer.restore(found.frames, record.last_seq)
        self._steps.extend(hash(step_id) for step_id in found.steps)
        self.keep(held, journal, notes)
        assert self._keeping is not None
        for question in held.loaded.questions:
            self._keeping.answered(question.step_id)
        for turn in found.turns:
            if turn.lost:
                restoring.streamed_before(turn, await self._keeping.said_in(turn, found.frames))
            self._turns.append(turn)
        self._arrival.set()
        if self._turns and self._turns[0].attempts and not self._turns[0].lost:
            said = "the instance died in this turn, which runs again: what was streamed before does not count"
            self.publish(Event(protocol.NOTICE, {"code": NoticeCode.TURN_RESTARTED, "message": said}))
        if self.limits.on_disconnect is OnDisconnect.CANCEL:
            for turn in self._turns:
                turn.scope.deadline = trio.current_time() + self.limits.disconnect_grace
        self._used()
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
            if self._keeping is not None:
                self._keeping.asked(step_id, content)
            await self.emit(protocol.USER_CONFIRM, content, step_id=step_id)
            with trio.move_on_after(timeout_s):
                await question.answered.wait()
        finally:
            self._questions.pop(step_id, None)
            if self._keeping is not None:
                self._keeping.answered(step_id)
        return question.decision

    # For the connection.

    @property
    def connected(self) -> bool:
        return bool(self._readers)

    @property
    def busy(self) -> bool:
        return bool(self._turns)

    @property
    def at_rest(self) -> bool:
        """Whether nothing goes on in it, and all that it said may be read."""
        return not self._turns and self.buffer.visible == self.buffer.last_seq

    @property
    def durable(self) -> bool:
        return self._keeping is not None

    @property
    def leaving(self) -> bool:
        """Whether it is about to leave memory."""
        return self._life.cancel_called

    @property
    def asking(self) -> str | None:
        """The `step_id` of the oldest question that waits for its answer."""
        return next(iter(self._questions), None)

    @property
    def unfinished(self) -> list[Turn]:
        return [turn for turn in self._turns if turn.ended_by is None]

    def attach(self, link: Link, client: Client, after: int, *, exclusive: bool = False) -> Reader:
        """Has a connection read it, from the event after `after` on; if `exclusive`, no other one."""
        others = self._readers.links if exclusive else []
        self.client, self._client_bytes = client, weigh(dict(client.headers))
        if self.durable and 0 < after - self.buffer.last_seq <= MAX_JUMP:
            # The host before could not write, and sent more than the journal has: no number is used again.
            self.buffer.jump(after)
        reader = self._readers.add(link, after)
        for other in others:
            other.lose(self)
        for turn in self._turns:
            turn.scope.deadline = math.inf
        self._used()
        return reader

    def detach(self, reader: Reader) -> None:
        """A connection is gone. What becomes of a running turn without one is the service's choice."""
        if not self._readers.remove(reader) or self._readers:
            return
        if self.limits.on_disconnect is OnDisconnect.CANCEL:
            for turn in self._turns:
                turn.scope.deadline = trio.current_time() + self.limits.disconnect_grace
        self._used()
        self.account()

    def progressed(self) -> None:
        """A connection has read something: a waiting turn may go on."""
        self._readers.moved()
        if not self._turns:
            self._offer()  # the replay of what it has read

    def ack(self, reader: Reader, seq: int) -> None:
        """A client has all up to `seq`."""
        self._readers.ack(reader, seq)
        self.progressed()

    async def fill(self, reader: Reader) -> Gap | None:
        """Gives a reader what is not in memory any more; the gap where the journal has nothing either."""
        assert self._keeping is not None
        gap = await self._keeping.fill(reader)
        self.account()
        return gap

    def accept(self, message: Message, step_id: str | None, size: int) -> None:
        """Takes a message, whose content takes `size` bytes, as the next turn.

        Raises `BadInput`: `busy`, `queue_full`, `host_full`, `duplicate`, `session_unreachable`.
        """
        if self.durable and self.leaving:
            raise BadInput(ErrorCode.SESSION_UNREACHABLE, "the session leaves this instance; connect again")
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
        self.last_turn += 1
        turn = Turn(message, step_id or f"turn_{secrets.token_hex(8)}", size, self.last_turn)
        self._turns.append(turn)
        if self._keeping is not None:
            turn.accepted_at = time.time()
            self._keeping.accepted(turn)
        self._arrival.set()
        self._used()
        self.account()

    def cancel(self, reason: str = "cancelled by the client", *, step_id: str | None = None) -> bool:
        """Stops the running turn, or only the one of `step_id`, and says so at once.

        False when it does not run.
        """
        turn = self._turns[0] if self._turns else None
        if turn is None or turn.is_over or step_id not in (None, turn.step_id):
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
        return {**shown, "last_seq": self.buffer.visible, "busy": self.busy}

    # Its life.

    async def run(self) -> None:
        """Turn after turn, until `end` or `leave` is called, or it is not used for so long as limits say."""
        with self._life:
            failed = await contain(self._run_turns)
            if isinstance(failed, Failure):
                error = self._error(failed)
                if self.restored:  # it can go on when the agent's fault is mended
                    self.broken = error.content["message"]
                    self._send_clients_back()
                else:
                    self.publish(error)
                    self.end_reason = EndReason.FAILED
        self.started.set()
        self._life.cancel()
        self._turns.clear()
        if self.end_reason is not None:
            self.ended = True
            self._offer()
            self.publish(Event(protocol.SESSION_END, {"reason": self.end_reason}))
        with trio.move_on_after(HOOK_TIMEOUT_S, shield=True):
            ended = await contain(lambda: self._agent.on_session_end(self))
            if isinstance(ended, Failure):
                report("on_session_end failed", ended.error)
        if self._keeping is not None:
            with trio.move_on_after(HOOK_TIMEOUT_S, shield=True):
                if self.end_reason is None:
                    self._keeping.look(self.state, None)
                await self._keeping.release()
        self.ended = True
        self._readers.wake()
        self.account()
        self.gone.set()

    async def _run_turns(self) -> None:
        """Until cancelled. Raises what `on_session_start` does."""
        await self._agent.on_session_start(self)
        if self._keeping is not None and (memory := self._keeping.memory) is not None:
            read = await contain(lambda: self._agent.import_memory(self, memory))
            if isinstance(read, Failure):
                report("import_memory failed: the agent does not remember the turns before", read.error)
        self.started.set()
        while True:
            while not self._turns:
                self._arrival = trio.Event()
                await self._arrival.wait()
            await trio.lowlevel.checkpoint_if_cancelled()  # the author's code may have swallowed it
            await self._take(self._turns[0])
            self._turns.popleft()
            self._used()
            self.account()
            self._readers.wake()  # also where the event that ends the turn was sent long before
            self._on_rest()

    def end(self, reason: EndReason) -> None:
        """Ends the session and the turn that runs; the client gets an `agent.session_end` with the reason."""
        self.end_reason = reason
        self._life.cancel()

    def leave(self) -> None:
        """Ends this copy, because its process ends or needs the room; one that is in memory only ends.

        A turn that runs does not go on. Messages that wait are answered where the session is taken up.
        """
        if not self.durable:
            self.end(EndReason.RESTART)
            return
        turn = self._turns[0] if self._turns else None
        if turn is not None and turn.attempts and not turn.is_over and not self.leaving:
            if self.limits.on_crash is OnCrash.RETRY:
                turn.left = True
            else:
                reason = "the service was stopped or restarted, and did not wait longer for this turn"
                content = {"reason": reason, "code": TurnCode.SERVICE_STOPPED}
                self.publish(Event(protocol.INTERRUPTED, content))
        self._life.cancel()

    def lose(self) -> None:
        """Another instance holds it now: nothing that is said here counts."""
        self._lost = True
        self._send_clients_back()
        self._life.cancel()

    def _send_clients_back(self) -> None:
        for link in self._readers.links:
            link.must_come_back()

    def show(self, seq: int) -> None:
        """All events up to `seq` are committed."""
        self.buffer.visible = max(self.buffer.visible, seq)
        self._readers.wake()
        self._readers.moved()

    async def _take(self, turn: Turn) -> None:
        """One turn; it ends with exactly one event, whatever the author's code does."""
        # Twice contained: code that leaves a scope or a nursery open, as an abandoned generator does, makes
        # our own scopes fail.
        end = await contain(lambda: self._work_on(turn))
        if isinstance(end, Failure):
            end = self._error(end)
        if self._keeping is not None:
            end = await self._keep_of(turn, end, self._keeping)
        said = await contain(lambda: self._say(end))
        if isinstance(said, Failure):  # an answer that JSON cannot say
            await self._say(self._error(said))
        if self._keeping is not None:
            self._keeping.flush()

    async def _keep_of(self, turn: Turn, end: Event, keeping: Keeping) -> Event:
        """Has what the author and a framework keep committed with the turn's end, which it returns."""
        memory: str | None = None
        with trio.move_on_after(HOOK_TIMEOUT_S):
            exported = await contain(lambda: self._agent.export_memory(self))
            if isinstance(exported, Failure):
                report("export_memory failed", exported.error)
            else:
                memory = exported
        too_large = keeping.look(self.state, memory)
        if too_large is None:
            return end
        attempt(lambda: keeping.put_back(self.state))
        return Event(protocol.AGENT_ERROR, {"code": TurnCode.STATE_TOO_LARGE, "message": too_large})

    async def _work_on(self, turn: Turn) -> Event:
        """The event that ends the turn."""
        if turn.given_up:
            reason = "the host needed its room while the client was away"
            return Event(protocol.INTERRUPTED, {"reason": reason})
        if turn.lost:
            said = "the instance died in this turn; what it had done by then may not be all that was streamed"
            return Event(protocol.AGENT_ERROR, {"code": TurnCode.INSTANCE_LOST, "message": said})
        with turn.scope:
            if turn.scope.cancel_called:  # it waited for longer than its client may be away
                return Event(protocol.INTERRUPTED, {"reason": "the client went away"})
            turn.attempts += 1
            turn.message.attempt = turn.attempts
            if self._keeping is not None:
                turn.started_at = time.time()
                self._keeping.started(turn)
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

    async def _say(self, event: Event) -> None:
        line = self._line(event)
        size = len(line) + ENVELOPE_BYTES
        if self._readers.must_wait(size):
            await self._readers.wait_for_room(size)
        self._append(event, line)

    def publish(self, event: Event) -> None:
        """Says something at once, though a client that is far behind may miss what came before it."""
        self._append(event, self._line(event))

    def _line(self, event: Event) -> bytes:
        turn = self._turns[0] if self._turns else None
        if turn is not None and event.event in protocol.TURN_ENDS:
            event = evolve(event, step_id=turn.step_id)  # how a client knows which of its messages it ends
        return compact(event, session_id=self.id, step_id=turn.step_id if turn else None)

    def _append(self, event: Event, line: bytes) -> None:
        """Numbers an event, keeps it, and wakes the connections. A turn that has ended says no more."""
        turn = self._turns[0] if self._turns else None
        if self._lost or (turn is not None and turn.is_over):
            return
        seq = self.buffer.last_seq + 1
        step_id = turn.step_id if turn is not None else None
        self.buffer.append(expand(line, seq, session_id=self.id, step_id=step_id))
        name = event.event
        if name == protocol.USAGE:
            more = tokens(event.content)
            self.input_tokens, self.output_tokens = self.input_tokens + more[0], self.output_tokens + more[1]
        if turn is not None and name in protocol.TURN_ENDS:
            turn.ended_by = name
            answer = self._remember(turn, event)
            if self._keeping is not None:
                self._keeping.ended_turn(seq, turn, line, answer)
        else:
            if turn is not None and name == protocol.PARTIAL_ANSWER and isinstance(event.content, str):
                turn.stream(event.content)
            if self._keeping is not None:
                self._keeping.said(seq, turn, event, line, last=self.ended)
        self.account()
        if not self._budget.make_room():
            # What an agent says cannot be refused: what it said before makes room.
            self.buffer.give_up(self._budget.used - self._budget.limit)
            self.account()
        self._readers.wake()

    def _remember(self, turn: Turn, end: Event) -> history.Entry | None:
        """Adds a turn to the history. Returns the entry of its answer, if there is one."""
        if turn.given_up:
            return None
        added = history.entries(turn, end)
        # `history` is the author's to change, and so need not be a list any more.
        remembered = attempt(lambda: self._add(added, turn))
        if isinstance(remembered, Failure):
            report("session.history cannot be added to", remembered.error)
        return added[1] if len(added) > 1 else None

    def _add(self, added: list[history.Entry], turn: Turn) -> None:
        changed = self._keeping is not None and self._keeping.is_changed(self.history)
        self.history += added
        forgotten, self._history_bytes = history.trim(self.history)
        self.forgotten += forgotten
        if self._keeping is not None:
            if changed:
                self._keeping.keep_history(self.history, turn.number)
            else:
                self._keeping.added(added, forgotten)

    def _error(self, failure: Failure) -> Event:
        error_id, name = f"err_{secrets.token_hex(6)}", name_of(failure.error)
        report(f"{error_id} in session {self.id[:8]}…", failure.error)
        why = attempt(lambda: self._agent.explain(failure.error))
        if not isinstance(why, str):
            why = f"its log has the details under {error_id}"
        text = f"the agent failed with {name}; {why}"
        return Event(protocol.AGENT_ERROR, {"error_id": error_id, "type": name, "message": text})

    def _used(self) -> None:
        """Resets the clock that runs while no client is connected and no turn runs."""
        self.last_used = trio.current_time()
        patience = self.limits.session_idle if self.durable else self.limits.session_timeout
        idle = not self._readers and not self._turns and patience
        self._life.deadline = self.last_used + patience if idle else math.inf
        self._offer()

    # What it holds.

    def account(self) -> None:
        """Says what it holds now; nothing once it has ended and its last event is read."""
        held = 0
        if not self.ended or self._readers:
            held = SESSION_BYTES + self._client_bytes + self._history_bytes + self.buffer.bytes_held
            if self.buffer.journaled:
                held += self._readers.bytes_held
            held += sum(turn.bytes_held for turn in self._turns)
        self._share.hold(held)

    def _offer(self) -> None:
        if self.ended:
            offer = None
        elif self._turns:
            offer = Offer.WAITING if not self._readers and len(self._turns) > 1 else None
        else:
            offer = Offer.DELIVERED if self._readers else Offer.ABSENT
        self._share.offer(offer)

    def _give_up(self) -> None:
        """What it offers, as far as there is any."""
        if self._readers:
            self.buffer.forget(min(reader.needed_from for reader in self._readers) - 1)
        elif self._turns:
            for turn in list(self._turns)[1:]:
                turn.give_up()
        elif self.durable:
            self.leave()  # it is in the journal
            self._history_bytes = 0
            self.buffer.forget(self.buffer.last_seq)
        else:
            self.buffer.forget(self.buffer.last_seq)
            attempt(self._forget_history)
        self.account()

    def _forget_history(self) -> None:
        self.forgotten += len(self.history)
        self._history_bytes = 0
        self.history.clear()
