"""The one converter between our values and JSON, TOML and database rows.

It is strict: `"12"` is not 12, `"abc"` is not a list, 1 is not True, and an unknown field is refused by
name. cattrs by itself would turn each of these into something (measured: `dependencies.md` of the design).

Nor is code written for each class, as by cattrs' `Converter`: a command would spend 10 ms on compiling it,
and the loops here take a tenth longer than such code.
"""

from __future__ import annotations

import json
import types
from collections.abc import Callable, Iterable, Mapping
from contextvars import ContextVar
from datetime import UTC, datetime
from enum import StrEnum
from functools import partial
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

import attrs
from cattrs import BaseConverter, IterableValidationError

from . import jsontext
from .errors import FieldProblem, InvalidRequest

T = TypeVar("T")

_ABSENT = object()


class _Mismatch(TypeError):
    """A value of the wrong type; its message is shown to the user."""

    def __init__(self, expected: str, value: Any = _ABSENT) -> None:
        self.expected = expected
        super().__init__(f"must be {expected}" + ("" if value is _ABSENT else f", not {_name_of(value)}"))


def to_json(value: Any) -> str:
    """JSON text of one of our values: compact, keys in the order of the class."""
    return json.dumps(to_plain(value), ensure_ascii=False, separators=(",", ":"))


def to_plain(value: Any) -> Any:
    """What `json.dumps` takes: dicts, lists, strings, numbers, booleans and None."""
    return _converter.unstructure(value)


def from_plain(data: Any, kind: type[T]) -> T:
    """A value of class `kind` from plain data.

    Raises `InvalidRequest` whose `fields` name the path and the fault of each bad field.
    """
    try:
        return _converter.structure(data, kind)
    except Exception as error:  # of cattrs, of a class, or of Python, as for a number that is too large
        problems = tuple(_problems(error, ""))
        summary = "; ".join(f"{p.path} {p.message}".strip() for p in problems)
        raise InvalidRequest(summary, fields=problems) from error


def from_answer(data: Any, kind: type[T]) -> T:
    """The same for what a manager answers: one of a newer version may say more than is known here."""
    token = _passes_over_unknown.set(True)
    try:
        return from_plain(data, kind)
    finally:
        _passes_over_unknown.reset(token)


def from_json(text: str | bytes, kind: type[T]) -> T:
    """A value of class `kind` from JSON text; raises `InvalidRequest`."""
    return from_plain(parse_json(text), kind)


def parse_json(text: str | bytes) -> Any:
    """Plain data from JSON text; raises `InvalidRequest`, also for what JSON could not say again."""
    try:
        return jsontext.parse(text)
    except jsontext.NotJson as error:
        raise InvalidRequest(str(error)) from None


def parse_toml(text: str) -> dict[str, Any]:
    """Plain data from TOML text; raises `InvalidRequest`, which names the line, also for too deep nesting."""
    import tomllib  # 2 ms that a command without such a file does not need

    try:
        return tomllib.loads(text)
    except RecursionError:
        raise InvalidRequest("it is nested too deep") from None
    except ValueError as error:
        raise InvalidRequest(str(error)) from None


def _problems(error: Exception, path: str) -> list[FieldProblem]:
    if isinstance(error, IterableValidationError):
        return [
            problem
            for inner, note in error.group_exceptions()[0]
            for problem in _problems(inner, f"{path}[{note.index!r}]")
        ]
    if isinstance(error, InvalidRequest) and error.fields:
        prefix = f"{path}." if path else ""
        return [FieldProblem(f"{prefix}{problem.path}", problem.message) for problem in error.fields]
    return [FieldProblem(path, str(error))]


_JSON_NAMES = {
    str: "a string", int: "a whole number", float: "a number", bool: "true or false",
    dict: "an object", list: "a list", type(None): "null",
}  # fmt: skip


def _name_of(value: Any) -> str:
    return _JSON_NAMES.get(type(value), type(value).__name__)


def _exactly(kind: type[T], value: Any, _: Any) -> T:
    if type(value) is not kind:
        raise _Mismatch(_JSON_NAMES[kind], value)
    return value


def _string(value: Any, kind: type[str]) -> str:
    # Hooks for a class also serve its subclasses, and our enums are strings.
    if issubclass(kind, StrEnum):
        return _member(value, kind)
    text = _exactly(str, value, kind)
    try:
        text.encode()
    except UnicodeEncodeError:  # half a surrogate pair: no file, database or socket would take it
        raise _Mismatch("text in valid Unicode") from None
    return text


def _number(value: Any, _: Any) -> float:
    if type(value) not in (int, float):
        raise _Mismatch("a number", value)
    return float(value)


def _moment(value: Any, _: Any) -> datetime:
    if isinstance(value, str):
        try:
            moment = datetime.fromisoformat(value)
        except ValueError:
            moment = None
        if moment is not None and moment.tzinfo is not None:
            return moment.astimezone(UTC)
    raise _Mismatch("a time such as 2026-11-22T10:00:00Z")


def _member(value: Any, kind: type[StrEnum]) -> StrEnum:
    if isinstance(value, str):
        try:
            return kind(value)
        except ValueError:
            pass
    raise _Mismatch(f"one of {', '.join(kind)}")


def _origin(kind: Any) -> Any:
    return get_origin(kind)


def _is_enum(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, StrEnum)


