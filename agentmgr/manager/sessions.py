"""Speaks in sessions: as a client of an instance, in the name of the session's owner.

An instance believes the manager whom it speaks for, because the manager proves that it knows the instance's
token. Where an instance has the session in memory, that one is asked; else any, which takes it up.
"""

from __future__ import annotations

import os
import secrets
from base64 import b64encode
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing, closing, suppress
from functools import partial
from pathlib import Path
from typing import Any

import trio
from wsproto.connection import Connection, ConnectionType
from wsproto.events import CloseConnection, Message, Ping
from wsproto.utilities import ProtocolError

from .. import protocol
from ..codec import parse_json
from ..core.gateway_headers import IDENTITY_HEADER
from ..core.hosts import authority
from ..core.routing import Backend, BackendState
from ..core.view import routing_table
from ..errors import AgentManagerError, InvalidRequest, NoServiceAvailable, SessionNotFound, WrongState
from ..jsontext import encode
from ..models import SERVING, Instance, ServiceSpec, ServiceStatus
from ..models.sessions import SessionState
from ..protocol import ErrorCode, NoticeCode
from ..proxy.dialer import Dialer, DialFailed
from ..proxy.limits import GatewayLimits
from ..proxy.upstream import BackendRefused, open_backend
from ..supervisor import Supervisor
from ..websocket.head import parse_request, upgrade_request
from ..websocket.sockets import Wire
from .network_journals import NetworkJournals
from .on_demand import OnDemand
from .publisher import Publisher
from .registry import Registry
from .session_views import not_found
from .stored_sessions import SessionsOfNodes, StoredSession, StoredSessions

PATIENCE_S = 10.0
"""For an instance to say whether it took something. It answers at once, unless its agent blocks it."""
COMING_BACK_S = 30.0
"""For an instance that was killed, or is being restarted, to be replaced by the next one."""

ACK_EVERY = 64
_CHUNK_BYTES = 64 * 1024

_NOT_NOW = frozenset(
    {ErrorCode.BUSY, ErrorCode.QUEUE_FULL, ErrorCode.DUPLICATE, ErrorCode.UNKNOWN_STEP, ErrorCode.DRAINING}
)
_NO_ROOM = frozenset({ErrorCode.SESSION_UNREACHABLE, ErrorCode.MAX_SESSIONS, ErrorCode.HOST_FULL})


