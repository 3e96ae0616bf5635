"""OpenAI's API: which services there are as models, and what is said to them."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Sequence
from typing import Any

import trio
from attrs import frozen

from .. import jsontext
from ..core.routing import RoutingTable
from .cache import ConversationCache
from .exchange import Exchange, Route
from .keyed import Conversation
from .models import models
from .openai_chat import ChatAnswer, ChatRequest, error_of
from .place import Place
from .problem import Problem
from .prompt import is_retry, session_key
from .responses import Responses
from .turn import Turn


@frozen
class _Listing:
    """The models for clients of one kind, as long as the table is the same."""

    table: RoutingTable
    services: frozenset[str] | None
    names: list[str]
    body: bytes


class OpenAI:
    """The front `openai`."""

    def __init__(self) -> None:
        self._since = int(time.time())
        self._cache = ConversationCache()
        self.responses = Responses(self._cache)
        self._listed: _Listing | None = None  # the last one
        self.routes: Sequence[Route] = (
            Route("GET", "/v1/models", self._models),
            Route("GET", "/v1/models/{model}", self._model),
            Route("POST", "/v1/chat/completions", self._chat),
            *self.responses.routes,
        )

    def problem(self, problem: Problem) -> bytes:
        return jsontext.in_utf8(json.dumps(error_of(problem), ensure_ascii=False))

    async def _models(self, exchange: Exchange) -> None:
        await exchange.reply(200, self._listing(exchange).body)

    async def _model(self, exchange: Exchange) -> None:
        model = exchange.parts["model"]
        if model not in self._listing(exchange).names:
            raise Problem(404, "service_not_found", f"There is no model {model!r} for you.", param="model")
        await exchange.reply(200, json.dumps(self._described(model)).encode())

    def _listing(self, exchange: Exchange) -> _Listing:
        """What the client may name as a model. Raises `Refusal`: quotas hold here too."""
        request, intake = exchange.request, exchange.intake
        services = None if request.identity is None else request.identity.services
        with intake.quotas.admit(request.client_ip, trio.current_time()):
            known, table = self._listed, intake.lobby.router.table
            if known is None or known.table is not table or known.services != services:
                names = models(table, services)
                data = [self._described(name) for name in names]
                body = json.dumps({"object": "list", "data": data}).encode()
                known = self._listed = _Listing(table, services, names, body)
            return known

    def _described(self, model: str) -> dict[str, object]:
        return {"id": model, "object": "model", "created": self._since, "owned_by": "agentmgr"}

    async def _chat(self, exchange: Exchange) -> None:
        asked = await exchange.read(ChatRequest.of)
        answer = ChatAnswer(
            f"chatcmpl-{secrets.token_hex(12)}",
            int(time.time()),
            asked.model,
            include_usage=asked.include_usage,
            show_tools=asked.show_tools,
        )
        place = Place.of(exchange, asked.model, self._name(exchange, asked))
        again = is_retry(exchange.request.head.by_name)
        if asked.stream:
            exchange.stream(answer.cut_off)
        conversation = Conversation(exchange, place, asked.prompt, self._cache, again)
        stream = asked.stream
        del asked  # a stream lasts, and so does this frame; what was asked is most of its memory
        async with conversation.turn() as turn:
            answer.already = turn.already
            while not answer.finished:
                data = _feed(answer, turn, await turn.events())
                if stream:
                    await exchange.send(data)  # what came together goes together, and at once
            turn.already = answer.streamed
            conversation.remember(turn, answer.shown if stream else answer.content, answer.question)
        if stream:
            await exchange.end()
        else:
            await exchange.reply(200, answer.whole())

    def _name(self, exchange: Exchange, asked: ChatRequest) -> str | None:
        key = session_key(exchange.request.head.by_name, asked.metadata, asked.cache_key, asked.prompt)
        return None if key is None else f"openai:{key}"


def _feed(answer: ChatAnswer, turn: Turn, events: list[dict[str, Any]]) -> bytes:
    """The chunks for these. What comes behind a question is for the next answer, and what fails is raised the
    next time, where there are chunks before it.
    """
    data = b""
    for place, event in enumerate(events):
        try:
            data += answer.feed(event)
        except Problem:
            if not data:
                raise
            turn.hold(events[place:])
            break
        if answer.finished:
            turn.hold(events[place + 1 :])
            break
    return data
