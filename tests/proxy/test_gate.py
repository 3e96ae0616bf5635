"""Instances of another node, through its gate: as if they were here, and for gateways of the cluster only.

`tests/proxy/test_gate_faults.py` has what may go wrong on the way.
"""

from __future__ import annotations

import ssl
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import trio
from attrs import evolve

from agentmgr.agent.door import Door
from agentmgr.core.proof import PROOF_HEADER, SenderProofs
from agentmgr.core.routing import Backend, BackendState
from agentmgr.credentials import Credentials
from agentmgr.proxy import GatewayLimits, gate
from agentmgr.proxy.dialer import DialFailed
from agentmgr.proxy.gate_protocol import PROTOCOL, Failed, Message, Open, Opened, receive, send
from agentmgr.testing.agents import bare_client, hosted
from agentmgr.websocket.sockets import Wire, connect

from .conftest import KEY, Lab, connected
from .gates import FAR, NEAR, THIRD, Cluster, Crossing, crossing

TEXT = 1


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    return Cluster(tmp_path)


async def reached(c: Crossing, context: ssl.SSLContext, session: ssl.SSLSession | None = None) -> Wire:
    wire = await connect("127.0.0.1", c.gate.port)
    await wire.start_tls_client(context, session=session)
    return wire


async def answered(wire: Wire, *asked: Message) -> Message | None:
    """None: it closed the connection instead of answering."""
    with trio.fail_after(60):
        try:
            for message in asked:
                await send(wire, message)
            return await receive(wire)
        except OSError:
            return None
        finally:
            wire.close()


async def test_a_session_across(lab: Lab, cluster: Cluster) -> None:
    async with crossing(lab, cluster, await lab.instance()) as c:
        async with connected(c.near.url) as websocket:
            for size in (1, 100, 16_384, 500_000):
                await websocket.send_message("x" * size)
                assert await websocket.get_message() == "x" * size
        (end,) = await c.near.witness.ends()
        assert (end.ended_by, end.code) == ("client", 1000)


async def test_nothing_of_a_client_chooses_the_instance_or_an_identity(lab: Lab, cluster: Cluster) -> None:
    heads = []

    async def raw(stream: trio.SocketStream) -> None:
        peer = lab.Peer(stream)
        heads.append(await peer.until(b"\r\n\r\n"))
        await stream.send_all(lab.switching())
        await peer.rest()

    victim = await lab.instance("victim", token="secret")
    async with crossing(lab, cluster, await lab.raw(raw), victim) as c:
        forged = [
            f"{name}: {victim.instance_id}"
            for name in ("X-Agentmgr-Instance", "x_agentmgr-instance", "X-Agentmgr-Identity", PROOF_HEADER)
        ]
        await c.near.open("/services/raw", *forged)
    assert len(heads) == 1
    assert victim.instance_id.encode() not in heads[0]


async def test_an_agent_believes_the_gateway_of_another_node(lab: Lab, cluster: Cluster) -> None:
    """The proof is the gate's: clocks of two machines differ, and it is made over the client's key."""

    async def echo(message: str) -> str:
        return message

    async with hosted(echo, token="secret", door=Door("secret")) as url:
        backend = Backend.at("127.0.0.1", int(url.rpartition(":")[2]), token="secret")
        # Not the token of its own table: only that of the gate counts.
        async with crossing(lab, cluster, backend, allowed_origins=["https://app.example"]) as c:
            known = c.table.backends[0]
            c.near.gateway.update(evolve(c.table, backends=(evolve(known, token="of another process"),)))
            # The agent itself would refuse that page: it believes that the gateway has allowed it.
            async with bare_client(c.near.url, {"Origin": "https://app.example"}) as client:
                assert (await client.ask("hi"))["content"] == "hi"
            c.gateway.update(evolve(c.table, backends=(evolve(known, token="of another process"),)))
            assert (await c.near.refusal(lab.upgrade()))[0] == 502


