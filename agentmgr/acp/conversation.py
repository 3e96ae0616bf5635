"""One of the editor's sessions: a session of ours, taken up again each time it is needed.

A prompt that finds no connection makes one. While there is one, what the agent says goes to the editor, also
what other clients of the session have asked for. `open_session` makes the connection anew when it breaks;
where it gives up, the prompts fail, and the next one tries again from the last event that was seen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any

import trio
from attrs import define, field

from .. import protocol
from ..client.events import AgentEvent, failure_message
from ..client.session import AgentSession
from ..client.talk import Turn
from ..errors import AgentManagerError, AgentUnreachable, SessionLost
from ..protocol import ErrorCode, NoticeCode
from ..websocket.refusal import RefusalCode
from .peer import Peer
from .replay import replay
from .rpc import AUTH_REQUIRED, INTERNAL_ERROR, INVALID_PARAMS, RESOURCE_NOT_FOUND, RpcError
from .updates import ALLOW, Updates, permission, result_of

CANCEL_S = 5.0
"""A cancelled prompt is answered by then, also where the agent cannot be reached to be stopped."""
REPLAY_S = 60.0

Begin = Callable[..., AbstractAsyncContextManager[AgentSession]]
"""`open_session`, but for `session_id` and `last_seq`."""


@define(eq=False)
class Prompt:
    """One message of the editor, and the answer to it when its turn is over."""

    text: str
    metadata: Mapping[str, Any]
    turn: Turn | None = None  #: None: it is not sent
    cancelled: bool = False
    patience: trio.CancelScope = field(factory=trio.CancelScope)
    over: trio.Event = field(factory=trio.Event)
    result: dict[str, Any] | RpcError | None = None

    @property
    def step_id(self) -> str | None:
        return None if self.turn is None else self.turn.step_id

    def end(self, result: dict[str, Any] | RpcError) -> None:
        if self.result is None:
            self.result = result
        self.over.set()


class Conversation:
    def __init__(self, begin: Begin, peer: Peer, *, session_id: str | None = None, cwd: str) -> None:
        self.session_id = session_id
        self.cwd = cwd
        self._begin, self._peer = begin, peer
        self._last_seq = 0
        self._session: AgentSession | None = None  # while there is a connection, or one is being made again
        self._updates = Updates()
        self._prompts: list[Prompt] = []  # that are not over, in the order of the editor's lines
        self._asking: dict[str, trio.CancelScope] = {}  # the editor's user, by the question's step_id
        self._one_at_a_time = trio.Lock()
        self._staying = trio.CancelScope()
        self._left: RpcError | None = None  # why there is to be no connection any more

    def expect(self, text: str, metadata: Mapping[str, Any]) -> Prompt:
        """A prompt for `answer`; what is cancelled from now on includes it."""
        prompt = Prompt(text, {**metadata, "cwd": self.cwd})
        self._prompts.append(prompt)
        return prompt

    async def answer(self, prompt: Prompt) -> dict[str, Any]:
        """Says it, and waits for the end of its turn. Raises `RpcError`."""
        with prompt.patience:
            try:
                await self.open()
                await self._say()
                await prompt.over.wait()
            except RpcError as error:
                prompt.end(error)
            finally:
                if prompt.turn is None:
                    self._prompts.remove(prompt)
        result = prompt.result or {"stopReason": "cancelled"}
        if isinstance(result, RpcError):
            raise result
        return result

    def cancel(self, prompts: Iterable[Prompt] | None = None) -> list[Prompt]:
        """These, or all that were said up to now; the returned are for `stop`."""
        running = [it for it in (self._prompts if prompts is None else prompts) if not it.cancelled]
        for prompt in running:
            prompt.cancelled = True
            prompt.patience.deadline = trio.current_time() + CANCEL_S
            if prompt.turn is None:
                prompt.patience.cancel()
        return running

    async def stop(self, prompts: list[Prompt]) -> None:
        for prompt in prompts:
            if prompt.turn is not None:
                await prompt.turn.cancel()

    def leave(self) -> None:
        """Ends the connection. The session stays."""
        self._left = RpcError(RESOURCE_NOT_FOUND, "the session was closed; load it again")
        self._staying.cancel()

    async def open(self, *, replay: bool = False) -> None:
        """Has a connection, and with `replay` shows the editor what was said. Raises `RpcError`."""
        async with self._one_at_a_time:
            if self._left is not None:
                raise self._left
            if self._session is None:
                try:
                    await self._peer.nursery.start(self._live, replay)
                except AgentManagerError as error:
                    raise rpc_error(error) from None

    async def _say(self) -> None:
        async with self._one_at_a_time:
            for prompt in list(self._prompts):
                if prompt.turn is None and not prompt.cancelled and self._session is not None:
                    prompt.turn = await self._session.send(prompt.text, metadata=prompt.metadata)

    async def _live(self, shows: bool, task_status: trio.TaskStatus[None]) -> None:
        """While there is a connection: passes on what the agent says."""
        established = False
        failure = RpcError(INTERNAL_ERROR, "the connection to the agent was closed")
        try:
            last_seq = 0 if shows else self._last_seq
            async with self._begin(session_id=self.session_id, last_seq=last_seq) as session:
                self.session_id = session.session_id
                with trio.CancelScope() as self._staying:
                    if self._left is not None:
                        self._staying.cancel()
                    if shows:
                        await self._show(session)
                    self._session, established = session, True
                    task_status.started()
                    for question in self._updates.questions.values():
                        self._ask_for(question)
                    while True:
                        await self._take(await session.receive())
        except AgentManagerError as error:
            if not established:
                raise
            failure = rpc_error(error)
            if isinstance(error, SessionLost):
                self._left = failure
        except Exception as error:  # the boundary: what one service says makes no session of another fail
            if not established:
                raise
            self._peer.log(f"internal error, please report it: {error!r}")
            failure = RpcError(INTERNAL_ERROR, f"internal error: {error!r}")
        finally:
            self._session = None
            for asking in self._asking.values():
                asking.cancel()
        for prompt in [prompt for prompt in self._prompts if prompt.turn is not None]:
            self._prompts.remove(prompt)
            prompt.end({"stopReason": "cancelled"} if prompt.cancelled else failure)

    async def _show(self, session: AgentSession) -> None:
        """Raises what `receive` does."""
        events: list[AgentEvent] = []
        state: Mapping[str, Any] | None = None
        seen, newest = 1, None  # the first event says that the session was made
        with trio.move_on_after(REPLAY_S) as patience:
            while state is None or newest is None or seen < newest:
                event = await session.receive()
                if event.event == protocol.STATE_EXPORTED:
                    state = event.content if isinstance(event.content, Mapping) else {}
                elif event.event == protocol.ERROR:  # the host has no room to say it
                    state = state or {}
                elif event.code in (NoticeCode.RESUMED, NoticeCode.GAP):
                    seen = max(seen, event.content.get("missing_to", 0))
                    if "last_seq" in event.content:
                        newest = event.content["last_seq"]
                        await session.request_state()  # on each connection: a request is not sent again
                if event.seq is not None:
                    seen = max(seen, event.seq)
                    events.append(event)
        if patience.cancelled_caught:
            raise AgentUnreachable(f"the agent did not show the session within {REPLAY_S:.0f} s")
        said, self._updates = replay(events, state or {})
        self._last_seq = seen
        for update in said:
            await self._notify(update)

    async def _take(self, event: AgentEvent) -> None:
        if event.session_id not in (None, self.session_id):
            return
        for update in self._updates.feed(event):
            await self._notify(update)
        self._last_seq = max(self._last_seq, event.seq or 0)
        for step_id, asking in self._asking.items():
            if step_id not in self._updates.questions:
                asking.cancel()
        name = event.event
        if name == protocol.USER_CONFIRM:
            self._ask_for(event)
        elif name in protocol.TURN_ENDS or name == protocol.ERROR:
            self._over(event)
        elif name == protocol.SESSION_END:
            content = event.content if isinstance(event.content, Mapping) else {}
            lost = SessionLost(f"the session was ended: {content.get('reason')}")
            lost.reason = str(content.get("reason"))
            raise lost
        # The host stops only the turn that runs: the others that were cancelled, when it is their time.
        for prompt in [it for it in self._prompts if it.cancelled and it.turn is not None][:1]:
            if name in protocol.TURN_ENDS or event.step_id == prompt.step_id:
                await self.stop([prompt])

    def _over(self, event: AgentEvent) -> None:
        for prompt in [it for it in self._prompts if it.turn is not None and it.step_id == event.step_id]:
            self._prompts.remove(prompt)
            try:
                if event.event == protocol.ERROR:
                    raise not_taken(event)
                prompt.end(result_of(event, self._updates.usage, cancelled=prompt.cancelled))
            except RpcError as error:
                prompt.end(error)

    async def _notify(self, update: dict[str, Any]) -> None:
        await self._peer.notify("session/update", {"sessionId": self.session_id, "update": update})

    def _ask_for(self, question: AgentEvent) -> None:
        step_id = question.step_id or ""
        if step_id not in self._asking:
            self._asking[step_id] = trio.CancelScope()
            self._peer.nursery.start_soon(self._ask, question, self._asking[step_id])

    async def _ask(self, question: AgentEvent, scope: trio.CancelScope) -> None:
        try:
            with scope:
                asked = {"sessionId": self.session_id, **permission(question)}
                try:
                    answer = await self._peer.ask("session/request_permission", asked)
                except RpcError as error:  # an editor that cannot ask
                    self._peer.log(f"the editor did not ask: {error.message}; the answer is no")
                    answer = {}
                outcome = answer.get("outcome") if isinstance(answer, dict) else None
                match outcome:
                    case {"outcome": "cancelled"}:
                        # Of the turn that runs, not of a prompt that came after `session/cancel`.
                        sent = [prompt for prompt in self._prompts if prompt.turn is not None]
                        await self.stop(self.cancel(sent[:1]))
                    case _ if self._session is not None:
                        chosen = {"outcome": "selected", "optionId": ALLOW}
                        approved = isinstance(outcome, dict) and chosen.items() <= outcome.items()
                        await self._session.respond(question, approved)
        finally:
            del self._asking[question.step_id or ""]


def rpc_error(error: AgentManagerError) -> RpcError:
    if isinstance(error, SessionLost):
        return RpcError(RESOURCE_NOT_FOUND, error.message, {"code": error.code, "reason": error.reason})
    refusal = error.refusal if isinstance(error, AgentUnreachable) else None
    code = AUTH_REQUIRED if refusal == RefusalCode.UNAUTHORIZED else INTERNAL_ERROR
    hint = "; give `agentmgr acp` one with --token or AGENTMGR_TOKEN" if code == AUTH_REQUIRED else ""
    return RpcError(code, error.message + hint, {"code": refusal or error.code})


def not_taken(refusal: AgentEvent) -> RpcError:
    """The host did not take a message."""
    code = INVALID_PARAMS if refusal.code == ErrorCode.TOO_LARGE else INTERNAL_ERROR
    return RpcError(code, failure_message(refusal), {"code": refusal.code})
