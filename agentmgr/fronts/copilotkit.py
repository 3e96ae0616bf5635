"""CopilotKit's runtime: a page that is built with its client has the gateway as its server.

GET  /copilotkit/info                          the services, as agents
POST /copilotkit/agent/{agent}/run             a `RunAgentInput`; answers with the events of its run
POST /copilotkit/agent/{agent}/connect         the same, when a page opens: what was said, and what runs
POST /copilotkit/agent/{agent}/stop/{thread}   {"runId"}, or nothing for whichever run it is
POST /copilotkit                               {"method", "params", "body"}: one of these, for a page with
                                               `useSingleEndpoint`

As `@copilotkit/core` 1.74 asks and `@copilotkit/runtime` answers. The agent `default`, which is CopilotKit's
for a page that names none, is the one that the rules choose, where no service has that name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import trio
from attrs import frozen

from ..version import __version__
from .agui_input import RunInput
from .agui_runs import Runs
from .exchange import Exchange, Route
from .models import services_of
from .problem import Problem, invalid, optional, required

_DEFAULT = "default"
_LACKS = {
    "audioFileTranscriptionEnabled": False,
    "threadEndpoints": dict.fromkeys(("list", "inspect", "mutations", "realtimeMetadata"), False),
    "suggestions": False,
    "a2uiEnabled": False,
    "openGenerativeUIEnabled": False,
    "telemetryDisabled": True,
}
"""What CopilotKit's own runtime has besides agents."""
_PLAIN = {"description": "", "className": "agentmgr"}
_STOPPED = {"type": "RUN_ERROR", "message": "Run stopped by user", "code": "STOPPED"}


class CopilotKit:
    """The routes; the runs are those of AG-UI's front."""

    def __init__(self, runs: Runs) -> None:
        self._runs = runs
        self.routes: Sequence[Route] = (
            Route("GET", "/copilotkit/info", self._info),
            Route("POST", "/copilotkit/agent/{agent}/run", self._run),
            Route("POST", "/copilotkit/agent/{agent}/connect", self._connect),
            Route("POST", "/copilotkit/agent/{agent}/stop/{thread}", self._stop),
            Route("POST", "/copilotkit", self._call),
            Route("POST", "/copilotkit/", self._call),
        )

    async def _info(self, exchange: Exchange) -> None:
        agents = {name: {"name": name, **_PLAIN} for name in _agents(exchange)}
        info = {"version": __version__, "mode": "sse", "agents": agents, **_LACKS}
        await exchange.reply(200, json.dumps(info).encode())

    async def _run(self, exchange: Exchange) -> None:
        asked = await exchange.read(RunInput.of)
        await self._runs.run(exchange, _service(exchange, exchange.parts["agent"]), asked)

    async def _connect(self, exchange: Exchange) -> None:
        asked = await exchange.read(_what_connects)
        await self._runs.connect(exchange, _service(exchange, exchange.parts["agent"]), asked)

    async def _stop(self, exchange: Exchange) -> None:
        run_id = _run_id(exchange.request.json()) if exchange.request.body.strip() else None
        await self._end_run(exchange, exchange.parts["agent"], exchange.parts["thread"], run_id)

    async def _call(self, exchange: Exchange) -> None:
        call = await exchange.read(_Call.of)
        if call.method == "info":
            await self._info(exchange)
        elif call.asked is None:
            await self._end_run(exchange, call.agent, call.thread, call.run_id)
        else:
            answer = self._runs.run if call.method == "agent/run" else self._runs.connect
            await answer(exchange, _service(exchange, call.agent), call.asked)

    async def _end_run(self, exchange: Exchange, agent: str, thread: str, run_id: str | None) -> None:
        answer: dict[str, object] = {"stopped": True, "interrupt": _STOPPED}
        if not await self._runs.stop(exchange, _service(exchange, agent), thread, run_id):
            which = "no run" if run_id is None else f"not the run {run_id!r}"
            answer = {"stopped": False, "message": f"{which} is active in the thread {thread!r}"}
        await exchange.reply(200, json.dumps(answer).encode())


@frozen
class _Call:
    """What a page with a single endpoint asks for."""

    method: str
    agent: str = ""
    asked: RunInput | None = None  #: of a run, or to connect
    thread: str = ""  #: to stop
    run_id: str | None = None

    @classmethod
    def of(cls, fields: Mapping[str, object]) -> _Call:
        """Raises `Problem`."""
        method, params = required(fields, "method", str), optional(fields, "params", dict) or {}
        if method == "info":
            return cls(method)
        agent = required(params, "agentId", str, "params.")
        match method:
            case "agent/run":
                return cls(method, agent, RunInput.of(required(fields, "body", dict)))
            case "agent/connect":
                return cls(method, agent, _what_connects(required(fields, "body", dict)))
            case "agent/stop":
                thread = required(params, "threadId", str, "params.")
                return cls(method, agent, None, thread, _run_id(optional(fields, "body", dict) or {}))
        raise invalid("method", "must be info, agent/run, agent/connect or agent/stop")


def _what_connects(fields: Mapping[str, object]) -> RunInput:
    return RunInput.of(fields, connects=True)


def _run_id(scope: Mapping[str, object]) -> str | None:
    """The run that a stop is for; None: whichever it is. Raises `Problem`."""
    run_id = optional(scope, "runId", str)
    if run_id == "" or not scope.keys() <= {"runId"}:  # misspelt, it must not stop whichever it is
        raise Problem(400, "invalid_field", "The body must be empty or name the run: runId.", param="runId")
    return run_id


def _agents(exchange: Exchange) -> list[str]:
    """Those that the client may reach. Raises `Refusal`: quotas hold here too."""
    request, intake = exchange.request, exchange.intake
    with intake.quotas.admit(request.client_ip, trio.current_time()):
        allowed = None if request.identity is None else request.identity.services
        names = services_of(intake.lobby.router.table, allowed)
        return sorted(names | {_DEFAULT} if _service(exchange, _DEFAULT) != _DEFAULT else names)


def _service(exchange: Exchange, agent: str) -> str:
    if agent == _DEFAULT and _DEFAULT not in services_of(exchange.intake.lobby.router.table, None):
        return "auto"
    return agent
