"""Query strings, as strict as bodies: every parameter is known, and means what it says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

import attrs

from ..codec import from_plain
from ..errors import FieldProblem, InvalidRequest

T = TypeVar("T")


@attrs.frozen
class NoQuery:
    """For operations without parameters: each one given is refused by name."""


_WORDS = {"true": True, "1": True, "false": False, "0": False}


def parse_query(given: Mapping[str, Sequence[str]], kind: type[T]) -> T:
    """A value of the attrs class `kind` from a query string; raises `InvalidRequest`.

    Lists may be repeated or separated by commas: `tags=a&tags=b` is `tags=a,b`.
    """
    hints = get_type_hints(kind)
    plain: dict[str, Any] = {}
    problems: list[FieldProblem] = []
    for name, values in given.items():
        if name not in hints:
            problems.append(FieldProblem(name, "unknown parameter"))
        elif _is_list(hints[name]):
            plain[name] = [word for value in values for word in value.split(",") if word]
        elif len(values) > 1:
            problems.append(FieldProblem(name, "is given more than once"))
        else:
            try:
                plain[name] = _scalar(values[0], hints[name])
            except ValueError as error:
                problems.append(FieldProblem(name, str(error)))
    if problems:
        raise InvalidRequest("; ".join(f"{p.path} {p.message}" for p in problems), fields=problems)
    return from_plain(plain, kind)


def _is_list(hint: Any) -> bool:
    return get_origin(hint) in (tuple, frozenset)


def _scalar(text: str, hint: Any) -> Any:
    kinds = get_args(hint) or (hint,)
    if bool in kinds:
        if text.lower() not in _WORDS:
            raise ValueError("must be true or false")
        return _WORDS[text.lower()]
    if int in kinds:
        if not (text.isascii() and text.removeprefix("-").isdigit() and len(text) <= 19):
            raise ValueError("must be a whole number")
        return int(text)
    return text