@pytest.mark.parametrize(
    "facts",
    [{"node_id": NEAR}, {"node_id": ""}, {"state": BackendState.COMING}, {"state": BackendState.DOWN}],
    ids=str,
)
async def test_a_gate_leads_to_living_instances_of_its_own_node_only(
    lab: Lab, cluster: Cluster, facts: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gate, "_NEWS_S", 0.05)
    clients = 0

    async def raw(stream: trio.SocketStream) -> None:
        nonlocal clients
        clients += 1

    backend = await lab.raw(raw)
    async with crossing(lab, cluster, backend) as c:
        context = cluster.member(NEAR).client_context(PROTOCOL)
        assert await answered(await reached(c, context), Open(backend.instance_id, "")) == Opened("")
        await lab.eventually(lambda: clients == 1)
        c.gateway.update(evolve(c.table, backends=(evolve(c.table.backends[0], **facts),)))
        for instance_id in (backend.instance_id, f"127.0.0.1:{backend.port}", ""):
            answer = await answered(await reached(c, context), Open(instance_id, ""))
            assert isinstance(answer, Failed), instance_id
            assert answer.outdated, instance_id
            assert not answer.blame, instance_id
    assert clients == 1


async def test_a_gate_waits_a_moment_for_news_of_an_instance_or_a_node(lab: Lab, cluster: Cluster) -> None:
    """The routing tables of two gateways change at nearly the same time."""
    backend = await lab.instance()
    async with crossing(lab, cluster, backend) as c:
        gates = {FAR: c.gate}
        c.gateway.update(evolve(c.table, backends=(), gates=gates))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(c.near.open)
            await trio.testing.wait_all_tasks_blocked(0.05)
            c.gateway.update(evolve(c.table, backends=()))
            await trio.testing.wait_all_tasks_blocked(0.05)
            c.gateway.update(c.table)


async def test_a_gate_makes_a_proof_over_the_key_of_a_handshake_and_nothing_else(
    lab: Lab, cluster: Cluster
) -> None:
    """The target of a probe, or of an order to drain, is proved in the same way."""
    backend = await lab.instance(token="secret")
    async with crossing(lab, cluster, backend) as c:
        context = cluster.member(NEAR).client_context(PROTOCOL)
        answer = await answered(await reached(c, context), Open(backend.instance_id, KEY))
        assert isinstance(answer, Opened)
        assert SenderProofs("secret").accepts(answer.proof, KEY, now=time.monotonic())
        asked = Open(backend.instance_id, "/.well-known/agentmgr/drain?code=1001")
        assert await answered(await reached(c, context), asked) is None


def nobody(cluster: Cluster, other: Cluster) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=cluster.member(NEAR).ca_file)
    context.check_hostname = False
    context.set_alpn_protocols([PROTOCOL])
    return context


def of_another_cluster(cluster: Cluster, other: Cluster) -> ssl.SSLContext:
    context = nobody(cluster, other)
    foreign = other.member(NEAR)
    context.load_cert_chain(foreign.certificate_file, foreign.key_file)
    return context


def of_a_forgotten_node(cluster: Cluster, other: Cluster) -> ssl.SSLContext:
    return cluster.member(THIRD).client_context(PROTOCOL)


def of_long_ago(cluster: Cluster, other: Cluster) -> ssl.SSLContext:
    return cluster.member(THIRD, now=datetime.now(UTC) - timedelta(days=40)).client_context(PROTOCOL)


def of_another_version(cluster: Cluster, other: Cluster) -> ssl.SSLContext:
    return cluster.member(NEAR).client_context("agentmgr-gate/99")


