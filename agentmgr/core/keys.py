"""Which token a key is: by its digest, because the keys themselves are not kept."""

from __future__ import annotations

import hmac
from collections.abc import Iterable
from hashlib import sha256

from ..models import Token


def digest(key: str) -> str:
    return sha256(key.encode("utf-8", "surrogatepass")).hexdigest()


def find(tokens: Iterable[Token], key: str) -> Token | None:
    """Whose key this is. Takes the same time whatever is compared."""
    wanted = digest(key)
    found = None
    for token in tokens:
        if hmac.compare_digest(token.digest, wanted):
            found = token
    return found
