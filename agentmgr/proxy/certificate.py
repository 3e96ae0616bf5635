"""The gateway's TLS certificate, read again when its files change."""

from __future__ import annotations

import logging
import os
import ssl

import trio

logger = logging.getLogger("agentmgr.gateway")

_CHECK_S = 1.0  # how often the files are looked at, at most


class Certificate:
    """A certificate chain and its key, in PEM files. Raises `OSError` when made with files that are unfit."""

    def __init__(
        self, certfile: str | os.PathLike[str], keyfile: str | os.PathLike[str] | None = None
    ) -> None:
        self._certfile, self._keyfile = certfile, keyfile
        self._stamp = self._look()
        self._context = self._load()
        self._checked = 0.0

    @property
    def files(self) -> tuple[str, str | None]:
        """Where it is read from, with absolute paths, and its key, where that has a file of its own."""
        keyfile = None if self._keyfile is None else os.path.abspath(self._keyfile)
        return os.path.abspath(self._certfile), keyfile

    def context(self) -> ssl.SSLContext:
        """The context for the next handshake. Files that are unfit now leave the last good one in use."""
        now = trio.current_time()
        if now - self._checked >= _CHECK_S:
            self._checked = now
            try:
                if (stamp := self._look()) != self._stamp:
                    self._context = self._load()
                    self._stamp = stamp
                    logger.info("the certificate %s was read again", self._certfile)
            except OSError as error:  # half written, or gone: the next look may find it whole
                logger.warning("the certificate %s cannot be read again: %s", self._certfile, error)
        return self._context

    def _load(self) -> ssl.SSLContext:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["http/1.1"])  # WebSocket over HTTP/2 is not spoken here
        context.load_cert_chain(self._certfile, self._keyfile)
        return context

    def _look(self) -> tuple[tuple[int, int, int], ...]:
        files = (self._certfile, self._keyfile or self._certfile)
        return tuple((s.st_mtime_ns, s.st_size, s.st_ino) for s in map(os.stat, files))