@pytest.mark.parametrize(
    "stranger", [nobody, of_another_cluster, of_a_forgotten_node, of_long_ago, of_another_version]
)
async def test_strangers_are_refused(
    lab: Lab,
    cluster: Cluster,
    tmp_path: Path,
    stranger: Callable[[Cluster, Cluster], ssl.SSLContext],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(gate, "_NEWS_S", 0.05)
    (tmp_path / "other").mkdir()
    context = stranger(cluster, Cluster(tmp_path / "other"))
    async with crossing(lab, cluster, backend := await lab.instance()) as c, lab.neighbour(c.near):
        caplog.set_level("INFO", "agentmgr.gateway")
        for _ in range(3):  # it is said once
            assert await answered(await reached(c, context), Open(backend.instance_id, "")) is None
        lines = [r.message for r in caplog.records if r.message.startswith("gate: ")]
        assert len(lines) == 1
        assert "127.0.0.1 was refused" in lines[0]


async def test_who_comes_back_with_a_tls_session_is_judged_anew(
    lab: Lab, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gate, "_NEWS_S", 0.05)
    async with crossing(lab, cluster, backend := await lab.instance()) as c:
        context, asked = cluster.member(NEAR).client_context(PROTOCOL), Open(backend.instance_id, "")

        async def again(session: ssl.SSLSession | None) -> tuple[Message | None, ssl.SSLSession | None]:
            wire = await reached(c, context, session)
            assert isinstance(wire.sock, ssl.SSLSocket)
            assert wire.sock.session_reused == (session is not None)
            await send(wire, asked)
            try:
                answer = await receive(wire)
            except OSError:
                return None, None
            finally:
                session = wire.sock.session
                wire.close()
            return answer, session

        answer, session = await again(None)
        assert answer == Opened("")
        assert (await again(session))[0] == Opened("")
        with monkeypatch.context() as later:
            month = time.time() + 31 * 24 * 3600
            later.setattr(gate.time, "time", lambda: month)
            assert (await again(session))[0] is None
        c.gateway.update(evolve(c.table, gates={FAR: c.gate}))
        assert (await again(session))[0] is None


async def test_a_gateway_resumes_its_tls_sessions_until_its_certificate_is_another(
    lab: Lab, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    reused = []
    handshake = Wire.start_tls_client

    async def seen(wire: Wire, *args: Any, **options: Any) -> ssl.SSLSocket:
        sock = await handshake(wire, *args, **options)
        reused.append(sock.session_reused)
        return sock

    monkeypatch.setattr(Wire, "start_tls_client", seen)
    async with crossing(lab, cluster, await lab.instance()) as c:
        for _ in range(3):
            await c.near.open()
        cluster.member(NEAR)
        for _ in range(2):
            await c.near.open()
    assert reused == [False, True, True, False, True]


async def test_the_manager_reaches_instances_without_a_gate_of_its_own(lab: Lab, cluster: Cluster) -> None:
    own = Credentials(cluster.authority.directory)
    async with crossing(lab, cluster, backend := await lab.instance()) as c:
        context = own.client_context(PROTOCOL)
        assert await answered(await reached(c, context), Open(backend.instance_id, "")) == Opened("")


async def test_another_nodes_gate_at_the_address_gets_nothing_of_a_client(lab: Lab, cluster: Cluster) -> None:
    """As after two machines have changed their addresses."""
    backend = evolve(await lab.instance(), node_id=THIRD)
    async with crossing(lab, cluster, backend) as c:
        c.near.gateway.update(evolve(c.table, gates={NEAR: c.gate, THIRD: c.gate}))
        with pytest.raises(DialFailed, match="certificate"):
            await c.near.gateway.dialer.reach(backend, GatewayLimits(), deadline=trio.current_time() + 60)


async def test_a_node_that_is_forgotten_loses_its_connections(lab: Lab, cluster: Cluster) -> None:
    async with crossing(lab, cluster, await lab.instance()) as c:
        peer = await c.near.open()
        c.gateway.update(c.table)
        await peer.stream.send_all(lab.frame(TEXT, b"still here"))
        assert await peer.exactly(12) == lab.frame(TEXT, b"still here", masked=False)
        c.gateway.update(evolve(c.table, gates={FAR: c.gate}))
        assert await peer.close_code() == 1012


async def test_at_the_gate_an_instance_proves_itself_while_no_manager_updates_the_table(
    lab: Lab, cluster: Cluster
) -> None:
    heard = b""

    async def stranger(stream: trio.SocketStream) -> None:
        nonlocal heard
        async for data in stream:
            heard += data
            if b"\r\n\r\n" in heard:
                await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    backend = await lab.raw(stranger, token="secret")
    async with crossing(lab, cluster, backend) as c:
        c.gateway.table_is_old()
        assert (await c.near.refusal(lab.upgrade("/my/path", "Cookie: login=secret")))[0] == 502
        assert heard.startswith(b"GET /.well-known/agentmgr/health?challenge=")
        assert b"login" not in heard
        assert b"/my/path" not in heard


async def test_on_one_machine_nothing_of_it_is_imported() -> None:
    code = (
        "import sys; import agentmgr.proxy.gateway as g; g.Gateway();"
        "print([n for n in sys.modules if 'gate_' in n or n.endswith(('proxy.gate', '.credentials'))])"
    )
    result = await trio.run_process([sys.executable, "-c", code], capture_stdout=True)
    assert result.stdout.strip() == b"[]"