class Sessions(StoredSessions):
    """The sessions of the services of a manager that runs."""

    def __init__(
        self,
        directory: Path,
        registry: Registry,
        supervisor: Supervisor,
        publisher: Publisher,
        on_demand: OnDemand,
        dialer: Dialer,
        nursery: trio.Nursery,
        nodes: SessionsOfNodes | None = None,
        network: NetworkJournals | None = None,
    ) -> None:
        super().__init__(directory, registry.services, nodes, network)
        self._supervisor = supervisor
        self._publisher = publisher
        self._on_demand = on_demand
        self._dialer = dialer
        self._nursery = nursery

    async def say(
        self,
        session_id: str,
        content: Any,
        *,
        metadata: Mapping[str, Any] | None = None,
        step_id: str | None = None,
    ) -> str:
        """Begins a turn with a message, and returns the turn's `step_id`; its events have the answer.

        Where its instance was killed it waits for the next one. Raises `SessionNotFound`, `InvalidRequest`,
        `WrongState` and `NoServiceAvailable`, as do `cancel` and `answer`.
        """
        step_id = step_id or f"msg_{secrets.token_hex(8)}"
        message = {"step_id": step_id, "content": content, "metadata": dict(metadata or {})}
        # Its client stays to the end of the turn: a service may end the turns of clients that leave.
        await self._converse(session_id, protocol.MESSAGE, message, stays_for=step_id)
        return step_id

    async def cancel(self, session_id: str) -> None:
        """Ends the turn that runs."""
        await self._converse(session_id, protocol.CANCEL, {})

    async def answer(self, session_id: str, step_id: str, *, confirmed: bool) -> None:
        """Answers the question `step_id`."""
        answer = {"step_id": step_id, "content": {"confirmed": confirmed}}
        await self._converse(session_id, protocol.RESPONSE, answer)

    async def erase(self, session_id: str) -> None:
        """Ends it where an instance has it, so that its clients hear so, and erases all that was said in it.

        Raises `SessionNotFound`.
        """
        summary = (await self.find(session_id)).summary
        if summary.instance_id is not None and summary.state is not SessionState.ENDED:
            with suppress(AgentManagerError), trio.move_on_after(PATIENCE_S):  # erased it is all the same
                await self._converse(session_id, protocol.END_SESSION, {})
        await super().erase(session_id)

    async def _converse(
        self, session_id: str, event: str, fields: Mapping[str, Any], *, stays_for: str | None = None
    ) -> None:
        give_up_at = trio.current_time() + COMING_BACK_S
        again = False
        while True:
            changed = self._publisher.next_table
            found = await self.find(session_id)
            spec, summary = found.spec, found.summary
            if summary.state is SessionState.ENDED:
                raise WrongState(f"this session has ended; another one of {spec.name!r} can be begun")
            self._on_demand.wake(spec.service_id, "an operator speaks in a session of it")
            talk = partial(
                _talk,
                session_id=session_id,
                last_seq=found.snapshot.record.last_seq,
                event=event,
                fields=fields,
                stays_for=stays_for,
                again=again,
            )
            try:
                await self._ask(found, talk)
                return
            except _Gone as gone:
                again = True
                with trio.move_on_at(give_up_at) as patience:
                    await changed.wait()
                if patience.cancelled_caught:
                    raise NoServiceAvailable(f"{gone}; try again in a moment") from gone

    async def _ask(self, found: StoredSession, talk: Callable[..., Awaitable[None]]) -> None:
        """Raises `_Gone`."""
        spec, holder = found.spec, found.summary.instance_id
        for _ in range(2):  # it may have moved meanwhile
            backend = self._backend(spec, found.archive.node_id, holder)
            try:
                # Here the client's stay has an owner that outlives the request.
                await self._nursery.start(partial(talk, backend, self._dialer, found.summary.owner))
                return
            except _Elsewhere as elsewhere:
                holder = elsewhere.instance_id
            except SessionNotFound:
                if not spec.config.keeps_sessions:
                    raise WrongState(_only_in_memory(spec.name)) from None
                if (found.archive.node_id is None) != self._is_on_network(spec):
                    raise WrongState(_left_behind(spec.name, found.archive.label)) from None
                raise
        raise NoServiceAvailable(f"the session moves among the instances of {spec.name!r}: try again")

    def _is_on_network(self, spec: ServiceSpec) -> bool:
        return self._network is not None and self._network.url_of(spec.config) is not None

    def _backend(self, spec: ServiceSpec, at: str | None, holder: str | None) -> Backend:
        """`at`: the id of the node that its journal is on, None for any. Raises `WrongState` where none runs
        or comes, `_Gone` where none can be asked now.
        """
        instances = self._supervisor.instances(spec.service_id)
        backends = routing_table([spec], (), instances, self._supervisor.tokens()).backends
        known = [b for b in backends if b.token and b.state.keeps_sessions and at in (None, b.node_id)]
        for backend in known:
            if backend.instance_id == holder or (holder is None and backend.state is BackendState.ROUTABLE):
                return backend
        if not instances and not self._on_demand.is_asleep(spec):
            raise WrongState(
                f"service {spec.name!r} is stopped, so it cannot answer: `agentmgr start {spec.name}` "
                "starts it, and the session goes on"
            )
        if instances and all(instance.status is ServiceStatus.ERROR for instance in instances):
            raise WrongState(
                f"service {spec.name!r} has failed and was given up: `agentmgr status {spec.name}` says why, "
                f"and when `agentmgr start {spec.name}` succeeds, the session goes on"
            )
        if spec.config.command:
            raise WrongState(f"service {spec.name!r} is a command by now: no agent takes the session up")
        if at is not None and self._nodes is not None and self._nodes.is_moving(spec.service_id, at):
            raise _Gone("it is on its way to another node")
        if at is not None and self._is_elsewhere(at, instances):
            assert self._nodes is not None
            where = f"node {self._nodes.name(at)}" if at else "the manager's machine"
            raise WrongState(
                f"the session is kept on {where}, where no instance of {spec.name!r} runs now; it goes on "
                "when one does: `agentmgr nodes` shows what is cordoned, `agentmgr scale` starts more"
            )
        who = f"the instance {holder} of" if holder is not None else "no instance of"
        raise _Gone(f"{who} {spec.name!r} can be asked now")

    def _is_elsewhere(self, node_id: str, instances: Sequence[Instance]) -> bool:
        """Whether nothing runs on the node of a journal, and nothing is about to: waiting would not help."""
        if self._nodes is None or not instances:
            return False
        return all(one.status in SERVING and one.node_id != node_id for one in instances)


def _only_in_memory(name: str) -> str:
    return (
        f"service {name!r} has its sessions in memory only now, and takes up none that it kept before: "
        f"`agentmgr change {name} --sessions durable`, then `agentmgr restart {name}`, bring this one back"
    )


def _left_behind(name: str, where: str) -> str:
    return (
        f"the session is kept on {where}, where instances of {name!r} look no more since its `sessions` was "
        "changed; it can be read and exported, and goes on when that is changed back"
    )


class _Gone(Exception):
    """No instance has taken it; one that comes may."""


class _Elsewhere(Exception):
    """Another instance has the session."""

    def __init__(self, instance_id: str | None) -> None:
        super().__init__(instance_id)
        self.instance_id = instance_id


