"""The document's bounds and the API's are one: what is outside is refused, what is at them is taken."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import attrs
import httpx2
import pytest

from agentmgr.api.resources import operations
from agentmgr.api.schemas import Schemas
from agentmgr.codec import from_plain
from agentmgr.errors import InvalidRequest

PARTS = {part for o in operations(control=True) for part in (o.body, o.query) if part is not None}
REQUIRED = {
    "name": "x", "agent_factory_path": "agent.py", "scopes": ["read"], "path": "/x", "instances": 1,
    "kind": "api", "port": 1, "services": ["svc_0123456789abcdef"], "q": "x",
}  # fmt: skip


def bounded() -> Iterator[tuple[type, str, dict[str, Any]]]:
    for part in sorted(PARTS, key=lambda part: part.__name__):
        schemas = Schemas()
        schemas.of(part)
        for name, schema in schemas.components[part.__name__]["properties"].items():
            yield part, name, next((s for s in schema.get("anyOf", ()) if "maximum" in s), schema)


NUMBERS = [
    (part, name, schema)
    for part, name, schema in bounded()
    if schema.get("type") in ("integer", "number") and "maximum" in schema
]
WORDS = [(part, name, schema) for part, name, schema in bounded() if "pattern" in schema]


def taken(part: type, name: str, value: Any) -> bool:
    known = {field.name for field in attrs.fields(part)}
    document = {key: value for key, value in REQUIRED.items() if key in known} | {name: value}
    try:
        from_plain(document, part)
    except InvalidRequest as error:
        return [problem.path for problem in error.fields] != [name]
    return True


def test_most_fields_have_bounds() -> None:
    assert len(NUMBERS) > 40
    assert len(WORDS) > 5


@pytest.mark.parametrize(("part", "name", "schema"), NUMBERS)
def test_numbers(part: type, name: str, schema: dict[str, Any]) -> None:
    number = int if schema["type"] == "integer" else float
    assert taken(part, name, number(schema["maximum"]))
    assert not taken(part, name, number(schema["maximum"] + 1))
    if "minimum" in schema:
        assert taken(part, name, number(schema["minimum"]))
        assert not taken(part, name, number(schema["minimum"] - 1))
    else:
        assert not taken(part, name, number(schema["exclusiveMinimum"]))


@pytest.mark.parametrize(("part", "name", "schema"), WORDS)
@pytest.mark.parametrize(
    "text", ["plain", "/plain", "", "two words", "a\nb", "\x1b[2J", "x" * 64, "x" * 1001]
)
def test_words(part: type, name: str, schema: dict[str, Any], text: str) -> None:
    meets = re.search(schema["pattern"], text) is not None and len(text) <= schema.get("maxLength", len(text))
    assert taken(part, name, text) == meets


@pytest.mark.parametrize(
    ("body", "path"),
    [
        ({"instances": 0}, "instances"),
        ({"restart_delay": -1}, "restart_delay"),
        ({"env": {"A=B": "x"}}, "env"),
        ({"tags": ["two words"]}, "tags"),
        ({"port": 0}, "port"),
        ({"config": {}}, "config"),
    ],
)
async def test_a_field_is_named_as_its_author_wrote_it(
    http: httpx2.AsyncClient, agent_file: str, body: dict[str, Any], path: str
) -> None:
    asked = {"name": "x", "agent_factory_path": agent_file}
    assert (await http.post("/services", json=asked)).status_code == 201
    for response in (
        await http.post("/services", json={**asked, **body}),
        await http.patch("/services/x", json=body),
        await http.put("/services/x", json={**asked, **body}),
    ):
        assert response.status_code == 400
        assert [error["path"] for error in response.json()["errors"]] == [path]