def _is_union(kind: Any) -> bool:
    return _origin(kind) in (Union, types.UnionType)


def _union_of(kind: Any) -> Any:
    """A hook for `X | None` and for unions of scalars and tuples: the first member that takes it."""
    members = [member for member in get_args(kind) if member is not type(None)]
    optional = len(members) < len(get_args(kind))

    def structure(value: Any, _: Any) -> Any:
        if value is None and optional:
            return None
        expected = []
        for member in members:
            try:
                return _converter.structure(value, member)
            except _Mismatch as error:
                expected.append(error.expected)
        raise _Mismatch(" or ".join(expected), value)

    return structure


def _sequence_of(kind: Any) -> Any:
    origin, args = _origin(kind), get_args(kind)

    def structure(value: Any, _: Any) -> Any:
        if not isinstance(value, list | tuple | set | frozenset):
            raise _Mismatch("a list", value)
        return origin(inner(value, list[args[0]]))  # type: ignore[valid-type]  # built at run time

    inner = _converter.structure
    return structure


def _mapping_of(kind: Any) -> Any:
    args = get_args(kind)

    def structure(value: Any, _: Any) -> Any:
        if not isinstance(value, Mapping):
            raise _Mismatch("an object", value)
        return _converter.structure(dict(value), dict[args[0], args[1]])  # type: ignore[valid-type]

    return structure


def _timestamp(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat().replace("+00:00", "Z")


def _meant(name: str, known: Iterable[str]) -> str:
    from difflib import get_close_matches  # for mistakes alone

    return "".join(f"; {close} is one" for close in get_close_matches(name, known, 1))


_passes_over_unknown = ContextVar("_passes_over_unknown", default=False)


def _reader(converter: BaseConverter, kind: type[Any]) -> Callable[[Any, Any], Any]:
    """Makes a `kind` of an object, or tells all that is wrong with its fields."""
    hints = get_type_hints(kind)
    hooks = {a.name: (converter.get_structure_hook(hints[a.name]), hints[a.name]) for a in attrs.fields(kind)}
    required = [a.name for a in attrs.fields(kind) if a.default is attrs.NOTHING]
    defaults = {a.name: a.default for a in attrs.fields(kind) if type(a.default) in (str, int, float)}

    def read(data: Any, _: Any) -> Any:
        if not isinstance(data, Mapping):
            raise _Mismatch("an object", data)
        values: dict[str, Any] = {}
        problems = [FieldProblem(name, "is required") for name in required if name not in data]
        for name, item in data.items():
            if name not in hooks:
                if not _passes_over_unknown.get():
                    problems.append(FieldProblem(name, f"unknown field{_meant(name, hooks)}"))
                continue
            default = defaults.get(name, _ABSENT)
            if type(item) is type(default) and item == default:
                continue  # the default itself: read from a thousand rows, equal values would take a megabyte
            hook, hint = hooks[name]
            try:
                values[name] = hook(item, hint)
            except Exception as error:  # as in `from_plain`
                problems += _problems(error, name)
        if problems:
            raise InvalidRequest(f"{kind.__name__} cannot be read", fields=problems)
        return kind(**values)

    return read


_PLAIN = frozenset({str, int, float, bool, type(None)})


def _writer(converter: BaseConverter, kind: type[Any]) -> Callable[[Any], dict[str, Any]]:
    """Makes an object of a `kind`, with its fields in their order."""
    hints = get_type_hints(kind)
    names = [a.name for a in attrs.fields(kind)]
    hooks = []
    for name in names:
        hint = hints[name]
        members = frozenset(get_args(hint) if _is_union(hint) else (hint,)) - {type(None)}
        if not members <= _PLAIN:
            known = len(members) == 1
            hooks.append((name, converter.get_unstructure_hook(*members) if known else converter.unstructure))

    def write(value: Any) -> dict[str, Any]:
        plain = {name: getattr(value, name) for name in names}
        for name, hook in hooks:
            if (inner := plain[name]) is not None:
                plain[name] = hook(inner)
        return plain

    return write


def _make() -> BaseConverter:
    converter = BaseConverter()
    converter.register_structure_hook(str, _string)
    converter.register_structure_hook(int, partial(_exactly, int))
    converter.register_structure_hook(bool, partial(_exactly, bool))
    converter.register_structure_hook(float, _number)
    converter.register_structure_hook(datetime, _moment)
    converter.register_structure_hook_factory(_is_union, _union_of)
    converter.register_structure_hook_factory(lambda k: _origin(k) in (tuple, frozenset), _sequence_of)
    converter.register_structure_hook_factory(lambda k: _origin(k) is Mapping, _mapping_of)
    converter.register_structure_hook_factory(attrs.has, partial(_reader, converter))
    converter.register_unstructure_hook(datetime, _timestamp)
    converter.register_unstructure_hook_func(_is_enum, str)
    converter.register_unstructure_hook_func(lambda k: _origin(k) is frozenset or k is frozenset, sorted)
    converter.register_unstructure_hook_func(lambda k: _origin(k) is tuple or k is tuple, _plain_list)
    converter.register_unstructure_hook_factory(attrs.has, partial(_writer, converter))
    return converter


def _plain_list(values: tuple[Any, ...]) -> list[Any]:
    return [_converter.unstructure(value) for value in values]


_converter = _make()
