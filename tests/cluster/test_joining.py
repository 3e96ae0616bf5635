"""Who is let into a cluster, over real TLS connections, and what each other one is told."""

from __future__ import annotations

import logging
import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trio
from attrs import define, evolve, field

from agentmgr.ca import VALID, Authority
from agentmgr.cluster import listener as listener_module
from agentmgr.cluster.joining import FORGOTTEN, Joining
from agentmgr.cluster.listener import ClusterListener
from agentmgr.cluster.nodes import Nodes
from agentmgr.credentials import Credentials
from agentmgr.dialing import NODE_PROTOCOL, ManagerAddress, dial
from agentmgr.errors import (
    AgentManagerError,
    CannotReachManager,
    CannotUseCluster,
    Conflict,
    InvalidRequest,
    NodeNotFound,
)
from agentmgr.generation import Generation
from agentmgr.manager.cluster import JoinedCluster
from agentmgr.manager.listeners import ManagerListeners
from agentmgr.models import NodeRecord, new_id
from agentmgr.node.joining import JoinRequest, Secret, join, learn_ca, renew
from agentmgr.process.paths import RuntimePaths
from agentmgr.settings import ClusterMode, Settings
from agentmgr.testing import MemoryStore


@define
class Place:
    """A manager's side, without the rest of a manager."""

    address: ManagerAddress
    authority: Authority
    joining: Joining
    nodes: Nodes
    store: MemoryStore
    came: list[str] = field(factory=list)  #: ids of nodes that were let in
    joined: list[str] = field(factory=list)  #: names of new ones
    obeyed: list[tuple[str, Generation]] = field(factory=list)  #: ids, and the managers that they obey


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Place]:
    async with trio.open_nursery() as nursery:
        yield await _place(tmp_path / "cluster", nursery)
        nursery.cancel_scope.cancel()


async def _place(directory: Path, nursery: trio.Nursery) -> Place:
    store, authority, nodes = MemoryStore(), Authority.open(directory), Nodes("man_1", "vm")
    joined: list[str] = []
    own = NodeRecord("", "vm")
    await store.put_node(own)
    obeyed: list[tuple[str, Generation]] = []
    joining = Joining(
        *(store, authority, nodes, [own], [], lambda record: joined.append(record.name)),
        lambda node_id, newer: obeyed.append((node_id, newer)),
    )
    came: list[str] = []

    async def serve(stream: trio.abc.Stream, node_id: str) -> None:
        came.append(node_id)
        await stream.send_all(b"welcome\n")

    listener = ClusterListener(Credentials(directory), joining, authority.pem, {NODE_PROTOCOL: serve})
    tcp = await trio.open_tcp_listeners(0, host="127.0.0.1")
    await nursery.start(listener.serve, tcp)
    address = ManagerAddress("127.0.0.1", tcp[0].socket.getsockname()[1])
    return Place(address, authority, joining, nodes, store, came, joined, obeyed)


@define
class Machine:
    """One that wants to be a node, on this machine."""

    credentials: Credentials
    node_id: str = field(factory=lambda: new_id("nod"))

    @classmethod
    def at(cls, directory: Path) -> Machine:
        directory.mkdir()
        return cls(Credentials(directory))

    async def join(self, place: Place, secret: Secret, **ask: object) -> str:
        ca = await learn_ca(place.address, secret.fingerprint)
        request = self.credentials.make_request().decode()
        ask = {"name": "vm", "address": "127.0.0.2", **ask}
        wanted = JoinRequest(self.node_id, request, secret.word, **ask)  # type: ignore[arg-type]
        return (await join(place.address, self.credentials, wanted, ca)).name

    async def dial(self, place: Place) -> bytes:
        """What the manager says first."""
        async with await dial(place.address, self.credentials, NODE_PROTOCOL) as stream:
            return bytes(await stream.receive_some(10_000))