async def _talk(
    backend: Backend,
    dialer: Dialer,
    owner: str | None,
    *,
    session_id: str,
    last_seq: int,
    event: str,
    fields: Mapping[str, Any],
    stays_for: str | None,
    again: bool,
    task_status: trio.TaskStatus[None],
) -> None:
    """Sends one event; started when the instance has taken it. Then it reads until that turn has ended.

    `again`: another instance may have taken it, and did not say so.
    """
    ends = event == protocol.END_SESSION
    pong = secrets.token_hex(8)
    taken = False
    try:
        with trio.fail_after(PATIENCE_S) as patience:
            wire = await _connected(backend, dialer, owner)
            with closing(wire):
                host = _Host(wire)
                if ends:  # its end is heard when it is in the journal
                    await host.send(protocol.WATCH, session_id=session_id, last_seq=last_seq)
                await host.send(event, session_id=session_id, **fields)
                await host.send(protocol.PING, content=pong)
                async with aclosing(host.events()) as events:
                    async for said in events:
                        name = said.get("event")
                        if again and _code(said) == ErrorCode.DUPLICATE:
                            stays_for = None
                        elif name == protocol.ERROR and not taken:
                            _raise(said.get("content"), session_id)
                        elif name == protocol.NOTICE and _code(said) == NoticeCode.NOTHING_RUNNING:
                            raise WrongState("no turn runs in this session")
                        elif (ends and name == protocol.SESSION_END) or (
                            not ends and name == protocol.PONG and said.get("content") == pong
                        ):
                            taken = True
                            task_status.started()
                            if stays_for is None:
                                return
                            patience.deadline = float("inf")
                        elif taken and name in protocol.TURN_ENDS and said.get("step_id") == stays_for:
                            return
                        await host.ack(said, session_id)
    except AgentManagerError:
        if not taken:
            raise
    except trio.TooSlowError as error:
        if not taken:
            problem = f"the instance {backend.instance_id} did not answer in time; try again"
            raise NoServiceAvailable(problem) from error
    except (OSError, ProtocolError) as error:
        if not taken:
            raise _Gone(f"the instance {backend.instance_id} failed: {error}") from error
    if not taken:
        raise _Gone(f"the instance {backend.instance_id} closed the connection")


async def _connected(backend: Backend, dialer: Dialer, owner: str | None) -> Wire:
    """A WebSocket connection in the name of `owner`. Raises `_Gone`, `NoServiceAvailable`."""
    identity = () if owner is None else ((IDENTITY_HEADER, owner),)
    asked = upgrade_request(
        "/",
        (
            ("Host", authority(backend.host, backend.port)),
            ("Sec-WebSocket-Key", b64encode(os.urandom(16)).decode()),
            ("Sec-WebSocket-Version", "13"),
            *identity,
        ),
    )
    limits = GatewayLimits()
    deadline = trio.current_time() + limits.dial_timeout_s
    request = parse_request(asked)
    try:
        wire, _ = await open_backend(backend, asked, request, limits, deadline=deadline, dialer=dialer)
    except (DialFailed, BackendRefused) as failure:
        problem = f"the instance {backend.instance_id} cannot be asked now: {failure}"
        if isinstance(failure, BackendRefused) or failure.timed_out:
            raise NoServiceAvailable(problem) from failure
        raise _Gone(problem) from failure
    return wire


class _Host:
    """The other end of the connection, as events."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._websocket = Connection(ConnectionType.CLIENT, trailing_data=wire.ahead)
        self._unacked = 0

    async def send(self, event: str, **fields: Any) -> None:
        text = encode({"event": event, **fields})
        await self._wire.send_all(self._websocket.send(Message(data=text)))

    async def ack(self, said: Mapping[str, Any], session_id: str) -> None:
        """Now and then: what is never acknowledged makes an agent wait."""
        if "seq" in said:
            self._unacked += 1
            if self._unacked >= ACK_EVERY:
                self._unacked = 0
                await self.send(protocol.ACK, session_id=session_id, seq=said["seq"])

    async def events(self) -> AsyncGenerator[dict[str, Any], None]:
        """Until the host closes the connection."""
        text = ""
        while True:
            for event in self._websocket.events():
                match event:
                    case Message(data=data, message_finished=finished):
                        text += str(data)
                        if finished:
                            said, text = parse_json(text), ""
                            if isinstance(said, dict):
                                yield said
                    case Ping():
                        await self._wire.send_all(self._websocket.send(event.response()))
                    case CloseConnection():
                        return
            data = await self._wire.receive(_CHUNK_BYTES)
            if not data:
                return
            self._websocket.receive_data(data)


def _code(said: Mapping[str, Any]) -> str | None:
    content = said.get("content")
    return content.get("code") if isinstance(content, Mapping) else None


def _raise(content: Any, session_id: str) -> None:
    """Raises our error for a `system.error` of a host."""
    content = content if isinstance(content, Mapping) else {}
    code, message = content.get("code"), str(content.get("message"))
    if code == ErrorCode.SESSION_ELSEWHERE:
        raise _Elsewhere(content.get("instance"))
    if code == ErrorCode.SESSION_NOT_FOUND:
        raise not_found(session_id)
    if code in _NOT_NOW:
        raise WrongState(message)
    if code in _NO_ROOM:
        raise NoServiceAvailable(f"{message}; try again")
    raise InvalidRequest(message)
