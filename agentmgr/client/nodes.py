"""The calls about the nodes of a cluster: `ManagerClient`'s part for them."""

from __future__ import annotations

from .. import models
from .rest import RestClient, quoted


class NodeCalls(RestClient):
    """The machines that services run on. All raise `WrongState` where the manager has no cluster."""

    async def list_nodes(self) -> list[models.Node]:
        """With the manager's own machine, which comes first."""
        nodes = await self._all(models.Node, "/nodes", {})
        return sorted(nodes, key=lambda node: (node.node_id != "", node.name))

    async def get_node(self, ref: str) -> models.Node:
        return await self._one(models.Node, "GET", f"/nodes/{quoted(ref)}")

    async def cordon_node(self, ref: str, *, cordoned: bool = True) -> models.Node:
        """Place nothing new there, or do so again."""
        return await self._one(models.Node, "PATCH", f"/nodes/{quoted(ref)}", json={"cordoned": cordoned})

    async def drain_node(self, ref: str, *, timeout_s: float = 300.0) -> models.DrainedNode:
        """Move what runs there to other nodes. The manager goes on with it also when this is cancelled."""
        path, body = f"/nodes/{quoted(ref)}/drain", {"timeout_s": timeout_s}
        return await self._one(models.DrainedNode, "POST", path, json=body, waits=True)

    async def forget_node(self, ref: str) -> None:
        """It will not come back: what ran there starts elsewhere."""
        await self._answer("DELETE", f"/nodes/{quoted(ref)}")

    async def invite_nodes(self, *, uses: int = 1, expires_in_s: float = 300.0) -> models.Invitation:
        """A secret with which machines join, by `agentmgr node --join`. It is shown this once."""
        body = {"uses": uses, "expires_in_s": expires_in_s}
        return await self._one(models.Invitation, "POST", "/node-invitations", json=body)
