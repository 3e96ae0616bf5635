"""Values that no interface may show; and whose key it is: by its digest, as keys themselves are not kept."""

from __future__ import annotations

import hmac
from collections.abc import Collection, Iterable, Mapping
from hashlib import sha256

from ..errors import FieldProblem, InvalidRequest
from ..models import Token

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


def key_digest(key: str) -> str:
    return sha256(key.encode("utf-8", "surrogatepass")).hexdigest()


def token_of(tokens: Iterable[Token], key: str) -> Token | None:
    """Whose key this is. Takes the same time whatever is compared."""
    wanted = key_digest(key)
    found = None
    for token in tokens:
        if hmac.compare_digest(token.digest, wanted):
            found = token
    return found
