"""The nodes of a cluster: the machines that services run on."""

from __future__ import annotations

from attrs import field, frozen

from ...models import DrainedNode, Invitation, Node
from ...models.fields import between, up_to
from ..operations import Answer, Call, Operations
from ..queries import Page, PageQuery, page

api = Operations("nodes", scope="admin")

_WEEK_S = 7 * 86400.0


@frozen(kw_only=True)
class NewInvitation:
    uses: int = field(default=1, validator=between(1, 10_000))  #: how many machines it lets in
    expires_in_s: float = field(default=300.0, validator=up_to(_WEEK_S))


@frozen(kw_only=True)
class Drain:
    timeout_s: float = field(default=300.0, validator=up_to(_WEEK_S))  #: what has not moved by then stays


@frozen(kw_only=True)
class NodeChanges:
    cordoned: bool  #: nothing new is placed there


@api.add("GET", "/nodes", query=PageQuery, gives={200: Page[Node]}, problems=(400, 409), scope="read")
async def list_nodes(call: Call, query: PageQuery) -> Answer:
    """The nodes of the cluster, with the manager's own machine. 409 where there is no cluster."""
    return Answer(page(call.manager.list_nodes(), query, key=lambda node: node.name))


@api.add("GET", "/nodes/{ref}", gives={200: Node}, problems=(404, 409), scope="read")
async def get_node(call: Call) -> Answer:
    """One node, by its name or id."""
    return Answer(call.manager.get_node(call.ref))


@api.add(
    "PATCH",
    "/nodes/{ref}",
    body=NodeChanges,
    gives={200: Node},
    problems=(400, 404, 409, 413, 415),
    example={"cordoned": True},
)
async def change_node(call: Call, body: NodeChanges) -> Answer:
    """Cordons a node, or lifts the cordon: what runs there stays, and nothing new is placed there."""
    return Answer(await call.carry_out(lambda: call.manager.cordon_node(call.ref, cordoned=body.cordoned)))


@api.add(
    "POST",
    "/nodes/{ref}/drain",
    body=Drain,
    body_required=False,
    gives={200: DrainedNode},
    problems=(400, 404, 409, 413, 415),
    example={"timeout_s": 120},
)
async def drain_node(call: Call, body: Drain | None) -> Answer:
    """Cordons a node, and moves what runs there to others; each new instance is ready before an old one goes.

    Answers when nothing can move any more, or in time. What is in `left` runs there still, with the reason.
    The manager goes on with it when the client goes away; it may be asked again at any time.
    """
    timeout_s = (body or Drain()).timeout_s
    return Answer(await call.carry_out(lambda: call.manager.drain_node(call.ref, timeout_s=timeout_s)))


@api.add("DELETE", "/nodes/{ref}", gives={204: None}, problems=(404, 409))
async def forget_node(call: Call) -> Answer:
    """Forgets a node that will not come back: what ran there starts elsewhere. 409 while it is linked."""
    await call.carry_out(lambda: call.manager.forget_node(call.ref))
    return Answer(None, 204)


@api.add(
    "POST",
    "/node-invitations",
    body=NewInvitation,
    body_required=False,
    gives={201: Invitation},
    problems=(400, 409, 413, 415),
    example={"uses": 3, "expires_in_s": 600},
)
async def invite_nodes(call: Call, body: NewInvitation | None) -> Answer:
    """Makes a secret with which machines join, by `agentmgr node --join`. It is in this answer alone."""
    body = body or NewInvitation()
    made = await call.carry_out(
        lambda: call.manager.invite_nodes(uses=body.uses, expires_in_s=body.expires_in_s)
    )
    return Answer(made, 201)
