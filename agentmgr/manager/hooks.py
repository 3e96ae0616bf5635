"""Tells the outside what a person should know of: by the command or URL of a service's `on_failure`.

What it says is JSON, on the standard input of the command, or the body of a POST:

    {"event": "given_up", "service": "echo", "service_id": "svc_…", "at": "2031-05-07T10:00:00+00:00",
     "instance_id": "ins_…", "status": "error", "last_exit": "exit code 1", "reason": "…"}

`event` is `given_up`, `unhealthy`, `reload_failed` (what was saved does not start; `serving`: whether what
ran before serves on), or `question`, which has `session_id`, `step_id` and `content`. An instance that was to
take the place of one that serves on is not given up.

A command succeeds with exit code 0, a URL with a status from 200 to 299; else it is tried again. What is not
delivered in the end, finds the queue full, or still waits some seconds after all services have ended with the
manager, is an event, `hook.failed`; a question that was delivered is `hook.asked`, so the next manager does
not deliver it again. Nothing else waits for a hook.
"""

from __future__ import annotations

import logging
import os
import shlex
import ssl
from base64 import b64encode
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import unquote, urlsplit

import h11
import trio
from attrs import frozen

from ..codec import to_json
from ..errors import AgentManagerError
from ..models import Event, Instance, ServiceSpec, ServiceStatus, utc_now
from ..models.fields import is_url
from ..process.command import run_command
from ..version import __version__
from ..websocket.sockets import open_stream
from .events import EventLog
from .registry import Registry
from .sessions import Sessions

logger = logging.getLogger(__name__)

ATTEMPTS = 4
LAST_S = 5.0  #: for what is not delivered when the manager ends
FIRST_PAUSE_S = 1.0  #: before the second attempt; then three times as long each time
TIMEOUT_S = 15.0  #: of each attempt
QUEUE = 200
AT_ONCE = 4
QUESTIONS_EVERY_S = 5.0

_EVENTS = {ServiceStatus.ERROR: "given_up", ServiceStatus.UNHEALTHY: "unhealthy"}
_ANSWER_BYTES = 64 * 1024


class _Failed(Exception):
    """An attempt has; the message says why."""


@frozen(eq=False)
class _Call:
    hook: str
    spec: ServiceSpec
    what: str
    body: bytes
    question: dict[str, str]  #: which one it is, if it is one


