"""What an editor may ask for: the methods of ACP, version 1."""

from __future__ import annotations

from collections.abc import Awaitable, Mapping
from typing import Any

from .. import __version__
from .content import said
from .conversation import Begin, Conversation
from .peer import Handler, Peer
from .rpc import RESOURCE_NOT_FOUND, RpcError, required

PROTOCOL_VERSION = 1

_Params = Mapping[str, Any]


class EditorAgent:
    """The sessions of one editor with one service."""

    def __init__(self, title: str, begin: Begin, peer: Peer) -> None:
        self._title, self._begin, self._peer = title, begin, peer
        self._conversations: dict[str, Conversation] = {}
        self._methods: dict[str, Handler] = {
            "initialize": self._initialize,
            "session/new": self._new,
            "session/load": lambda params: self._take_up(params, replay=True),
            "session/resume": lambda params: self._take_up(params, replay=False),
            "session/close": self._close,
            "session/prompt": self._prompt,
            "session/cancel": self._cancel,
        }

    def handler_of(self, method: str) -> Handler | None:
        return self._methods.get(method)

    def leave(self) -> None:
        for conversation in self._conversations.values():
            conversation.leave()

    async def _initialize(self, params: _Params) -> dict[str, Any]:
        required(params, "protocolVersion", int)  # with another one than ours, the editor decides
        return {
            "protocolVersion": PROTOCOL_VERSION,
            "agentCapabilities": {
                "loadSession": True,
                "promptCapabilities": {"image": True, "audio": False, "embeddedContext": True},
                "mcpCapabilities": {"http": False, "sse": False},
                "sessionCapabilities": {"close": {}, "resume": {}},
            },
            "agentInfo": {"name": "agentmgr", "title": self._title, "version": __version__},
            "authMethods": [],
        }

    def _new(self, params: _Params) -> Awaitable[dict[str, Any]]:
        conversation = self._conversation(params)

        async def open_it() -> dict[str, Any]:
            await conversation.open()
            session_id = str(conversation.session_id)
            self._conversations[session_id] = conversation
            return {"sessionId": session_id}

        return open_it()

    def _take_up(self, params: _Params, *, replay: bool) -> Awaitable[dict[str, Any]]:
        session_id = required(params, "sessionId", str)
        conversation = self._conversation(params, session_id)
        if (before := self._conversations.pop(session_id, None)) is not None:
            before.leave()

        async def open_it() -> dict[str, Any]:
            await conversation.open(replay=replay)
            self._conversations[session_id] = conversation
            return {}

        return open_it()

    def _conversation(self, params: _Params, session_id: str | None = None) -> Conversation:
        cwd = required(params, "cwd", str)
        if params.get("mcpServers"):
            self._peer.log("the editor's MCP servers are not used: the agent runs where its manager is")
        return Conversation(self._begin, self._peer, session_id=session_id, cwd=cwd)

    def _prompt(self, params: _Params) -> Awaitable[dict[str, Any]]:
        conversation = self._known(params)
        return conversation.answer(conversation.expect(*said(params.get("prompt"))))

    def _cancel(self, params: _Params) -> Awaitable[None]:
        conversation = self._known(params)
        return conversation.stop(conversation.cancel())

    def _close(self, params: _Params) -> Awaitable[dict[str, Any]]:
        conversation = self._known(params)
        del self._conversations[params["sessionId"]]
        running = conversation.cancel()

        async def close() -> dict[str, Any]:
            await conversation.stop(running)
            conversation.leave()
            return {}

        return close()

    def _known(self, params: _Params) -> Conversation:
        session_id = required(params, "sessionId", str)
        if (known := self._conversations.get(session_id)) is None:
            why = f"the session {session_id[:100]!r} is not open here; load it, or make a new one"
            raise RpcError(RESOURCE_NOT_FOUND, why, {"sessionId": session_id[:300]})
        return known
