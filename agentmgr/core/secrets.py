"""Values that no interface may show."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from ..errors import FieldProblem, InvalidRequest

HIDDEN = "***"
"""Stands where a value is. Given back in a change, it means: as it was."""


def shown(env: Mapping[str, str], public: Collection[str]) -> dict[str, str]:
    """Environment variables as they may be shown: their names, and the values of those that are `public`.

    A name does not show what the value is: `DB_PASS`, `JWT` and `SLACK_WEBHOOK` are secrets too.
    """
    return {name: value if name in public else HIDDEN for name, value in env.items()}


def restored(env: Mapping[str, str], known: Mapping[str, str]) -> dict[str, str]:
    """What `env` means, where it was `shown` before: hidden values are those that are known.

    Raises `InvalidRequest` for a hidden value that is not known: it must not become a value itself.
    """
    if lost := sorted(name for name, value in env.items() if value == HIDDEN and name not in known):
        problem = f'hides {", ".join(lost)} ("{HIDDEN}"), and there is no value to keep: give it'
        raise InvalidRequest(f"env {problem}", fields=[FieldProblem("env", problem)])
    return {name: known[name] if value == HIDDEN else value for name, value in env.items()}