async def test_a_machine_joins_with_a_secret_and_is_let_in_by_its_certificate(
    place: Place, tmp_path: Path
) -> None:
    _, secret = await place.joining.invite(uses=2)
    assert Secret.parse(f" {secret}\n") == secret
    assert secret.word not in repr(secret)
    one, other = Machine.at(tmp_path / "1"), Machine.at(tmp_path / "2")
    assert await one.join(place, secret, labels={"zone": "b"}, resources={"licence": 2.0}) == "vm-2"
    assert await other.join(place, secret, address="") == "vm-3"
    assert await one.dial(place) == b"welcome\n"
    assert place.came == [one.node_id]
    assert place.joined == ["vm-2", "vm-3"]

    # All of it is in the database, and nothing of the secret.
    stored = (await place.store.load()).nodes
    assert [(node.name, node.address, dict(node.labels)) for node in stored] == [
        ("vm", "", {}), ("vm-2", "127.0.0.2", {"zone": "b"}), ("vm-3", "127.0.0.1", {})
    ]  # fmt: skip
    assert secret.word not in repr(await place.store.join_secrets())

    # Its answer may have been lost: the same machine asks again, with a secret that is used up.
    assert await one.join(place, secret) == "vm-2"
    certificate = one.credentials.certificate_file.read_bytes()
    await renew(place.address, one.credentials, one.node_id)
    assert one.credentials.certificate_file.read_bytes() != certificate
    assert await one.dial(place) == b"welcome\n"


