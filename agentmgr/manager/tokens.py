"""The tokens of one database: which are valid, and whether the API and the gateway ask for one."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta

import trio

from ..core.secrets import key_digest, token_of
from ..errors import InvalidRequest, NameTaken, TokenNotFound
from ..models import Token, TokenPolicy, utc_now
from ..storage.store import Store

_PREFIX = "agm_"  #: so that scanners for leaked secrets can know one
MOST_DAYS = 3650.0


class Tokens:
    """Keeps the tokens of one database, and ends what they opened. A key is shown once, when it is made."""

    def __init__(self, store: Store, tokens: Iterable[Token], policy: TokenPolicy) -> None:
        self._store = store
        self._tokens = {token.token_id: token for token in tokens}
        self._policy = policy
        self.left_open = set[str]()  #: ids of revoked tokens of which what they opened goes on
        self._opened: dict[str, set[trio.CancelScope]] = {}  # by token id: what each of them opened here
        self._writing = trio.Lock()  # the policy follows from the tokens that are there

    @classmethod
    async def load(cls, store: Store) -> Tokens:
        return cls(store, await store.tokens(), await store.token_policy())

    @property
    def policy(self) -> TokenPolicy:
        """Whether the API and the gateway ask for tokens."""
        return self._policy

    async def require(self, *, api: bool | None, gateway: bool | None) -> TokenPolicy:
        """Switches the policy of each door that is not None."""
        async with self._writing:
            policy = TokenPolicy(
                api=self._policy.api if api is None else api,
                gateway=self._policy.gateway if gateway is None else gateway,
            )
            await self._store.set_token_policy(policy)
            self._policy = policy
        return policy

    def all(self) -> tuple[Token, ...]:
        return tuple(self._tokens.values())

    @property
    def ids(self) -> set[str]:
        return set(self._tokens)

    def get(self, token_id: str) -> Token | None:
        return self._tokens.get(token_id)

    async def create(
        self, name: str, scopes: Iterable[str], *, expires_in_days: float | None = None
    ) -> tuple[Token, str]:
        """The token, and its key. Raises `NameTaken`, `InvalidRequest`."""
        token, key = _made(name, scopes, _expiry(expires_in_days))
        async with self._writing:
            if any(other.name == name for other in self._tokens.values()):
                raise NameTaken(
                    f"a token called {name!r} is there already; choose another name, or revoke it"
                )
            policy = self._policy.with_token(token, self._tokens.values())
            await self._store.add_token(token, policy)
            self._tokens[token.token_id] = token
            self._policy = policy
        return token, key

    async def create_login(self, scopes: Iterable[str], life_s: float) -> tuple[Token, str]:
        """A token for a browser that logs in to the console, and its key. It switches no policy on, and
        those of logins that have expired go.
        """
        now = utc_now()
        token, key = _made(f"console-{secrets.token_hex(6)}", scopes, now + timedelta(seconds=life_s))
        async with self._writing:
            for other in self.all():
                if other.is_login and other.expired(now):
                    await self._store.delete_token(other.token_id)
                    del self._tokens[other.token_id]
            await self._store.add_token(token)
            self._tokens[token.token_id] = token
        return token, key

    async def delete(self, ref: str, *, leave_open: bool = False) -> Token:
        """It opens nothing from now on, and what it opened ends. Raises `TokenNotFound`."""
        async with self._writing:
            for token in self._tokens.values():
                if ref in (token.token_id, token.name):
                    await self._store.delete_token(token.token_id)
                    del self._tokens[token.token_id]
                    if leave_open:
                        self.left_open.add(token.token_id)
                    else:
                        for scope in tuple(self._opened.get(token.token_id, ())):
                            scope.cancel()
                    return token
        raise TokenNotFound(f"no token is called {ref!r}; `agentmgr tokens list` shows those there are")

    @contextmanager
    def while_valid(self, token: Token | None) -> Iterator[trio.CancelScope]:
        """A scope around what this token opened: it is cancelled when the token is revoked, or expires."""
        if token is None:
            with trio.CancelScope() as scope:
                yield scope
            return
        scope = trio.CancelScope()
        if token.expires_at is not None:
            scope.deadline = trio.current_time() + (token.expires_at - utc_now()).total_seconds()
        if token.token_id not in self._tokens and token.token_id not in self.left_open:
            scope.cancel()  # since it was looked up
        opened = self._opened.setdefault(token.token_id, set())
        opened.add(scope)
        try:
            with scope:
                yield scope
        finally:
            opened.remove(scope)
            if not opened:
                del self._opened[token.token_id]

    def find(self, key: str) -> Token | None:
        """Whose key this is. Takes the same time whatever is compared."""
        return token_of(self._tokens.values(), key)


def _made(name: str, scopes: Iterable[str], expires_at: datetime | None) -> tuple[Token, str]:
    key = _PREFIX + secrets.token_urlsafe(32)
    return Token(name, scopes, key_digest(key), expires_at=expires_at), key


def _expiry(days: float | None) -> datetime | None:
    if days is None:
        return None
    if not 0 < days <= MOST_DAYS:
        raise InvalidRequest(f"expires_in_days must be more than 0 and at most {MOST_DAYS:g}")
    return utc_now() + timedelta(days=days)
