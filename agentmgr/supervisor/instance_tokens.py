"""The secret token that identifies an instance: random for each launch, and recognisable as ours.

A token carries its maker's mark, so a manager recognises what its predecessor started, even if the
predecessor was killed before it could record that. The mark is an HMAC with a key that belongs to one
directory; a process of another manager, or of none, cannot have it by accident.

The file with the key names the directory that it was made for, by device and inode. A copy (`cp -r`) is
another directory, in which the key is not valid: instances that were started from the original are not ours
there. A directory that is moved within its file system keeps both.
"""

from __future__ import annotations

import hmac
import os
import secrets
from pathlib import Path

from attrs import frozen

_FILE = "token.key"
_KEY_BYTES = 32
_NONCE = 32  # hex digits, as is the mark


@frozen
class InstanceTokens:
    """Makes the tokens of one directory's instances, and recognises them."""

    key: bytes

    @classmethod
    def found(cls, directory: Path) -> InstanceTokens | None:
        """The tokens of `directory`. None where it has no key of its own: it is new, or a copy of another
        one, or was last used by a version that did not write down which directory it is.
        """
        try:
            content = (directory / _FILE).read_bytes()
            place = _place(directory)
        except FileNotFoundError:
            return None
        key = content.removesuffix(place)
        return cls(key) if len(key) == _KEY_BYTES < len(content) else None

    @classmethod
    def of(cls, directory: Path) -> InstanceTokens:
        """The tokens of `directory`; where it has no key of its own, one is made."""
        return cls.found(directory) or cls._make(directory)

    @classmethod
    def _make(cls, directory: Path) -> InstanceTokens:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        path = directory / _FILE
        key = secrets.token_bytes(_KEY_BYTES)
        # Whole or not at all: a crash or a full disk must not leave half a key.
        draft = path.with_name(f"{_FILE}.{os.getpid()}")
        with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(key + _place(directory))
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
        return cls(key)

    def new(self) -> str:
        nonce = secrets.token_hex(_NONCE // 2)
        return nonce + self.mark(nonce)

    def made(self, token: str) -> bool:
        """Whether the token comes from here."""
        nonce, mark = token[:_NONCE], token[_NONCE:]
        return hmac.compare_digest(mark.encode(), self.mark(nonce).encode())

    def mark(self, text: str) -> str:
        return hmac.new(self.key, text.encode(), "sha256").hexdigest()[:_NONCE]


def _place(directory: Path) -> bytes:
    """Identifies the directory, as long as a process has a file in it open."""
    status = directory.stat()
    return b"%d:%d" % (status.st_dev, status.st_ino)
