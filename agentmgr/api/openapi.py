"""The OpenAPI 3.1 document, made of the table of operations and of the models."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache
from http import HTTPStatus
from typing import Any, get_type_hints

import attrs

from .. import __version__
from ..codec import to_plain
from .operations import Operation
from .problems import MEDIA_TYPE
from .schemas import Schemas

_PROBLEM = {
    "type": "object",
    "description": "RFC 9457, with our stable code.",
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "code": {"type": "string"},
        "detail": {"type": "string"},
        "errors": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {"path": {"type": "string"}, "message": {"type": "string"}},
                "required": ["path", "message"],
            },
        },
    },
    "required": ["type", "title", "status", "code", "detail"],
}

# What any operation may answer, whatever was asked of it.
_ALWAYS = (400, 401, 403, 406, 429, 500, 503)


@cache
def document(operations: tuple[Operation, ...]) -> dict[str, Any]:
    schemas = Schemas()
    paths: dict[str, dict[str, Any]] = {}
    for operation in operations:
        paths.setdefault(operation.path, {})[operation.method.lower()] = _operation(operation, schemas)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "agentmgr",
            "version": __version__,
            "description": "Keeps agent services running and gives their clients one address.",
        },
        "paths": paths,
        # None is needed on this machine while there are no tokens.
        "security": [{}, {"token": []}],
        "components": {
            "schemas": {**dict(sorted(schemas.components.items())), "Problem": _PROBLEM},
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    }


def _operation(operation: Operation, schemas: Schemas) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "operationId": operation.name,
        "summary": operation.summary,
        "tags": [operation.tag],
    }
    parameters = [*_path_parameters(operation), *_query_parameters(operation, schemas)]
    if parameters:
        shown["parameters"] = parameters
    if operation.body is not None:
        content: dict[str, Any] = {
            "schema": (schemas.partial if operation.partial_body else schemas.of)(operation.body)
        }
        if operation.example is not None:
            content["example"] = operation.example
        shown["requestBody"] = {
            "required": operation.body_required,
            "content": {"application/json": content},
        }
    shown["responses"] = dict(_responses(operation, schemas))
    return shown


def _path_parameters(operation: Operation) -> Iterable[dict[str, Any]]:
    for name in re.findall(r"\{(\w+)\}", operation.path):
        yield {
            "name": name,
            "in": "path",
            "required": True,
            "description": "An id, or a name where the resource has one.",
            "schema": {"type": "string", "minLength": 1},
        }
    if 412 in operation.problems:
        yield {
            "name": "If-Match",
            "in": "header",
            "description": "The version that was read, as in its ETag.",
            "schema": {"type": "string"},
        }


def _query_parameters(operation: Operation, schemas: Schemas) -> Iterable[dict[str, Any]]:
    if operation.query is None:
        return
    hints = get_type_hints(operation.query)
    for field in attrs.fields(operation.query):
        schema = schemas.of(hints[field.name])
        # A parameter that is left out is null; one that is given is never.
        if "anyOf" in schema:
            (schema,) = [s for s in schema["anyOf"] if s != {"type": "null"}]
        schema = {**schema, **getattr(field.validator, "schema", {})}
        parameter: dict[str, Any] = {"name": field.name, "in": "query", "schema": schema}
        if field.default is attrs.NOTHING:
            parameter["required"] = True
        elif not isinstance(field.default, attrs.Factory) and field.default is not None:  # type: ignore[arg-type]
            schema["default"] = to_plain(field.default)
        yield parameter


def _responses(operation: Operation, schemas: Schemas) -> Iterable[tuple[str, Any]]:
    for status, kind in operation.gives.items():
        answer: dict[str, Any] = {"description": HTTPStatus(status).phrase}
        if kind is bytes:
            answer["content"] = {operation.media_type: {"schema": {}}}
        elif kind is not None:
            answer["content"] = {operation.media_type: {"schema": schemas.of(kind)}}
        yield str(status), answer
    for status in sorted({*_ALWAYS, *operation.problems}):
        yield (
            str(status),
            {
                "description": HTTPStatus(status).phrase,
                "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
            },
        )
