"""The secret that an instance is told by: random for each launch, and recognisable as ours.

A token carries its maker's mark, so that a manager knows what its predecessor started even where the
predecessor was killed before it could write that down. The mark is an HMAC with a secret that belongs to
the database; a process of another manager, or of nobody, cannot bear it by accident.
"""

from __future__ import annotations

import contextlib
import hmac
import os
import secrets
from pathlib import Path

from attrs import frozen

_NONCE = 32  # hex digits, as is the mark


@frozen
class Mint:
    key: bytes

    @classmethod
    def of(cls, directory: Path) -> Mint:
        """The mint whose key lies in `directory`; it is made at the first call."""
        path = directory / "token.key"
        with contextlib.suppress(FileNotFoundError):
            if len(key := path.read_bytes()) == 32:
                return cls(key)
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        key = secrets.token_bytes(32)
        # Whole or not at all: a crash or a full disk must not leave half a key.
        draft = path.with_name(f"token.key.{os.getpid()}")
        with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(key)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
        return cls(key)

    def new(self) -> str:
        nonce = secrets.token_hex(_NONCE // 2)
        return nonce + self._mark(nonce)

    def made(self, token: str) -> bool:
        nonce, mark = token[:_NONCE], token[_NONCE:]
        return hmac.compare_digest(mark.encode(), self._mark(nonce).encode())

    def _mark(self, nonce: str) -> str:
        return hmac.new(self.key, nonce.encode(), "sha256").hexdigest()[:_NONCE]
