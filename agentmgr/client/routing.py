"""The calls about routing rules: `ManagerClient`'s part for them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .. import models
from ..codec import to_plain
from ..core.bodies import rule_fields
from .rest import RestClient, if_match, quoted


class RoutingCalls(RestClient):
    """Rules, and what they would do and have done."""

    async def list_routing_rules(self) -> list[models.RoutingRule]:
        return await self._all(models.RoutingRule, "/routing/rules", {})

    async def get_routing_rule(self, ref: str) -> models.RoutingRule:
        return await self._one(models.RoutingRule, "GET", f"/routing/rules/{quoted(ref)}")

    async def create_routing_rule(self, rule: models.RoutingRule) -> models.RoutingRule:
        body = rule_fields(rule)
        return await self._one(models.RoutingRule, "POST", "/routing/rules", json=body)

    async def update_routing_rule(
        self, ref: str, changes: Mapping[str, Any], *, expected_version: int | None = None
    ) -> models.RoutingRule:
        body = {name: to_plain(value) for name, value in changes.items()}
        path, headers = f"/routing/rules/{quoted(ref)}", if_match(expected_version)
        return await self._one(models.RoutingRule, "PATCH", path, json=body, headers=headers)

    async def delete_routing_rule(self, ref: str) -> None:
        await self._answer("DELETE", f"/routing/rules/{quoted(ref)}")

    async def get_routing_hits(self) -> dict[str, Any]:
        """How many connections each rule has chosen an instance for, in the last hour."""
        return await self._json("GET", "/routing/hits")

    async def test_routing(
        self,
        *,
        path: str = "/",
        client_ip: str = "127.0.0.1",
        client_port: int = 0,
        headers: Mapping[str, str] | None = None,
    ) -> dict[str, Any]:
        """What the gateway would do with such a client: its rule, the candidates, the choice or why not."""
        body = {
            "path": path,
            "client_ip": client_ip,
            "client_port": client_port,
            "headers": dict(headers or {}),
        }
        return await self._json("POST", "/routing/test", json=body)
