"""Words of the command line that mean several things."""

from __future__ import annotations

from pathlib import Path

from ..errors import InvalidRequest


def split_tags(text: str) -> frozenset[str]:
    """`a,b` is two tags; blanks around them do not count."""
    return frozenset(word.strip() for word in text.split(",") if word.strip())


def variables(pairs: tuple[str, ...], files: tuple[str, ...]) -> dict[str, str]:
    """Environment variables from `KEY=VALUE` words, and from files with such lines; words win.

    In a file, empty lines and those that begin with `#` are skipped, and quotes around a value are taken off.
    """
    found: dict[str, str] = {}
    for name in files:
        try:
            lines = Path(name).read_text("utf-8").splitlines()
        except (OSError, UnicodeError) as error:
            raise InvalidRequest(f"--env-file {name} cannot be read: {error}") from None
        for number, line in enumerate(lines, 1):
            line = line.strip().removeprefix("export ")
            if line and not line.startswith("#"):
                key, value = _pair(line, f"{name}, line {number}")
                if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"":
                    value = value[1:-1]
                found[key] = value
    for word in pairs:
        key, value = _pair(word, "--env")
        found[key] = value
    return found


def _pair(text: str, place: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise InvalidRequest(f"{place}: {key!r} is not KEY=VALUE")
    return key.strip(), value.strip() if place != "--env" else value
