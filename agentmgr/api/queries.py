"""Query strings, as strict as bodies: every parameter is known, and means what it says; and pages of lists.

Lists page by cursor, so that a list which changes between two requests neither skips nor repeats.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Callable, Mapping, Sequence
from heapq import nsmallest
from typing import Any, Generic, TypeVar, get_args, get_origin, get_type_hints

from attrs import field, frozen

from ..codec import from_plain
from ..errors import FieldProblem, InvalidRequest
from ..models.fields import between

T = TypeVar("T")


@frozen
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


MAX_LIMIT = 1000


@frozen
class PageQuery:
    limit: int = field(default=100, validator=between(1, MAX_LIMIT))
    cursor: str | None = None


@frozen
class Page(Generic[T]):
    items: tuple[T, ...]
    total: int  #: of all pages
    limit: int
    next_cursor: str | None  #: None on the last page


def page(values: Sequence[T], query: PageQuery, key: Callable[[T], str]) -> Page[T]:
    """The page of `values` after the cursor. `key` orders them and names a place among them."""
    rest = values
    if query.cursor is not None:
        after = _place(query.cursor)
        rest = [value for value in values if key(value) > after]
    # Not sorted: a page of many takes far less.
    return _first(nsmallest(query.limit + 1, rest, key=key), query, len(values), key)


def page_by(
    values: Sequence[T],
    query: PageQuery,
    key: Callable[[T], str],
    by: Callable[[T], Any],
    *,
    descending: bool,
) -> Page[T]:
    """The same, ordered by what `by` gives first, which may be None: that is the least. `key` decides among
    equals. A value that changes between two requests may be skipped, or come again.
    """

    def rank(value: T) -> tuple[bool, Any]:
        found = by(value)
        return found is not None, found

    def place(value: T) -> str:
        return json.dumps([by(value), key(value)])

    ordered = sorted(sorted(values, key=key), key=rank, reverse=descending)
    rest = ordered
    if query.cursor is not None:
        try:
            then, after = json.loads(_place(query.cursor))
            before = [(rank(value), key(value)) for value in ordered]
            last = (then is not None, then)
            passed = sum(
                (r > last if descending else r < last) or (r == last and k <= after) for r, k in before
            )
        except (ValueError, TypeError):
            raise _no_cursor() from None
        rest = ordered[passed:]
    return _first(rest, query, len(ordered), place)


def _first(rest: Sequence[T], query: PageQuery, total: int, place: Callable[[T], str]) -> Page[T]:
    items = tuple(rest[: query.limit])
    more = len(rest) > len(items)
    return Page(
        items=items,
        total=total,
        limit=query.limit,
        next_cursor=_cursor(place(items[-1])) if more else None,
    )


def _cursor(place: str) -> str:
    return base64.urlsafe_b64encode(place.encode()).decode()


def _place(cursor: str) -> str:
    try:
        return base64.b64decode(cursor.encode("ascii"), altchars=b"-_", validate=True).decode()
    except (UnicodeError, binascii.Error):
        raise _no_cursor() from None


def _no_cursor() -> InvalidRequest:
    problem = "is not one that this API gave out"
    return InvalidRequest(f"cursor {problem}", fields=[FieldProblem("cursor", problem)])
