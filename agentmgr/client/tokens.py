"""The calls about tokens and tickets: `ManagerClient`'s part for them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from .. import models
from ..codec import from_answer
from .rest import RestClient, flag, quoted


class TokenCalls(RestClient):
    """What clients show to the gateway and the API."""

    async def list_tokens(self) -> tuple[models.Token, ...]:
        """Without what they open with: `digest` is empty."""
        return tuple(await self._all(_token, "/tokens", {}))

    async def create_token(
        self, name: str, scopes: Iterable[str], *, expires_in_days: float | None = None
    ) -> tuple[models.Token, str]:
        """A token and its key, which is kept nowhere."""
        body = {"name": name, "scopes": sorted(scopes), "expires_in_days": expires_in_days}
        data = await self._json("POST", "/tokens", json=body)
        key = str(data.pop("key"))
        return _token(data), key

    async def create_ticket(
        self, service: str | None = None, *, expires_in_s: float | None = None
    ) -> models.Ticket:
        """A key to the gateway for one connection, as `?ticket=`, to what this client's token opens."""
        asked = {"service": service, "expires_in_s": expires_in_s}
        body = {name: value for name, value in asked.items() if value is not None}
        return from_answer(await self._json("POST", "/tickets", json=body), models.Ticket)

    async def delete_token(self, ref: str, *, leave_open: bool = False) -> None:
        """What it opened ends with it, unless `leave_open`."""
        params = {"leave_open": flag(leave_open)}
        await self._answer("DELETE", f"/tokens/{quoted(ref)}", params=params)

    async def get_token_policy(self) -> models.TokenPolicy:
        """Whether the API over TCP and the gateway ask for tokens."""
        return await self._one(models.TokenPolicy, "GET", "/token-policy")

    async def require_tokens(
        self, *, api: bool | None = None, gateway: bool | None = None
    ) -> models.TokenPolicy:
        """Have the API over TCP and the gateway ask for tokens, or no longer; None: as before."""
        asked = {name: on for name, on in (("api", api), ("gateway", gateway)) if on is not None}
        return await self._one(models.TokenPolicy, "PATCH", "/token-policy", json=asked)


def _token(data: dict[str, Any]) -> models.Token:
    return from_answer({**data, "digest": ""}, models.Token)
