"""OpenAI's API: which services there are as models, and what is said to them."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Sequence

import trio

from ..core.routing import RoutingTable
from ..proxy.access import Identity
from . import openai_errors
from .conversation import NotTaken, Turn, converse
from .http import Exchange, Route
from .openai_chat import ChatAnswer, ChatRequest
from .problem import Problem


class OpenAI:
    """The front `openai`."""

    def __init__(self) -> None:
        self._since = int(time.time())
        self.routes: Sequence[Route] = (
            Route("GET", "/v1/models", self._models),
            Route("GET", "/v1/models/{model}", self._model),
            Route("POST", "/v1/chat/completions", self._chat),
        )

    def problem(self, problem: Problem) -> bytes:
        return openai_errors.body(problem)

    async def _models(self, exchange: Exchange) -> None:
        models = [self._described(name) for name in _reachable(exchange)]
        await exchange.reply(200, json.dumps({"object": "list", "data": models}).encode())

    async def _model(self, exchange: Exchange) -> None:
        model = exchange.parts["model"]
        if model not in _reachable(exchange):
            raise Problem(404, "service_not_found", f"There is no model {model!r} for you.", param="model")
        await exchange.reply(200, json.dumps(self._described(model)).encode())

    def _described(self, model: str) -> dict[str, object]:
        return {"id": model, "object": "model", "created": self._since, "owned_by": "agentmgr"}

    async def _chat(self, exchange: Exchange) -> None:
        asked = ChatRequest.of(exchange.request.json())
        answer = ChatAnswer(
            f"chatcmpl-{secrets.token_hex(12)}",
            int(time.time()),
            asked.model,
            include_usage=asked.include_usage,
            show_tools=asked.show_tools,
        )
        try:
            async with converse(exchange, asked.model, asked.saying) as turn:
                if asked.stream:
                    await _stream(exchange, turn, answer)
                else:
                    await _whole(exchange, turn, answer)
        except NotTaken as error:
            raise openai_errors.not_taken(error.content) from None


def _reachable(exchange: Exchange) -> list[str]:
    """What the client may name as a model. Raises `Refusal`: quotas hold here too."""
    request, intake = exchange.request, exchange.intake
    with intake.quotas.admit(request.client_ip, trio.current_time()):
        return models(intake.lobby.router.table, request.identity)


def models(table: RoutingTable, identity: Identity | None) -> list[str]:
    """`auto`, the names of the services, and `tag:…` for the tags of those that run."""
    services = None if identity is None else identity.services
    names = table.service_names | {backend.service_name for backend in table.backends}
    allowed = names if services is None else names & services
    tags = {tag for b in table.backends if b.service_name in allowed for tag in b.tags}
    return ["auto", *sorted(allowed), *sorted(f"tag:{tag}" for tag in tags)]


async def _whole(exchange: Exchange, turn: Turn, answer: ChatAnswer) -> None:
    while not answer.finished:
        for event in await turn.events():
            answer.feed(event)
    await exchange.reply(200, answer.whole())


async def _stream(exchange: Exchange, turn: Turn, answer: ChatAnswer) -> None:
    """What comes together is sent together, and at once."""
    try:
        while not answer.finished:
            chunks = [answer.feed(event) for event in await turn.events()]
            if data := b"".join(chunks):
                if not exchange.begun:
                    await exchange.begin()
                await exchange.send(data)
    except (Problem, NotTaken) as error:
        if not exchange.begun:
            raise
        problem = error if isinstance(error, Problem) else openai_errors.not_taken(error.content)
        await exchange.send(answer.cut_off(problem))
    await exchange.end()
