"""A connection to Redis, over which many tasks ask at once, and one exception for all that goes wrong.

It is made when it is needed, and again when it was lost. What was asked over a lost connection may have been
done or not: each caller asks for what may be done twice.
"""

from __future__ import annotations

import logging
import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from hashlib import sha1
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

import trio
from attrs import field, frozen

from ..errors import InvalidRequest, ManagerError
from ..models.network_journal import SCHEMES
from .redis_keys import PREFIX

try:
    import anyio
    import anyio.abc
    from coredis import exceptions
    from coredis.connection import BaseConnection, Location, TCPLocation, UnixDomainSocketLocation
    from coredis.typing import RedisError
except ImportError as error:  # pragma: no cover - of an extra
    raise ManagerError(
        f"sessions in Redis need the package coredis ({error}): pip install 'agentmgr-trio[redis]'"
    ) from error

CONNECT_S = 5.0
ANSWER_S = 5.0  #: then the connection is given up
OLDEST_VERSION = (7, 0)  #: whose scripts are refused as a whole where memory is full

Word = str | bytes | int | float

# It logs each try that fails, with a traceback. All of it is in the exceptions here.
logging.getLogger("coredis").setLevel(logging.CRITICAL + 1)


class RedisTrouble(Exception):
    """Redis cannot be asked, or does not do what it is asked; the message says why, and has no secret."""

    def __init__(self, reason: str, *, passes: bool = False) -> None:
        super().__init__(reason)
        self.passes = passes  #: a try a little later may do better