async def test_a_secret_is_good_for_so_many_machines_for_so_long_and_at_one_cluster(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, secret = await place.joining.invite()
    await Machine.at(tmp_path / "1").join(place, secret, name="first")
    late = Machine.at(tmp_path / "2")
    with pytest.raises(
        InvalidRequest, match=r"was used already, by first: make another one with `agentmgr nodes"
    ):
        await late.join(place, secret)
    with pytest.raises(InvalidRequest, match="is not known here"):
        await late.join(place, Secret.new(place.authority.fingerprint))

    _, expired = await place.joining.invite(expires_s=1e-6)
    with pytest.raises(InvalidRequest, match=r"has expired, at [-0-9]+ [:0-9]+ UTC: make another one"):
        await late.join(place, expired)
    other = Authority.open(tmp_path / "other")
    with pytest.raises(CannotReachManager, match="of another cluster than the secret"):
        await late.join(place, Secret.new(other.fingerprint))
    assert not late.credentials.certificate_file.exists()
    assert [record.name for record in place.joining.all()] == ["vm", "first"]
    for text in ("", "agj_x.y", str(secret)[:-1], f"{secret}x"):
        with pytest.raises(InvalidRequest, match="no secret of `agentmgr nodes invite`"):
            Secret.parse(text)
    for uses, seconds in ((0, 60.0), (100_000, 60.0), (1, 0.0), (1, 1e9)):
        with pytest.raises(InvalidRequest):
            await place.joining.invite(uses, seconds)

    # What is long over is forgotten with the next one.
    monkeypatch.setattr("agentmgr.cluster.joining.utc_now", lambda: datetime.now(UTC) + timedelta(days=2))
    await place.joining.invite()
    assert len(await place.store.join_secrets()) == 1


async def test_strangers_and_nodes_that_were_forgotten_are_refused_and_logged_once(
    place: Place, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    caplog.clear()  # of what came before, in `place`
    _, secret = await place.joining.invite(uses=5)
    node = Machine.at(tmp_path / "1")
    await node.join(place, secret, name="b")
    with pytest.raises(Conflict, match="end `agentmgr node` there first"):
        await place.joining.forget("b", linked=lambda node_id: node_id == node.node_id)
    await place.joining.forget("b", linked=lambda node_id: False)
    with pytest.raises(NodeNotFound, match="`agentmgr nodes` lists them"):
        place.joining.find("b")
    for _ in range(3):
        assert b'["Unwelcome",{"reason":"this node was forgotten' in await node.dial(place)
    with pytest.raises(InvalidRequest, match="this node was forgotten"):
        await renew(place.address, node.credentials, node.node_id)
    assert [re.sub(".*refused", "refused", line) for line in caplog.messages if "refused" in line] == [
        f"refused a machine at 127.0.0.1, agentmgr://{place.authority.cluster_id}/node/{node.node_id}: "
        f"{FORGOTTEN}",
        f"refused a machine at 127.0.0.1: {FORGOTTEN}",
    ]
    assert await node.join(place, secret, name="b") == "b"
    assert await node.dial(place) == b"welcome\n"

    # An expired certificate, one of another cluster, none at all, and what is no TLS.
    caplog.clear()
    now = datetime.now(UTC) - VALID - timedelta(hours=1)
    expired = Machine.at(tmp_path / "2")
    await expired.join(place, secret)
    expired.credentials.keep(place.authority.issue(expired.credentials.make_request(), expired.node_id, now))
    foreign = Machine.at(tmp_path / "3")
    other = Authority.open(tmp_path / "other")
    foreign.credentials.keep(other.issue(foreign.credentials.make_request(), foreign.node_id), other.pem)
    with pytest.raises(CannotReachManager, match="its certificate is of another cluster"):
        await foreign.dial(place)
    foreign.credentials.ca_file.write_bytes(place.authority.pem)
    for machine in (expired, foreign):
        with suppress(CannotReachManager, trio.BrokenResourceError):  # by when it has sent something
            assert not await machine.dial(place)
    async with await trio.open_tcp_stream("127.0.0.1", place.address.port) as stream:
        await stream.send_all(b"GET / HTTP/1.1\r\n\r\n")
        assert not await stream.receive_some(100)
    told = "\n".join(caplog.messages)
    for reason in (
        "has expired: let it join again",
        "of another cluster",
        "an HTTP request: this is the port",
    ):
        assert reason in told
    assert place.came == [node.node_id]


async def test_connections_of_strangers_keep_no_machine_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listener_module, "_NEWCOMERS", 4)
    async with AsyncExitStack() as held, trio.open_nursery() as nursery:
        place = await _place(tmp_path / "cluster", nursery)
        _, secret = await place.joining.invite()
        opened = [
            await held.enter_async_context(await trio.open_tcp_stream("127.0.0.1", place.address.port))
            for _ in range(20)
        ]
        node = Machine.at(tmp_path / "1")
        began = trio.current_time()
        await node.join(place, secret, name="b")
        assert await node.dial(place) == b"welcome\n"
        assert not await opened[0].receive_some(1)  # the oldest made room
        assert trio.current_time() - began < listener_module.HANDSHAKE_S
        nursery.cancel_scope.cancel()
    assert "most of them from there: this one made room" in "\n".join(caplog.messages)


@pytest.mark.parametrize(
    ("ask", "told"),
    [
        ({"labels": {"node": "b"}}, "the label node is the node's name"),
        ({"labels": {"zone": "b\x1b[2J"}}, "value of label zone"),
        ({"labels": {f"l{number}": "x" for number in range(100)}}, "at most 64 labels"),
        ({"address": "\x1b[2J"}, "a node has an address"),
    ],
)
async def test_what_no_daemon_says_of_itself_is_refused_and_uses_no_secret(
    place: Place, tmp_path: Path, ask: dict[str, object], told: str
) -> None:
    _, secret = await place.joining.invite()
    machine = Machine.at(tmp_path / "1")
    with pytest.raises(InvalidRequest, match=told):
        await machine.join(place, secret, **ask)
    assert await machine.join(place, secret, name="\x1b bad/name ") == "bad-name"


async def test_a_copy_of_a_node_with_another_key_does_not_take_its_place(
    place: Place, tmp_path: Path
) -> None:
    _, secret = await place.joining.invite(uses=2)
    node, thief = Machine.at(tmp_path / "1"), Machine.at(tmp_path / "2")
    await node.join(place, secret, name="b")
    thief.node_id = node.node_id
    with pytest.raises(InvalidRequest, match="node b has this id, and another key"):
        await thief.join(place, secret)
    stolen = place.authority.issue(thief.credentials.make_request(), node.node_id)
    thief.credentials.keep(stolen, place.authority.pem)
    with pytest.raises(InvalidRequest, match="joined with another key"):
        await renew(place.address, thief.credentials, node.node_id)


async def test_cordons_and_what_a_daemon_says_of_itself_are_kept(place: Place, tmp_path: Path) -> None:
    _, secret = await place.joining.invite()
    node = Machine.at(tmp_path / "1")
    await node.join(place, secret, name="b")
    await place.joining.cordon("b", True)
    await place.joining.cordon("vm", True)
    handle = place.nodes.get(node.node_id)
    assert handle is not None
    handle.labels, handle.address = {"zone": "c"}, "10.0.0.9"
    await place.joining.describe(node.node_id)
    own, b = (await place.store.load()).nodes
    assert (own.cordoned, b.cordoned, b.labels, b.address) == (True, True, {"zone": "c"}, "10.0.0.9")
    with pytest.raises(Conflict, match="the manager's own machine"):
        await place.joining.forget("vm", linked=lambda node_id: True)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("a.example", ("a.example", 9443)),
        ("a:1", ("a", 1)),
        ("[::1]:9", ("::1", 9)),
        ("[::1]", ("::1", 9443)),
        ("", None),
        ("a:", None),
        ("a:0", None),
        ("a:99999", None),
        ("::1", None),
        ("http://a", None),
    ],
)
def test_the_managers_address(text: str, address: tuple[str, int] | None) -> None:
    if address is None:
        with pytest.raises(InvalidRequest, match="HOST:PORT"):
            ManagerAddress.parse(text)
    else:
        parsed = ManagerAddress.parse(text)
        assert parsed == ManagerAddress(*address)
        assert ManagerAddress.parse(str(parsed)) == parsed


