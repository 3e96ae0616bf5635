"""Lists page by cursor, so that a list which changes between two requests neither skips nor repeats."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from attrs import field, frozen

from ..errors import FieldProblem, InvalidRequest
from ..models.fields import between

T = TypeVar("T")


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
    ordered = sorted(values, key=key)
    rest = ordered
    if query.cursor is not None:
        after = _place(query.cursor)
        rest = [value for value in ordered if key(value) > after]
    items = tuple(rest[: query.limit])
    more = len(rest) > len(items)
    return Page(
        items=items,
        total=len(ordered),
        limit=query.limit,
        next_cursor=_cursor(key(items[-1])) if more else None,
    )


def _cursor(place: str) -> str:
    return base64.urlsafe_b64encode(place.encode()).decode()


def _place(cursor: str) -> str:
    try:
        return base64.b64decode(cursor.encode("ascii"), altchars=b"-_", validate=True).decode()
    except (UnicodeError, binascii.Error):
        problem = "is not one that this API gave out"
        raise InvalidRequest(f"cursor {problem}", fields=[FieldProblem("cursor", problem)]) from None
