"""In a cluster a session goes on at the machine that has its journal, and nowhere else."""

from __future__ import annotations

import trio
import trio.testing
from attrs import evolve

from agentmgr.agent.message import Client
from agentmgr.agent.session_ids import SessionIds
from agentmgr.core.affinity import Affinity, named_node
from agentmgr.core.moves import Moved, Span
from agentmgr.core.outliers import OutlierPolicy
from agentmgr.core.request import ClientRequest
from agentmgr.core.routing import Backend, BackendState, Gate, Router, RoutingTable
from agentmgr.protocol import ErrorCode, LossReason
from agentmgr.proxy import Gateway
from agentmgr.proxy.limits import GatewayLimits
from agentmgr.proxy.lobby import Lobby
from agentmgr.proxy.visit import Visit
from agentmgr.websocket.refusal import RefusalCode

OURS = f"ses_{'0' * 40}"
GATES = {"": Gate("10.0.0.1", 1), "nod_b": Gate("10.0.0.2", 1), "nod_c": Gate("10.0.0.3", 1)}


NODES = frozenset({"nod_b", "nod_c"})


def instance(name: str, node_id: str, **facts: object) -> Backend:
    return Backend(
        f"ins_{name}", "svc", "svc", "127.0.0.1", 1, node_id=node_id, **{"journaled": True} | facts
    )  # type: ignore[arg-type]


AT_HEAD, AT_B, AT_C = instance("1", ""), instance("2", "nod_b"), instance("3", "nod_c")


def chosen(
    session_id: str,
    *backends: Backend,
    gates: dict[str, Gate] | None = None,
    lost: str = "",
    moved: dict[str, Moved] | None = None,
) -> object:
    """The node that a client of the session is led to, or why to none."""
    table = RoutingTable(
        backends,
        service_names=frozenset({"svc"}),
        gates=GATES if gates is None else gates,
        nodes=NODES - {lost},
        moved={"svc": moved or {}},
    )
    found = Gateway(table).route(ClientRequest("/services/svc", headers={"x-session-id": session_id}))
    return next((b.node_id for b in backends if b.instance_id == found.chosen), found.code)


def test_an_id_names_its_node() -> None:
    assert named_node(f"{OURS}.nod_b.ins_2") == "nod_b"
    assert named_node(f"{OURS}.ins_2") == ""
    assert named_node("my chat.nod_b.ins_2") is None


async def test_when_its_instance_is_gone_another_one_of_its_node_takes_it_up_and_none_elsewhere() -> None:
    for node_id, its_id in (("", f"{OURS}.ins_gone"), ("nod_b", f"{OURS}.nod_b.ins_gone")):
        for backends in ((AT_HEAD, AT_B, AT_C), (AT_C, AT_B, AT_HEAD)):
            assert chosen(its_id, *backends) == node_id
    lost = f"{OURS}.nod_b.ins_gone"
    assert chosen(lost, AT_HEAD, AT_C) == RefusalCode.NO_SERVICE_AVAILABLE
    coming = evolve(AT_B, state=BackendState.COMING)
    assert chosen(lost, AT_HEAD, coming) == RefusalCode.NO_SERVICE_AVAILABLE  # its clients wait


async def test_a_session_in_a_network_journal_goes_on_anywhere() -> None:
    b, c = (evolve(backend, journaled=False) for backend in (AT_B, AT_C))
    its_id = f"{OURS}.ins_2"  # it names no node, wherever it was made
    assert chosen(its_id, c, b) == "nod_b", "the instance that made it"
    assert chosen(its_id, c) == chosen(its_id, c, lost="nod_b") == "nod_c"
    lobby = Lobby(
        Router(RoutingTable((c,), gates=GATES, nodes=NODES - {"nod_b"})), GatewayLimits(), OutlierPolicy()
    )
    assert lobby.can_go_on(b)
    assert not lobby.can_go_on(AT_B)
    ids = SessionIds("ins_2", None)
    assert named_node(ids.new()) == ""
    found = ids.missing(f"{OURS}.nod_c.ins_3", Client(), durable=True)
    assert found.details == {"reason": LossReason.UNKNOWN}, "it is not lost with a machine"


async def test_when_its_node_is_lost_or_forgotten_any_host_says_so_and_not_before() -> None:
    its_id = f"{OURS}.nod_b.ins_gone"
    moved = evolve(AT_C, instance_id=AT_B.instance_id)  # the same instance, started again elsewhere
    assert chosen(its_id, AT_C, lost="nod_b") == "nod_c"
    assert chosen(f"{OURS}.nod_b.ins_2", moved, lost="nod_b") == "nod_c"
    # Its gateway may be started anew, or the manager: it has no gate then, and its journal nevertheless.
    for gates in (GATES, {node_id: gate for node_id, gate in GATES.items() if node_id != "nod_b"}):
        assert chosen(its_id, AT_C, gates=gates) == RefusalCode.NO_SERVICE_AVAILABLE
        assert chosen(f"{OURS}.nod_b.ins_2", moved, gates=gates) == RefusalCode.NO_SERVICE_AVAILABLE
    assert chosen(f"{OURS}.nod_z.ins_2", AT_C) == "nod_c"