@frozen
class RedisAddress:
    """Where a Redis is, and as whom it is asked."""

    host: str = ""  #: or `path`
    port: int = 6379
    path: str = ""  #: of a unix socket
    db: int = 0
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    tls: bool = False
    ca_certs: str | None = None  #: a file with certificates of authorities; None: the system's
    prefix: str = PREFIX  #: of all keys

    @classmethod
    def parse(cls, url: str) -> RedisAddress:
        """`redis://[USER:PASSWORD@]HOST[:PORT][/DB]`, `rediss://…` by TLS, or `unix://[USER:PASSWORD@]/PATH`.

        Options: `?db=N`, `?prefix=WORD`, and with TLS `?ssl_ca_certs=FILE`. Raises `InvalidRequest`.
        """
        try:
            parts = urlsplit(url)
            options = dict(parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query)))
            port, host = parts.port or 6379, unquote(parts.hostname or "")
            path = unquote(parts.path)
            is_unix = parts.scheme == "unix"
            db = options.pop("db", None) or ("" if is_unix else path.strip("/")) or "0"
            number = int(db)
        except ValueError:  # it quotes what may be a part of the password
            raise _unreadable(
                "its port, its number of a database or its options cannot be read, or a / in its password is"
                " not written %2F"
            ) from None
        if parts.scheme not in SCHEMES:
            raise _unreadable(f"it begins with none of {', '.join(f'{it}://' for it in SCHEMES)}")
        if parts.fragment:
            raise _unreadable("what follows # is not of it; a # in a password is written %23")
        if is_unix and (host or not path.startswith("/")):
            raise _unreadable("a unix socket is written unix:///PATH")
        if not is_unix and not host:
            raise _unreadable("it names no host")
        prefix = options.pop("prefix", PREFIX)
        if not prefix or not prefix.isprintable() or set(prefix) & set("{} "):
            raise _unreadable("a prefix is a word without braces")
        tls = parts.scheme == "rediss"
        ca_certs = options.pop("ssl_ca_certs", None) if tls else None
        if options:
            raise _unreadable(f"there is no option {next(iter(options))!r} for it")
        return cls(
            host="" if is_unix else host,
            port=port,
            path=path if is_unix else "",
            db=number,
            username=unquote(parts.username) if parts.username else None,
            password=unquote(parts.password) if parts.password else None,
            tls=tls,
            ca_certs=ca_certs,
            prefix=prefix,
        )

    @property
    def shown(self) -> str:
        """Without a password, for messages."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        where = f"unix://{self.path}" if self.path else f"redis{'s' * self.tls}://{host}:{self.port}"
        return where + (f"?db={self.db}" if self.path else f"/{self.db}") * bool(self.db)

    async def connect(self) -> anyio.abc.ByteStream:
        """Raises `RedisTrouble`, OSError."""
        with anyio.fail_after(CONNECT_S):
            if self.path:
                return await anyio.connect_unix(self.path)
            if not self.tls:
                return await anyio.connect_tcp(self.host, self.port)
            try:
                context = ssl.create_default_context(cafile=self.ca_certs)
            except OSError as error:
                problem = f"the certificates {self.ca_certs} cannot be read: {error.strerror}"
                raise RedisTrouble(problem) from error
            # Redis closes without the end that TLS has for it.
            return await anyio.connect_tcp(
                self.host, self.port, ssl_context=context, tls_standard_compatible=False
            )


class _Connection(BaseConnection):
    """Over a stream that is open: what coredis makes for one that fails to open, it does not close."""

    def __init__(self, address: RedisAddress, stream: anyio.abc.ByteStream) -> None:
        location: Location = TCPLocation(address.host, address.port)
        if address.path:
            location = UnixDomainSocketLocation(address.path)
        super().__init__(
            location,
            stream_timeout=ANSWER_S,
            username=address.username or ("default" if address.password else None),
            password=address.password,
            db=address.db,
            client_name="agentmgr",
        )
        self._opened = stream

    async def _connect(self) -> anyio.abc.ByteStream:
        return self._opened

    def describe(self) -> str:
        return f"Connection<{self.location!r}>"


def _unreadable(why: str) -> InvalidRequest:
    # The URL is not shown: a password may be in it.
    return InvalidRequest(
        f"the URL of Redis cannot be used: {why}. Write redis://HOST:PORT/DB, with USER:PASSWORD@ before"
        " HOST where it wants them, rediss:// with TLS, or unix:///PATH"
    )


class Script:
    """In Lua. It runs alone, and all of it or nothing is done, as far as it does not raise."""

    def __init__(self, text: str, flags: str = "") -> None:
        """`flags`, separated by commas: as Redis has them for its scripts."""
        self.text = f"#!lua flags={flags}\n{text}".encode()
        self.digest = sha1(self.text, usedforsecurity=False).hexdigest().encode()


class Redis:
    """See `open_redis`. What asks raises `RedisTrouble`, and `ValueError` for half a character."""

    def __init__(self, address: RedisAddress) -> None:
        self.address = address
        self._nursery: trio.Nursery | None = None  # of connections
        self._connection: BaseConnection | None = None
        self._connecting = trio.Lock()
        self._scope = trio.CancelScope(shield=True)  # of connections
        self._is_served = trio.Event()

    async def call(self, *words: Word) -> Any:
        """Of one command, the answer. Texts are bytes in it."""
        (answer,) = await self.pipeline([words])
        return answer

    async def pipeline(self, commands: Sequence[Sequence[Word]]) -> list[Any]:
        """The answers of several commands, which are sent at once."""
        encoded = [_encoded(words) for words in commands]
        connection = await self._connected()
        with _translated(connection):
            requests = [connection.create_request(*words) for words in encoded]
            return [await request for request in requests]

    async def run(self, script: Script, keys: Sequence[str], *args: Word) -> Any:
        words = _encoded((len(keys), *keys, *args))
        for _ in range(2):
            connection = await self._connected()
            with _translated(connection):
                try:
                    return await connection.create_request(b"EVALSHA", script.digest, *words)
                except exceptions.NoScriptError:
                    await connection.create_request(b"SCRIPT", b"LOAD", script.text)
        raise RedisTrouble("it forgets scripts at once", passes=True)

    def disconnect(self) -> None:
        """The next that asks connects anew."""
        if self._connection is not None:
            self._connection.invalidate()
            self._connection = None

    async def serve(self) -> None:
        """Runs connections until `stop`, whatever is cancelled around: the last writes still need them."""
        with self._scope:
            async with trio.open_nursery() as self._nursery:
                self._is_served.set()
                await trio.sleep_forever()

    def stop(self) -> None:
        self._scope.cancel()

    async def _connected(self) -> BaseConnection:
        async with self._connecting:
            if self._connection is None or not self._connection.usable:
                self._connection = await self._connect()
            return self._connection

    async def _connect(self) -> BaseConnection:
        await self._is_served.wait()
        assert self._nursery is not None
        with _translated():
            connection = _Connection(self.address, await self.address.connect())
            await self._nursery.start(connection.run)
        version = connection.server_version or ""
        if tuple(int(part) for part in version.split(".")[:2] if part.isdigit()) < OLDEST_VERSION:
            connection.invalidate()
            oldest = ".".join(map(str, OLDEST_VERSION))
            raise RedisTrouble(f"it is Redis {version}, and {oldest} or newer is needed")
        return connection


@asynccontextmanager
async def open_redis(address: RedisAddress) -> AsyncIterator[Redis]:
    """Connects when something is asked."""
    redis = Redis(address)
    failure: Exception | None = None
    async with trio.open_nursery() as nursery:
        # Not `start`: where that is cancelled, it waits for the task, and this one shields itself.
        nursery.start_soon(redis.serve)  # noqa: ASYNC113
        try:
            yield redis
        except Exception as error:  # so that it leaves as it is, and not in the nursery's group
            failure = error
        finally:
            redis.stop()
    if failure is not None:
        raise failure


def _encoded(words: Sequence[Word]) -> list[bytes]:
    """Here, so that what is no text ends what asks, and not the connection of all. Raises `ValueError`."""
    return [word if isinstance(word, bytes) else str(word).encode() for word in words]


class _translated:
    """Turns what coredis raises into `RedisTrouble`. A connection that does not answer is given up."""

    def __init__(self, connection: BaseConnection | None = None) -> None:
        self._connection = connection

    def __enter__(self) -> None:
        pass

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if isinstance(error, TimeoutError) and self._connection is not None:
            self._connection.invalidate()
        if isinstance(error, RedisError | OSError) and not isinstance(error, exceptions.NoScriptError):
            raise _trouble_of(error) from error


def _trouble_of(error: Exception) -> RedisTrouble:
    text = str(error)
    match error:
        case TimeoutError():
            return RedisTrouble("it does not answer", passes=True)
        case exceptions.BusyLoadingError():
            return RedisTrouble("it is loading what it has on disk", passes=True)
        case exceptions.ReadOnlyError():
            return RedisTrouble("it is a replica, which cannot be written", passes=True)
        case exceptions.AuthenticationRequiredError():
            return RedisTrouble("it wants a password: redis://:PASSWORD@HOST or redis://USER:PASSWORD@HOST")
        case exceptions.AuthenticationError():
            return RedisTrouble("it refuses this user or password")
        case exceptions.AuthorizationError():
            return RedisTrouble(f"its user may not do that: {text}")
        case exceptions.MovedError() | exceptions.ClusterDownError():
            return RedisTrouble(f"it is a part of a Redis Cluster, which is not supported: {text}")
        case exceptions.ConnectionError() | OSError():
            return RedisTrouble(f"it cannot be reached: {_cause(error)}", passes=True)
    if text.startswith(("OOM", "ERR OOM")) or "maxmemory" in text:
        return RedisTrouble("its memory is full (maxmemory): give it more, or keep fewer sessions")
    return RedisTrouble(text)


def _cause(error: BaseException) -> str:
    """What the system says: coredis' own words are of tries and of connections."""
    while error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, BaseExceptionGroup):
        return _cause(error.exceptions[0])
    if isinstance(error, ssl.SSLError):
        return f"TLS failed: {error.reason or error}"
    return (isinstance(error, OSError) and error.strerror) or str(error) or type(error).__name__
