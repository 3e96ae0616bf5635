"""JSON schemas (2020-12, as OpenAPI 3.1 takes them) of our attrs classes."""

from __future__ import annotations

import types
from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum
from typing import Any, Generic, Union, get_args, get_origin, get_type_hints

import attrs

from ..codec import to_plain
from ..models.fields import Option

_SCALARS: Mapping[Any, dict[str, Any]] = {
    str: {"type": "string"},
    int: {"type": "integer"},
    float: {"type": "number"},
    bool: {"type": "boolean"},
    type(None): {"type": "null"},
    datetime: {"type": "string", "format": "date-time"},
    Any: {},
}


class Schemas:
    """Collects the classes that are referred to, as `components/schemas`."""

    def __init__(self) -> None:
        self.components: dict[str, Any] = {}

    def of(self, kind: Any) -> dict[str, Any]:
        """The schema of a type: scalars and containers in place, classes by reference."""
        if kind in _SCALARS:
            return dict(_SCALARS[kind])
        origin, args = get_origin(kind), get_args(kind)
        if origin in (Union, types.UnionType):
            return {"anyOf": [self.of(arg) for arg in args]}
        if origin in (tuple, list):
            return {"type": "array", "items": self.of(args[0])}
        if origin is frozenset:
            return {"type": "array", "items": self.of(args[0])}
        if origin is not None and isinstance(origin, type) and issubclass(origin, Mapping):
            values = self.of(args[1])
            return {"type": "object", "additionalProperties": values or True}
        if isinstance(kind, type) and issubclass(kind, StrEnum):
            return self._refer(kind.__name__, lambda: {"type": "string", "enum": [str(m) for m in kind]})
        cls = origin or kind
        name = "".join([cls.__name__, *(getattr(arg, "__name__", "") for arg in args)])
        return self._refer(name, lambda: self._object(cls, args))

    def partial(self, kind: type[Any]) -> dict[str, Any]:
        """The schema of changes to a value: any of its fields, none required."""
        self.of(kind)
        whole = self.components[kind.__name__]
        changes = {key: value for key, value in whole.items() if key != "required"}
        changes["properties"] = {
            name: {key: value for key, value in schema.items() if key != "default"}
            for name, schema in whole["properties"].items()
        }
        return self._refer(f"{kind.__name__}Changes", lambda: changes)

    def _refer(self, name: str, make: Any) -> dict[str, Any]:
        if name not in self.components:
            self.components[name] = {}  # a class may refer to itself
            self.components[name] = make()
        return {"$ref": f"#/components/schemas/{name}"}

    def _object(self, cls: type[Any], args: tuple[Any, ...]) -> dict[str, Any]:
        hints = get_type_hints(cls)
        variables = _variables(cls)
        properties: dict[str, Any] = {}
        required = []
        for field in attrs.fields(cls):
            hint = _fill(hints[field.name], dict(zip(variables, args, strict=True)))
            properties[field.name] = self._property(field, hint)
            if field.default is attrs.NOTHING:
                required.append(field.name)
        schema = {"type": "object", "properties": properties, "additionalProperties": False}
        if required:
            schema["required"] = required
        if cls.__doc__ and not cls.__doc__.startswith("Method generated"):
            schema["description"] = cls.__doc__.strip().split("\n\n")[0]
        return schema

    def _property(self, field: attrs.Attribute[Any], hint: Any) -> dict[str, Any]:
        schema = self.of(hint)
        bounds = getattr(field.validator, "schema", None)
        if bounds:
            schema = _bounded(schema, bounds)
        if option := Option.of(field):
            unset = f"  Default: {option.unset}." if option.unset else ""
            schema = {**schema, **_form(field.name, option, hint), "description": option.help + unset}
        default = field.default
        if isinstance(default, attrs.Factory):  # type: ignore[arg-type]
            # Others give another value each time.
            default = _EMPTY.get(default.factory, attrs.NOTHING)  # type: ignore[union-attr]
        return schema if default is attrs.NOTHING else {**schema, "default": to_plain(default)}


_EMPTY: Mapping[Any, Any] = {dict: {}, frozenset: [], tuple: []}
_UNITS = {"_bytes": "bytes", "_mb": "MB", "_percent": "%"}


def _form(name: str, option: Option, hint: Any) -> dict[str, Any]:
    """For a form: the label, in what a number is counted, whether running instances need no restart for it,
    and what stands in an empty field.
    """
    suffix = next((suffix for suffix in _UNITS if name.endswith(suffix)), "")
    unit = option.unit or _UNITS.get(suffix) or ("s" if float in (hint, *get_args(hint)) else "")
    label = name.removesuffix(suffix).replace("_", " ")
    hints = {
        "title": (label[0].upper() + label[1:]).replace("Cpu", "CPU"),
        "x-unit": unit,
        "x-live": option.live,
        "x-placeholder": option.unset or option.metavar,
    }
    return {key: value for key, value in hints.items() if value}


def _bounded(schema: dict[str, Any], bounds: Mapping[str, Any]) -> dict[str, Any]:
    """Bounds go to the part of the schema that they are about, not to its null."""
    if "anyOf" in schema:
        return {"anyOf": [{**s, **_of_type(s.get("type"), bounds)} for s in schema["anyOf"]]}
    return {**schema, **bounds}


_OF_NUMBERS = frozenset({"minimum", "maximum", "exclusiveMinimum"})


def _of_type(kind: str | None, bounds: Mapping[str, Any]) -> dict[str, Any]:
    match kind:
        case "null":
            return {}
        case "integer" | "number":
            return {key: bound for key, bound in bounds.items() if key in _OF_NUMBERS}
        case "string":
            return {key: bound for key, bound in bounds.items() if key not in _OF_NUMBERS}
    return dict(bounds)


def _variables(cls: type[Any]) -> tuple[Any, ...]:
    for base in getattr(cls, "__orig_bases__", ()):
        if get_origin(base) is Generic:
            return get_args(base)
    return ()


def _fill(hint: Any, known: Mapping[Any, Any]) -> Any:
    if hint in known:
        return known[hint]
    origin, args = get_origin(hint), get_args(hint)
    if origin is tuple and args[0] in known:
        return types.GenericAlias(tuple, (known[args[0]], ...))
    return hint
