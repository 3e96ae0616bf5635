"""AG-UI's route: each service is an agent that is run by a POST."""

from __future__ import annotations

from collections.abc import Sequence

from .agui import error_body
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
        return error_body(problem)

    async def _run(self, exchange: Exchange) -> None:
        await self.runs.run(exchange, exchange.parts["service"], await exchange.read(RunInput.of))
