"""Calls of the REST API: JSON in and out, lists page by page, and the manager's errors raised again."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from json import dumps
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar
from urllib.parse import quote, urlencode

import trio

from ..codec import from_answer, parse_json
from ..errors import AgentManagerError, FieldProblem, InvalidRequest, ManagerError, ManagerNotRunning
from .http import Response, check_loop, request

T = TypeVar("T")

PAGE = 1000  #: asked for at once; the most that the API gives


class RestClient:
    """What `ManagerClient` stands on: a call per connection, so there is nothing to open and to close."""

    def __init__(self, target: Path | str, *, token: str | None = None, timeout_s: float = 30.0) -> None:
        self._target = target
        self._timeout_s = timeout_s
        self._headers = {} if token is None else {"Authorization": f"Bearer {token}"}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Nothing is held between two calls."""

    async def _one(self, kind: type[T], method: str, path: str, **options: Any) -> T:
        return from_answer(await self._json(method, path, **options), kind)

    async def _all(self, kind: type[T] | Callable[[Any], T], path: str, params: Mapping[str, str]) -> list[T]:
        found: list[T] = []
        query = {name: value for name, value in params.items() if value} | {"limit": str(PAGE)}
        while True:
            data = await self._json("GET", path, params=query)
            found += [
                from_answer(item, kind) if isinstance(kind, type) else kind(item) for item in data["items"]
            ]
            if data["next_cursor"] is None:
                return found
            query["cursor"] = data["next_cursor"]

    async def _json(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        answer = await self._answer(method, path, **options)
        try:
            data = parse_json(answer)
        except InvalidRequest:
            data = None
        if not isinstance(data, dict):
            raise ManagerError(f"{self._target} answered something else than a manager does")
        return data

    async def _answer(self, method: str, path: str, *, waits: bool = False, **options: Any) -> bytes:
        check_loop()
        # Work takes as long as it takes; the manager has deadlines of its own for it.
        with trio.move_on_after(math.inf if waits else self._timeout_s):
            async with self._stream(method, path, **options) as response:
                return await response.read()
        raise ManagerNotRunning(f"the manager at {self._target} did not answer within {self._timeout_s:g} s")

    @asynccontextmanager
    async def _stream(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        json: object = None,
    ) -> AsyncIterator[Response]:
        if params:
            path = f"{path}?{urlencode(params)}"
        body = None if json is None else dumps(json).encode()
        all_headers = {**self._headers, **(headers or {})}
        async with request(
            self._target, method, f"/api/v1{path}", headers=all_headers, body=body
        ) as response:
            if response.is_error:
                raise _error(response.status, await response.read())
            yield response


def quoted(ref: str) -> str:
    """As a part of a path. Raises `InvalidRequest`."""
    if not ref or "/" in ref or ref in (".", ".."):
        raise InvalidRequest(f"{ref!r} is no name and no id")
    return quote(ref, safe="")


def flag(value: bool) -> str:
    return "true" if value else "false"


def if_match(version: int | None) -> dict[str, str]:
    return {} if version is None else {"If-Match": f'"{version}"'}


def _error(status: int, body: bytes) -> AgentManagerError:
    """What the manager raised, from its problem document."""
    try:
        data = parse_json(body)
        fields = [FieldProblem(f["path"], f["message"]) for f in data.get("errors", ())]
        return AgentManagerError.from_code(data["code"], data["detail"], fields=fields)
    except (ValueError, KeyError, TypeError, AttributeError):
        return ManagerError(f"the answer had the status {status}, and was not a manager's")
