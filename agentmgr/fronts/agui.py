"""The front of AG-UI: each service is an agent, and each POST to it is a run; with CopilotKit's routes."""

from __future__ import annotations

from collections.abc import Sequence

from .. import jsontext
from .agui_input import RunInput
from .agui_runs import Runs
from .copilotkit import CopilotKit
from .exchange import Exchange, Route
from .problem import Problem


class AGUI:
    """The front `agui`."""

    def __init__(self) -> None:
        self.runs = Runs()
        self.routes: Sequence[Route] = (
            Route("POST", "/agui/{service}", self._run),
            *CopilotKit(self.runs).routes,
        )

    def problem(self, problem: Problem) -> bytes:
        """A RUN_ERROR, as the body of an answer that is no stream."""
        fields = {"type": "RUN_ERROR", "message": problem.message, "code": problem.code}
        return jsontext.in_utf8(jsontext.encode(fields | ({"param": problem.param} if problem.param else {})))

    async def _run(self, exchange: Exchange) -> None:
        await self.runs.run(exchange, exchange.parts["service"], await exchange.read(RunInput.of))
