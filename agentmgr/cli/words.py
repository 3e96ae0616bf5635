"""Words of the command line that mean several things."""

from __future__ import annotations

from ..errors import InvalidRequest


def split_tags(text: str) -> frozenset[str]:
    """`a,b` is two tags; blanks around them do not count."""
    return frozenset(word.strip() for word in text.split(",") if word.strip())


def variables(pairs: tuple[str, ...]) -> dict[str, str]:
    """Environment variables from `KEY=VALUE` words."""
    found: dict[str, str] = {}
    for word in pairs:
        key, equals, value = word.partition("=")
        if not equals or not key:
            raise InvalidRequest(f"--env: {key!r} is not KEY=VALUE")
        found[key] = value
    return found
