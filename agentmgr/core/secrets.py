"""Values that no interface may show."""

from __future__ import annotations

import re
from collections.abc import Mapping

HIDDEN = "***"
"""Stands where a secret is. Given back in a change, it means: as it was."""

_SECRET = re.compile(r"key|token|secret|passw|credential|auth|cookie|private|dsn|_pat$", re.IGNORECASE)

_PASSWORD_IN_URL = re.compile(r"://[^/@\s]*:[^/@\s]+@")


def shown(env: Mapping[str, str]) -> dict[str, str]:
    """Environment variables as they may be shown: what sounds like a secret, or has a password, is hidden."""
    return {
        name: HIDDEN if value and (_SECRET.search(name) or _PASSWORD_IN_URL.search(value)) else value
        for name, value in env.items()
    }


def restored(env: Mapping[str, str], known: Mapping[str, str]) -> dict[str, str]:
    """What `env` means, where it was `shown` before: hidden values are those that are known."""
    return {name: known.get(name, value) if value == HIDDEN else value for name, value in env.items()}