async def test_a_dial_says_what_is_there_in_place_of_the_manager(tmp_path: Path, place: Place) -> None:
    node = Machine.at(tmp_path / "1")
    node.credentials.keep(
        place.authority.issue(node.credentials.make_request(), node.node_id), place.authority.pem
    )

    async def another_program(stream: trio.abc.Stream) -> None:
        await stream.receive_some(10_000)
        await stream.send_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    async with trio.open_nursery() as nursery:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, another_program, [listener])
        port = listener.socket.getsockname()[1]
        with pytest.raises(CannotReachManager, match="does not speak TLS: is this the port of a cluster"):
            await dial(ManagerAddress("127.0.0.1", port), node.credentials, NODE_PROTOCOL)
        nursery.cancel_scope.cancel()
    with pytest.raises(OSError, match=r"127\.0\.0\.1"):
        await dial(ManagerAddress("127.0.0.1", port), node.credentials, NODE_PROTOCOL)
    with pytest.raises(CannotReachManager, match="does not know this node's protocol"):
        await dial(place.address, node.credentials, "agentmgr-node/99")
    with pytest.raises(AgentManagerError, match="`agentmgr node --join`"):
        await dial(place.address, Credentials(tmp_path), NODE_PROTOCOL)


async def test_a_database_that_was_copied_without_its_ca_does_not_start_what_its_nodes_run(
    tmp_path: Path,
) -> None:
    paths, store = RuntimePaths.of(tmp_path / "copy.db"), MemoryStore()
    paths.create()
    snapshot = evolve(await store.load(), nodes=(NodeRecord("", "vm"), NodeRecord("nod_1", "b")))
    settings = Settings(cluster=ClusterMode.JOINED, cluster_port=0)
    with pytest.raises(CannotUseCluster, match=r"knows node b, and .* `agentmgr restore --as-new FILE`"):
        async with JoinedCluster.opened(settings, paths, store, snapshot, ManagerListeners()):
            pass
    assert not paths.cluster.exists()
