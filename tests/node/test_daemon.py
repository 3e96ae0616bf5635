"""A node's directory: one daemon in it, what it remembers, and its certificate, which is renewed in time."""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trio
from attrs import evolve

from agentmgr.ca import VALID
from agentmgr.credentials import RENEWED, Credentials, Member
from agentmgr.dialing import ManagerAddress
from agentmgr.errors import CannotReachManager, CannotUseCluster, InvalidRequest
from agentmgr.models import new_id
from agentmgr.node import daemon
from agentmgr.node.daemon import NodeConfig, NodeDaemon, held, join_cluster, needs_secret
from agentmgr.node.joining import JoinAnswer, JoinRequest
from tests.cluster.test_joining import Machine, Place
from tests.cluster.test_joining import _place as place_in
from tests.cluster.test_joining import place as place
from tests.ports import own_port


@pytest.fixture
async def joined(place: Place, tmp_path: Path) -> AsyncIterator[NodeConfig]:
    """What a machine is that has joined, in `tmp_path/node`."""
    directory = tmp_path / "node"
    with held(directory):
        assert needs_secret(directory) == "this machine has not joined a cluster yet"
        _, secret = await place.joining.invite()
        config = NodeConfig(new_id("nod"), place.address, "b", "127.0.0.2", {"zone": "b"}, {"licence": 1.0})
        config = await join_cluster(directory, config, secret)
        assert (config.name, needs_secret(directory)) == ("b", None)
        yield config


def issued(place: Place, directory: Path, node_id: str, age: timedelta) -> Credentials:
    """Its certificate is that old."""
    credentials = Credentials(directory / "credentials")
    request = credentials.make_request()
    credentials.keep(place.authority.issue(request, node_id, datetime.now(UTC) - age))
    return credentials


async def welcome(node: NodeDaemon) -> bytes:
    """What the manager says first."""
    stream = await node.node._dial()
    try:
        return bytes(await stream.receive_some(10))
    finally:
        await trio.aclose_forcefully(stream)


async def test_a_directory_has_one_daemon_and_keeps_what_its_node_is(
    joined: NodeConfig, tmp_path: Path
) -> None:
    directory = tmp_path / "node"
    assert NodeConfig.read(directory) == joined
    written = os.stat(directory / "node.json").st_mtime_ns
    with (
        pytest.raises(CannotUseCluster, match=rf"runs in {directory} already, pid {os.getpid()}: end"),
        held(directory),
    ):
        pass
    joined.write(directory)  # nothing new
    assert os.stat(directory / "node.json").st_mtime_ns == written

    copy = tmp_path / "copy"
    shutil.copytree(directory, copy)
    config = NodeConfig.read(copy)
    assert config is not None
    with pytest.raises(
        CannotUseCluster, match=rf"{copy} is a copy of {directory}, which is node b: use that"
    ):
        config.refuse_copy(copy)
    config.refuse_copy(directory)
    directory.rename(tmp_path / "moved")
    config.refuse_copy(copy)  # it is the only one now
    (tmp_path / "moved").rename(directory)

    (directory / "node.json").write_text("{")
    with pytest.raises(CannotUseCluster, match=r"node\.json cannot be read"):
        NodeConfig.read(directory)
    assert NodeConfig.read(tmp_path) is None
    (tmp_path / "file").touch()
    with pytest.raises(CannotUseCluster, match="name another one with --directory"), held(tmp_path / "file"):
        pass


async def test_a_certificate_is_renewed_as_the_daemon_dials_and_an_expired_one_asks_for_a_secret(
    joined: NodeConfig, place: Place, tmp_path: Path
) -> None:
    directory = tmp_path / "node"
    credentials = issued(place, directory, joined.node_id, VALID - RENEWED + timedelta(hours=1))
    assert credentials.is_due()
    node = NodeDaemon(directory, evolve(joined, address=""))
    assert await welcome(node) == b"welcome\n"
    assert not credentials.is_due()
    assert node.node.facts.address == "127.0.0.1"  # where its connection comes from

    issued(place, directory, joined.node_id, VALID + timedelta(hours=1))
    with pytest.raises(CannotUseCluster, match=r"has expired, on [-0-9]+: join again, with --join"):
        await welcome(node)
    assert "has expired" in str(needs_secret(directory))
    _, secret = await place.joining.invite()
    assert await join_cluster(directory, joined, secret) == joined
    assert await welcome(node) == b"welcome\n"


async def test_a_machine_waits_some_time_for_the_manager_that_it_joins(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(daemon, "_JOIN_PATIENCE_S", 0.2)
    monkeypatch.setattr(daemon, "_JOIN_PAUSE_S", 0.05)
    _, secret = await place.joining.invite()
    nowhere = NodeConfig(new_id("nod"), ManagerAddress("127.0.0.1", own_port()))
    with held(tmp_path / "node"):
        began = trio.current_time()
        with pytest.raises(
            CannotReachManager,
            match="does it run with `--cluster joined` or `--cluster ray`, and listen there",
        ):
            await join_cluster(tmp_path / "node", nowhere, secret)
        assert trio.current_time() - began >= 0.2
        assert NodeConfig.read(tmp_path / "node") is None


async def test_a_machine_that_joins_asks_again_while_the_manager_is_busy(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(daemon, "_JOIN_PAUSE_S", 0.05)
    _, secret = await place.joining.invite()
    busy, answer = iter([True, True, False]), place.joining.answer

    async def some_busy(ask: JoinRequest, shown: Member | None) -> JoinAnswer:
        return JoinAnswer(refusal="ask again", busy=True) if next(busy) else await answer(ask, shown)

    monkeypatch.setattr(place.joining, "answer", some_busy)
    with held(tmp_path / "node"):
        config = NodeConfig(new_id("nod"), place.address, "b")
        assert (await join_cluster(tmp_path / "node", config, secret)).name == "b"
    assert next(busy, None) is None


async def test_a_node_that_was_forgotten_joins_again_and_a_refused_one_keeps_what_it_has(
    joined: NodeConfig, place: Place, tmp_path: Path
) -> None:
    directory = tmp_path / "node"
    credentials = Credentials(directory / "credentials")
    assert await daemon.unwelcome(directory, joined) is None
    await place.joining.forget("b", linked=lambda node_id: False)
    assert "this node was forgotten" in str(await daemon.unwelcome(directory, joined))

    before = credentials.ca_file.read_bytes(), credentials.certificate_file.read_bytes()
    async with trio.open_nursery() as nursery:
        other = await place_in(tmp_path / "other", nursery)
        _, secret = await other.joining.invite()
        await Machine.at(tmp_path / "first").join(other, secret)
        with pytest.raises(InvalidRequest, match="was used already"):
            await join_cluster(directory, evolve(joined, manager=other.address), secret)
        nursery.cancel_scope.cancel()
    assert (credentials.ca_file.read_bytes(), credentials.certificate_file.read_bytes()) == before

    _, secret = await place.joining.invite()
    assert await join_cluster(directory, joined, secret) == joined
    assert await daemon.unwelcome(directory, joined) is None
    assert await daemon.unwelcome(directory, evolve(joined, manager=evolve(place.address, port=1))) is None