async def test_a_session_that_has_moved_is_where_its_journal_is() -> None:
    moved = {"nod_b": Moved((Span(1, ""), Span(2, "nod_c")))}
    everywhere = (AT_HEAD, AT_B, AT_C)
    assert chosen(f"{OURS}.nod_b.ins_gone", *everywhere, moved=moved) == ""
    assert chosen(f"{OURS}.nod_b_1.ins_gone", *everywhere, moved=moved) == "nod_c"
    assert chosen(f"{OURS}.nod_b_2.ins_gone", *everywhere, moved=moved) == "nod_b", "begun there since"
    assert chosen(f"{OURS}.nod_c.ins_gone", *everywhere, moved=moved) == "nod_c"
    own = {"": Moved((Span(1, "nod_b"),))}
    assert chosen(f"{OURS}.ins_gone", *everywhere, moved=own) == "nod_b"
    assert chosen(f"{OURS}._1.ins_gone", *everywhere, moved=own) == ""


async def test_clients_wait_for_a_session_on_its_way() -> None:
    table = RoutingTable(
        (AT_C,),
        service_names=frozenset({"svc"}),
        gates=GATES,
        nodes=NODES,
        moved={"svc": {"nod_b": Moved(moving=True)}},
    )
    lobby = Lobby(Router(table), GatewayLimits(), OutlierPolicy())
    visit = Visit(ClientRequest("/services/svc", headers={"x-session-id": f"{OURS}.nod_b.ins_gone"}))
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            led: list[str] = []

            async def come() -> None:
                async with lobby.seat(visit) as seat:
                    assert seat is not None
                    led.append(seat.backend.node_id)

            nursery.start_soon(come)
            await trio.testing.wait_all_tasks_blocked()
            assert led == []
            arrived = {"nod_b": Moved((Span(1, "nod_c"),))}
            lobby.update(Router(evolve(table, moved={"svc": arrived})))
    assert led == ["nod_c"]


async def test_without_a_cluster_or_a_journal_any_instance_will_do() -> None:
    assert chosen(f"{OURS}.ins_gone", AT_C, gates={}) == "nod_c"
    assert chosen(f"{OURS}.nod_b.ins_gone", evolve(AT_C, journaled=False)) == "nod_c"
    assert chosen("my chat", AT_C) == "nod_c"


async def test_a_name_of_a_clients_own_leads_to_its_node_while_its_service_is_there() -> None:
    affinity = Affinity()
    affinity.remember("my chat", "ins_gone", "nod_b")
    assert (affinity.holder("my chat"), affinity.node("my chat")) == ("ins_gone", "nod_b")
    moved = {"svc": {"nod_b": Moved((Span(1, "nod_c"),))}}
    for backends, node_id in (((AT_C, AT_B), "nod_b"), ((AT_C,), "nod_c"), ((AT_HEAD, AT_C), "nod_c")):
        gateway = Gateway(RoutingTable(backends, gates=GATES, nodes=NODES, moved=moved), affinity=affinity)
        found = gateway.route(ClientRequest("/services/svc", headers={"x-session-id": "my chat"}))
        assert [b.node_id for b in backends if b.instance_id == found.chosen] == [node_id]


def test_a_host_of_another_node_says_that_it_was_lost_with_its_machine() -> None:
    here = SessionIds("ins_3", "nod_c")
    assert named_node(here.new()) == "nod_c"

    def told(ids: SessionIds, session_id: str) -> dict[str, str]:
        return ids.missing(session_id, Client(named_session=session_id), durable=True).details

    assert told(here, f"{OURS}.nod_b.ins_2") == {"reason": LossReason.NODE_LOST}
    assert told(here, f"{OURS}.nod_c.ins_9") == {"reason": LossReason.UNKNOWN}
    assert told(SessionIds("ins_1"), f"{OURS}.ins_2") == {"reason": LossReason.UNKNOWN}


def test_a_client_that_no_gateway_could_lead_is_not_told_that_its_session_is_lost() -> None:
    for named in (None, f"{OURS}.nod_b.ins_7"):
        client = Client(named_session=named)
        told = SessionIds("ins_3", "nod_c").missing(f"{OURS}.nod_b.ins_2", client, durable=True)
        assert (told.code, told.details) == (ErrorCode.SESSION_ELSEWHERE, {"instance": "ins_2"})


def test_a_connection_is_resumed_at_its_node_only() -> None:
    def can_go_on(*backends: Backend, gates: dict[str, Gate] = GATES, nodes: frozenset[str] = NODES) -> bool:
        router = Router(RoutingTable(backends, gates=gates, nodes=nodes))
        return Lobby(router, GatewayLimits(), OutlierPolicy()).can_go_on(AT_B)

    assert can_go_on(AT_C, AT_B)
    assert can_go_on(AT_C, evolve(AT_B, instance_id="ins_4"))
    assert not can_go_on(AT_C)
    assert not can_go_on(AT_B, nodes=frozenset())
    assert can_go_on(AT_C, gates={})