class Hooks:
    def __init__(
        self,
        registry: Registry,
        events: EventLog,
        sessions: Callable[[], Sessions],
        instances: Callable[[str], Sequence[Instance]],
    ) -> None:
        """`instances`: those of a service."""
        self._registry, self._events, self._sessions, self._instances = registry, events, sessions, instances
        self._send, self._receive = trio.open_memory_channel[_Call](QUEUE)
        self._open: set[_Call] = set()  # not delivered yet
        self._none_open = trio.Event()
        self._events_since = utc_now()

    def instance_changed(self, instance: Instance) -> None:
        """Its status is another one. Never blocks."""
        spec, what = self._registry.by_id.get(instance.service_id), _EVENTS.get(instance.status)
        if spec is not None and what is not None and not self._is_covered(instance):
            self._tell(
                spec,
                what,
                instance_id=instance.instance_id,
                status=instance.status,
                last_exit=instance.last_exit,
                reason=instance.error_message,
            )

    def reload_failed(self, spec: ServiceSpec, reason: str, *, serving: bool) -> None:
        """What was saved does not start. Never blocks."""
        self._tell(spec, "reload_failed", reason=reason, serving=serving)

    def _is_covered(self, instance: Instance) -> bool:
        """Whether another one serves in its place: it was to replace that in a rolling restart."""
        return any(
            other.slot == instance.slot and other.status is ServiceStatus.RUNNING
            for other in self._instances(instance.service_id)
            if other.instance_id != instance.instance_id
        )

    def _tell(
        self, spec: ServiceSpec, what: str, *, question: dict[str, str] | None = None, **facts: Any
    ) -> None:
        if (hook := spec.config.on_failure) is None:
            return
        which = question or {}
        said = {"event": what, "service": spec.name, "service_id": spec.service_id, "at": utc_now()}
        call = _Call(hook, spec, what, to_json(said | which | facts).encode(), which)
        try:
            self._send.send_nowait(call)
            self._open.add(call)
        except trio.WouldBlock:
            self._failed(call, f"{QUEUE} others wait already")

    def _failed(self, call: _Call, why: str) -> None:
        logger.warning("service %s: its --on-failure did not get %s: %s", call.spec.name, call.what, why)
        detail = {"name": call.spec.name, "event": call.what, "reason": why}
        self._events.announce(Event("hook.failed", service_id=call.spec.service_id, detail=detail))

    async def end(self) -> None:
        """Gives what is not delivered yet a last moment."""
        try:
            with trio.move_on_after(LAST_S):
                while self._open:
                    self._none_open = trio.Event()
                    await self._none_open.wait()
        finally:
            for call in self._open:
                self._failed(call, "the manager ended before it was delivered")

    async def run(self) -> None:
        """Calls hooks until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch_questions)
            for _ in range(AT_ONCE):
                nursery.start_soon(self._work)

    async def _work(self) -> None:
        async for call in self._receive:
            pause_s, why = FIRST_PAUSE_S, ""
            for attempt in range(ATTEMPTS):
                if attempt:
                    await trio.sleep(pause_s)
                    pause_s *= 3
                try:
                    await _attempt(call)
                    self._delivered(call)
                    break
                except _Failed as failure:
                    why = str(failure)
                except Exception as error:  # the boundary: no hook, whatever it is, ends the manager
                    logger.exception("internal error: the hook of %s was not called", call.spec.name)
                    why = f"internal error: {error!r}"
            else:
                self._failed(call, f"{why} ({ATTEMPTS} attempts)")
            self._open.discard(call)
            if not self._open:
                self._none_open.set()

    def _delivered(self, call: _Call) -> None:
        if call.question:
            detail = {"name": call.spec.name, **call.question}
            self._events.announce(Event("hook.asked", service_id=call.spec.service_id, detail=detail))

    async def _watch_questions(self) -> None:
        known: set[tuple[str, str]] | None = None
        while True:
            await trio.sleep(QUESTIONS_EVERY_S)
            specs = {
                spec.name: spec
                for spec in self._registry.by_id.values()
                if spec.config.on_failure is not None and spec.config.agent_factory_path is not None
            }
            if not specs:
                continue
            try:
                questions = await self._sessions().questions(tuple(specs.values()))
                if known is None:
                    known = await self._delivered_before()
            except AgentManagerError:  # read again in a moment
                continue
            for one in questions:
                if (one.session_id, one.step_id) not in known and one.asked_at >= self._events_since:
                    which = {"session_id": one.session_id, "step_id": one.step_id}
                    self._tell(
                        specs[one.service],
                        "question",
                        question=which,
                        instance_id=one.instance_id,
                        content=one.content,
                    )
            known = {(one.session_id, one.step_id) for one in questions}

    async def _delivered_before(self) -> set[tuple[str, str]]:
        """The questions that earlier managers have delivered, as far as events are kept."""
        events = await self._events.kept()
        self._events_since = events[0].at if events else utc_now()
        return {
            (str(event.detail["session_id"]), str(event.detail["step_id"]))
            for event in events
            if event.kind == "hook.asked"
        }


async def _attempt(call: _Call) -> None:
    """Raises `_Failed`."""
    work = _post if is_url(call.hook) else _run
    try:
        with trio.fail_after(TIMEOUT_S):
            await work(call)
    except trio.TooSlowError:
        raise _Failed(f"it took longer than {TIMEOUT_S:g} s") from None


async def _run(call: _Call) -> None:
    variables = {name: value for name, value in os.environ.items() if name != "AGENTMGR_TOKEN"}
    try:
        code, said = await run_command(
            call.hook, stdin=call.body, cwd=call.spec.config.cwd, environment=variables
        )
    except OSError as error:
        program = shlex.split(call.hook)[0]
        raise _Failed(f"cannot execute {program!r}: {error.strerror or error}") from None
    if code:
        how = f"exit code {code}" if code > 0 else f"signal {-code}"
        raise _Failed(f"{how}: {said}" if said else how)


async def _post(call: _Call) -> None:
    url = urlsplit(call.hook)
    assert url.hostname is not None
    tls = ssl.create_default_context() if url.scheme == "https" else None
    try:
        stream = await open_stream(url.hostname, url.port or (443 if tls else 80), tls=tls)
    except (OSError, trio.BrokenResourceError) as error:
        raise _Failed(f"cannot connect: {error}") from None
    async with stream:
        connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=_ANSWER_BYTES)
        head = [
            ("Host", url.netloc.rpartition("@")[2]),
            ("Content-Type", "application/json"),
            ("Content-Length", str(len(call.body))),
            ("User-Agent", f"agentmgr/{__version__}"),
            ("Connection", "close"),
        ]
        if url.username is not None:
            who = f"{unquote(url.username)}:{unquote(url.password or '')}"
            head.append(("Authorization", f"Basic {b64encode(who.encode()).decode()}"))
        target = (url.path or "/") + (f"?{url.query}" if url.query else "")
        try:
            for event in (
                h11.Request(method="POST", target=target, headers=head),
                h11.Data(data=call.body),
                h11.EndOfMessage(),
            ):
                await stream.send_all(connection.send(event) or b"")
            while not isinstance(answer := connection.next_event(), h11.Response):
                if answer is h11.NEED_DATA:
                    connection.receive_data(bytes(await stream.receive_some()))
        except (h11.ProtocolError, trio.BrokenResourceError) as error:
            raise _Failed(f"no answer: {error}") from None
    if not 200 <= answer.status_code < 300:
        raise _Failed(f"answered {answer.status_code}")
