"""A session: one conversation with one client, which outlives that client's connections.

It runs the client's messages as turns, one after another. What the agent says is numbered and kept in a
`ReplayBuffer`; the connections that read the session, if there are any just now, read from there. One that is
durable hands all that happens to its `Keeping`, and clients are given an event when that has committed it.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Mapping
from typing import Any

import trio

from .. import protocol
from ..boundary import Failure, contain, report
from ..journal.journal import Held, SessionJournal
from ..models.host_config import OnCrash, OnDisconnect, WhenBusy
from ..protocol import EndReason, ErrorCode, TurnCode
from ..telemetry import Telemetry, TurnSpan
from . import history, restoring
from .budget import Budget
from .events import Event, as_event
from .holdings import Holdings
from .incoming import BadInput
from .keeping import Keeping, NotDurable
from .limits import MAX_JUMP, SessionLimits
from .message import Client, Decision, Message
from .questions import Questions, settled
from .readers import Link
from .replay import Gap, Reader
from .transcript import Transcript
from .turn import Turn, Turns, size_of
from .work import HOOK_TIMEOUT_S, Agent, begin, error_event, look_at_what_is_kept, remember, work_on

EMITS_PER_TURN = 16
"""Events an agent may say in a row before other tasks have their turn."""
COMING_BACK_S = 5.0
"""So long at least a turn of `on_disconnect=cancel` waits for a client that a restart has cut off."""


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
        telemetry: Telemetry | None = None,
        on_rest: Callable[[Session], None],
    ) -> None:
        """`on_rest` is called when a turn is over."""
        self.id = session_id  # whoever knows it may take up an anonymous session
        self.name = name
        self.state: dict[str, Any] = {}
        self.history: list[dict[str, Any]] = []  #: turns before this one: `role` and `content`
        self.forgotten = 0  #: entries of the history that made room for newer ones
        self.transient = False  #: it is in memory only, and ends when no connection reads it and no turn runs
        self.restored = False  #: it was in memory before, here or in another process, and came back
        self.client = client
        self.owner = client.identity
        self.limits = limits
        self.last_used = trio.current_time()
        self.ended = False  #: no event comes any more
        self.end_reason: EndReason | None = EndReason.TIMEOUT  #: None: it goes on, later or elsewhere
        self.broken: str | None = None  #: why its author's code could not take it up
        self.started = trio.Event()  #: its author's code has taken it up, or could not
        self.gone = trio.Event()
        self._agent = agent
        self._telemetry = telemetry
        self._span: TurnSpan | None = None  # of the turn that runs
        self._life = trio.CancelScope()
        self._turns = Turns()
        self._arrival = trio.Event()
        self.questions = Questions()  #: that wait for a person
        self._transcript = Transcript(
            session_id, limits, self._turns, lambda turn, end: remember(turn, end, self, self._holdings)
        )
        self.buffer = self._transcript.buffer
        self._readers = self._transcript.readers
        self._on_rest = on_rest
        self._budget = budget
        self._holdings = Holdings(self, self._transcript, self._turns, budget)
        self._holdings.of_client(client)
        self._holdings.count()

    def seed(self, entries: list[history.Entry]) -> None:
        """The history that it begins with."""
        self.history = entries
        self.forgotten, self._holdings.history_bytes = history.trim(self.history)
        self._holdings.count()

    def keep(self, held: Held, journal: SessionJournal, notes: NotDurable) -> Keeping:
        """From now on it is durable."""
        self.buffer.journaled = True
        self.end_reason = None
        keeping = Keeping(self, self._transcript, self._turns, held, journal, notes)
        self._transcript.keeping = keeping
        keeping.knows(self.history)
        return keeping

    async def restore(self, held: Held, journal: SessionJournal, notes: NotDurable) -> None:
        """Makes it what the journal has of it, before it runs."""
        record, found = held.loaded.record, restoring.read(held.loaded, self.limits)
        self.restored = True
        self.state, self.history, self.forgotten = found.state, found.history, found.forgotten
        self._holdings.history_bytes = found.history_bytes
        self._transcript.input_tokens = record.input_tokens
        self._transcript.output_tokens = record.output_tokens
        self.buffer.restore(found.frames, record.last_seq)
        self._turns.restore(found.turns, found.steps, record.last_turn)
        keeping = self.keep(held, journal, notes)
        for question in held.loaded.questions:
            keeping.answered(question.step_id)
        for turn in found.turns:
            if turn.lost:
                restoring.streamed_before(turn, await keeping.said_in(turn, found.frames))
            elif turn.attempts:
                self.publish(restoring.RESTARTED)
        self._is_alone(at_least_s=COMING_BACK_S)

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
        if timeout_s is None:
            turn = self._turns.current
            timeout_s = self.limits.patience(turn and turn.message.metadata.get("confirm_timeout"))
        step_id = f"ask_{secrets.token_hex(8)}"
        question = self.questions.open(step_id)
        content = {"tool": tool, "args": args, "message": message, "timeout_s": timeout_s}
        try:
            if self._keeping is not None:
                self._keeping.asked(step_id, content)
            await self.emit(protocol.USER_CONFIRM, content, step_id=step_id)
            with trio.move_on_after(timeout_s) as patience:
                await question.answered.wait()
            if patience.cancelled_caught and not question.answered.is_set():
                self.publish(settled(step_id, False, "no answer came in time, which means no"))
        finally:
            self.questions.close(step_id)
            if self._keeping is not None:
                self._keeping.answered(step_id)
        return question.decision

    @property
    def usage(self) -> tuple[int, int]:
        """The tokens of all turns: input and output."""
        return self._transcript.input_tokens, self._transcript.output_tokens

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
    def _keeping(self) -> Keeping | None:
        return self._transcript.keeping

    @property
    def leaving(self) -> bool:
        """Whether it is about to leave memory."""
        return self._life.cancel_called

    def attach(self, link: Link, client: Client, after: int, *, exclusive: bool = False) -> Reader:
        """Has a connection read it, from the event after `after` on; if `exclusive`, no other one."""
        others = self._readers.links if exclusive else []
        self.client = client
        self._holdings.of_client(client)
        if self.durable and 0 < after - self.buffer.last_seq <= MAX_JUMP:
            # The host before could not write, and sent more than the journal has: no number is used again.
            self.buffer.jump(after)
        reader = self._readers.add(link, after)
        for other in others:
            other.lose(self)
        self._turns.set_deadline(math.inf)
        self._used()
        return reader

    def detach(self, reader: Reader) -> None:
        """A connection is gone. What becomes of a running turn without one is the service's choice."""
        if self._readers.remove(reader) and not self._readers:
            self._is_alone()

    def _is_alone(self, *, at_least_s: float = 0.0) -> None:
        if self.limits.on_disconnect is OnDisconnect.CANCEL:
            grace_s = max(self.limits.disconnect_grace, at_least_s)
            self._turns.set_deadline(trio.current_time() + grace_s)
        self._used()
        self._holdings.count()

    def progressed(self) -> None:
        """A connection has read something: a waiting turn may go on."""
        self._readers.moved()
        if not self._turns:
            self._holdings.offer()  # the replay of what it has read

    def ack(self, reader: Reader, seq: int) -> None:
        """A client has all up to `seq`."""
        self._readers.ack(reader, seq)
        self.progressed()

    async def fill(self, reader: Reader) -> Gap | None:
        """Gives a reader what is not in memory any more; the gap where the journal has nothing either."""
        gap = await self._transcript.fill(reader)
        self._holdings.count()
        return gap

    def accept(self, message: Message, step_id: str | None, size: int, *, queue: bool = True) -> None:
        """Takes a message, whose content takes `size` bytes, as the next turn; only if it is the next one to
        be worked on, where it is not to `queue`.

        Raises `BadInput`: `busy`, `queue_full`, `host_full`, `duplicate`, `session_unreachable`.
        """
        if self.durable and self.leaving:
            raise BadInput(ErrorCode.SESSION_UNREACHABLE, "the session leaves this instance; connect again")
        size = size_of(message, size)
        self._turns.check(step_id, size, self.limits.when_busy, queue=queue)
        self._budget.require(size)
        if self._turns and self.limits.when_busy is WhenBusy.INTERRUPT:
            self.cancel("a newer message")
        turn = self._turns.add(message, step_id, size)
        if self._keeping is not None:
            self._keeping.accepted(turn)
        self._arrival.set()
        self._used()
        self._holdings.count()

    def cancel(self, reason: str = "cancelled by the client", *, step_id: str | None = None) -> bool:
        """Stops the running turn, or only the one of `step_id`, and says so at once.

        False when it does not run.
        """
        turn = self._turns.current
        if turn is None or turn.is_over or step_id not in (None, turn.step_id):
            return False
        self.publish(Event(protocol.INTERRUPTED, {"reason": reason}))
        turn.scope.cancel()
        return True

    def answer(self, step_id: str, content: Any) -> None:
        """A person's answer to a question. Raises `BadInput`: `unknown_step`, `invalid_field`."""
        self.publish(self.questions.answer(step_id, content))

    def snapshot(self) -> dict[str, Any]:
        """What `user.request_state` shows."""
        shown = history.show(self.state, self.history, self.forgotten)
        shown |= {"last_seq": self.buffer.visible, "busy": self.busy}
        turn = self._turns.current
        if turn is not None and not turn.is_over:
            shown["turn"] = {"step_id": turn.step_id, "content": turn.message.content}
        return shown

    # Its life.

    async def run(self) -> None:
        """Turn after turn, until `end` or `leave` is called, or it is not used for so long as limits say."""
        with self._life:
            failed = await contain(self._run_turns)
            if isinstance(failed, Failure):
                error = error_event(failed, self, self._agent)
                if self.restored:  # it can go on when the agent's fault is mended
                    self.broken = error.content["message"]
                    self._readers.send_back()
                else:
                    self.publish(error)
                    self.end_reason = EndReason.FAILED
        self.started.set()
        self._life.cancel()
        if self.end_reason is not None:
            self._turns.clear()
            self.ended = True
            self._holdings.offer()
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
        self._holdings.offer()
        self._holdings.count()
        self.gone.set()

    async def _run_turns(self) -> None:
        """Until cancelled. Raises what `on_session_start` does."""
        await begin(self, self._agent, self._keeping)
        self.started.set()
        while True:
            while not self._turns:
                self._arrival = trio.Event()
                await self._arrival.wait()
            await trio.lowlevel.checkpoint_if_cancelled()  # the author's code may have swallowed it
            await self._take(self._turns[0])
            self._turns.next()
            self._used()
            self._holdings.count()
            self._readers.wake()  # also where the event that ends the turn was sent long before
            self._on_rest(self)

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
        turn = self._turns.current
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
        self._transcript.lost = True
        self._readers.send_back()
        self._life.cancel()

    async def _take(self, turn: Turn) -> None:
        if self._telemetry is None:
            await self._work_on(turn)
            return
        with self._telemetry.turn(self.id, self.client.headers, turn.message.metadata) as self._span:
            await self._work_on(turn)
        self._span = None

    async def _work_on(self, turn: Turn) -> None:
        """One turn; it ends with exactly one event, whatever the author's code does."""
        # Twice contained: code that leaves a scope or a nursery open, as an abandoned generator does, makes
        # our own scopes fail.
        agent, keeping = self._agent, self._keeping
        end = await contain(lambda: work_on(turn, self, agent, keeping))
        if isinstance(end, Failure):
            end = error_event(end, self, agent)
        if keeping is not None:
            end = await look_at_what_is_kept(end, self, agent, keeping)
        said = await contain(lambda: self._say(end))
        if isinstance(said, Failure):  # an answer that JSON cannot say
            await self._say(error_event(said, self, agent))
        if keeping is not None:
            keeping.flush()

    async def _say(self, event: Event) -> None:
        line = self._transcript.line(event)
        if not self._transcript.has_room(line):
            await self._transcript.have_room(line)
        self._append(event, line)

    def publish(self, event: Event) -> None:
        """Says something at once, though a client that is far behind may miss what came before it."""
        self._append(event, self._transcript.line(event))

    def _append(self, event: Event, line: bytes) -> None:
        if self._transcript.append(event, line, last=self.ended):
            if self._span is not None:
                self._span.said(event.event, event.content, event.step_id)
            self._holdings.make_room()
            self._readers.wake()

    def _used(self) -> None:
        """Resets the clock that runs while no client is connected and no turn runs."""
        self.last_used = trio.current_time()
        patience = self.limits.session_idle if self.durable else self.limits.session_timeout
        idle = not self._readers and not self._turns and (patience or self.transient)
        if self.transient:
            patience = 0.0
        self._life.deadline = self.last_used + patience if idle else math.inf
        self._holdings.offer()
