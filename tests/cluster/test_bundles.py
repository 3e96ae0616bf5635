"""What is sent along with a service: which directory, packed when it has changed, and sent once."""

import logging
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio
from attrs import evolve

from agentmgr.cluster import bundles as module
from agentmgr.cluster.bundles import Bundles
from agentmgr.cluster.remote_slot import NothingShipped, RemoteSlot
from agentmgr.core.restart import Cause
from agentmgr.models import ServiceConfig, ServiceSpec
from agentmgr.node.bundles import BundleRefused, HasBundle, NodeBundles, PutBundle, Shipment
from agentmgr.node.protocol import CannotStart
from agentmgr.supervisor.launcher import CannotLaunch


class Node:
    """A node's bundles behind a link, which may break."""

    def __init__(self, directory: Path) -> None:
        self.bundles = NodeBundles(directory)
        self.received_bytes = 0
        self.before: Callable[[PutBundle], None] = lambda part: None

    node_id, name = "nod_b", "b"

    async def ask(self, part: PutBundle) -> HasBundle | BundleRefused:
        await trio.lowlevel.checkpoint()
        self.before(part)
        self.received_bytes += len(part.data) * 3 // 4
        return await self.bundles.answer(part)


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path / "node")


@pytest.fixture
def agent(tmp_path: Path) -> Path:
    (tmp_path / "project").mkdir()
    file = tmp_path / "project/agent.py"
    file.write_text("import lib\n")
    os.utime(file, (1, 1))
    return file


@pytest.fixture
def bundles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bundles:
    monkeypatch.setattr(module, "_SETTLED_S", 0)  # else whatever a test has just written is packed each time
    return Bundles(tmp_path / "archives")


def service(agent: Path | str | None, **config: Any) -> ServiceSpec:
    return ServiceSpec("svc", ServiceConfig(None if agent is None else str(agent), **config))


async def test_a_service_runs_on_the_node_as_here(agent: Path, bundles: Bundles, node: Node) -> None:
    other = agent.with_name("lib")
    other.mkdir()
    root = Path("/node/bundle")
    for cwd, there in ((agent.parent, "."), (other, "lib"), (agent.parents[1], "."), (None, ".")):
        spec = service(f"{agent}:make", cwd=None if cwd is None else str(cwd))
        shipment = await bundles.shipment(spec)
        assert shipment is not None
        placed = shipment.placed(spec, root).config
        assert (placed.agent_factory_path, placed.cwd) == ("/node/bundle/agent.py:make", str(root / there))
    # A directory that all machines share, and one that this node does not have.
    for cwd, there in ((Path("/usr"), "/usr"), (Path("/not/there"), str(root))):
        spec = service(agent, cwd=str(cwd))
        shipment = await bundles.shipment(spec)
        assert shipment is not None
        assert shipment.placed(spec, root).config.cwd == there


async def test_what_ship_names_is_sent_also_with_a_command_or_module(agent: Path, bundles: Bundles) -> None:
    assert await bundles.shipment(service(None, command=("true",), cwd=str(agent.parent))) is None
    assert await bundles.shipment(service("package.module:make")) is None
    assert await bundles.shipment(service(agent, ship="off")) is None
    command = service(None, command=("true",), cwd=str(agent.parent), ship=".")
    sent = await bundles.shipment(command)
    assert sent is not None
    assert sent == Shipment(sent.digest, None, ".")
    whole = await bundles.shipment(service(agent, ship=str(agent.parents[1] / "project/..")))
    assert whole is not None
    assert (whole.agent, whole.digest != sent.digest) == ("project/agent.py", True)


async def test_links_are_followed_as_the_host_follows_them(agent: Path, bundles: Bundles) -> None:
    current = agent.parents[1] / "current"
    current.symlink_to("project")
    by_link = await bundles.shipment(service(current / "agent.py", cwd=str(current)))
    assert by_link == await bundles.shipment(service(agent, cwd=str(agent.parent)))


@pytest.mark.parametrize(
    ("ship", "ignore", "said"),
    [
        ("lib", "", r"agent\.py is not in .*/lib, which --ship names"),
        (None, "agent.py", r"agent\.py would not be sent to the node: .*\.agentmgrignore names it"),
        ("nowhere", "", "nowhere does not exist"),
    ],
)
async def test_a_directory_without_the_agent_is_refused(
    agent: Path, bundles: Bundles, ship: str | None, ignore: str, said: str
) -> None:
    agent.with_name("lib").mkdir()
    agent.with_name(".agentmgrignore").write_text(ignore)
    with pytest.raises(CannotLaunch, match=said) as caught:
        await bundles.shipment(service(agent, ship=ship, cwd=str(agent.parent)))
    assert caught.value.cause is Cause.CANNOT_EXECUTE


async def test_a_home_directory_is_sent_only_when_it_is_named(
    agent: Path, bundles: Bundles, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(agent.parent))
    module._too_much.cache_clear()
    with pytest.raises(
        CannotLaunch, match=r"project, a home directory, which is not sent .*--ship /.*project"
    ):
        await bundles.shipment(service(agent))
    assert await bundles.shipment(service(agent, ship=str(agent.parent))) is not None
    monkeypatch.setenv("HOME", str(agent.parent / "deeper"))
    module._too_much.cache_clear()
    with pytest.raises(CannotLaunch, match="which holds much else"):
        await bundles.shipment(service(agent))
    module._too_much.cache_clear()
    assert module._too_much(Path("/")) is not None
    assert module._too_much(Path("/tmp")) is not None
    module._too_much.cache_clear()


async def test_it_is_packed_anew_only_when_something_has_changed(
    agent: Path, bundles: Bundles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = 0
    pack = module.look_and_pack

    def counting(*args: Any) -> Any:
        nonlocal packed
        packed += 1
        return pack(*args)

    monkeypatch.setattr(module, "look_and_pack", counting)
    spec = service(agent)
    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(bundles.shipment, spec)
    first = await bundles.shipment(spec)
    assert packed == 1
    agent.write_text("import lob\n")
    second = await bundles.shipment(spec)
    assert first is not None
    assert second is not None
    assert (packed, first.digest == second.digest) == (2, False)
    archives = tmp_path / "archives"
    assert os.listdir(archives) == [f"{second.digest}.tar"]
    (archives / f"{second.digest}.tar").unlink()  # by whoever cleans up
    assert await bundles.shipment(spec) == second
    assert os.listdir(archives) == [f"{second.digest}.tar"]
    # What was saved within the clock's tick before it was packed may have changed since, and look the same.
    monkeypatch.setattr(module, "_SETTLED_S", 1000)
    agent.write_text("import lub\n")
    await bundles.shipment(spec)
    assert packed == 4
    assert await bundles.shipment(spec) != second
    assert packed == 5


async def test_two_launches_at_once_send_it_once_and_a_third_not_at_all(
    agent: Path, bundles: Bundles, node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    agent.with_name("data").write_bytes(os.urandom(2_000_000))
    shipment = await bundles.shipment(service(agent))
    assert shipment is not None
    async with trio.open_nursery() as nursery:
        for _ in range(2):
            nursery.start_soon(bundles.send, node, shipment)
    await bundles.send(node, shipment)
    found = node.bundles.find(shipment.digest)
    assert found is not None
    assert (found / "agent.py").read_text() == "import lib\n"
    assert 2_000_000 < node.received_bytes < 2_100_000
    assert len(caplog.records) == 1
    assert "to node b" in caplog.text


async def test_a_start_that_is_given_up_leaves_the_rest_to_the_next(
    agent: Path, bundles: Bundles, node: Node
) -> None:
    agent.with_name("data").write_bytes(os.urandom(2_000_000))
    shipment = await bundles.shipment(service(agent))
    assert shipment is not None
    with trio.CancelScope() as scope:

        def cancel(part: PutBundle) -> None:
            if part.begin > 600_000:
                scope.cancel()

        node.before = cancel
        await bundles.send(node, shipment)
    assert scope.cancelled_caught
    before = node.received_bytes
    node.before = lambda part: None
    await bundles.send(node, shipment)
    assert node.bundles.find(shipment.digest) is not None
    assert node.received_bytes < before + 1_600_000


async def test_a_node_that_cannot_keep_it_costs_no_restart(
    agent: Path, bundles: Bundles, tmp_path: Path
) -> None:
    shipment = await bundles.shipment(service(agent))
    assert shipment is not None

    class Unfit(Node):
        answer: HasBundle | BundleRefused = BundleRefused("no space is left in /var/node")

        async def ask(self, part: PutBundle) -> HasBundle | BundleRefused:
            await trio.lowlevel.checkpoint()
            return self.answer

    node = Unfit(tmp_path)
    with pytest.raises(CannotLaunch, match=r"node b cannot keep .*no space is left in /var/node") as caught:
        await bundles.send(node, shipment)
    assert caught.value.cause is Cause.SHORTAGE
    node.answer = HasBundle(0)
    with pytest.raises(CannotLaunch, match="does not keep the bundle's parts") as caught:
        await bundles.send(node, shipment)
    assert caught.value.cause is Cause.SHORTAGE
    with pytest.raises(CannotLaunch, match="what was to be sent has changed"):
        await bundles.send(node, evolve(shipment, digest="0" * 64))


async def test_what_is_no_base64_is_refused(node: Node) -> None:
    assert isinstance(await node.bundles.answer(PutBundle("0" * 64, 10, 0, "!")), BundleRefused)


async def test_a_command_whose_directory_is_not_there_is_told_how_to_send_it() -> None:
    async def ask(order: object) -> CannotStart:
        return CannotStart("CANNOT_EXECUTE", "cannot work in directory '/home/me'")

    node: Any = SimpleNamespace(linked=True, name="b", open_slot=lambda instance_id: None, ask=ask)
    spec = ServiceSpec("job", ServiceConfig(command=("python3", "job.py"), cwd="/home/me"))
    slot = RemoteSlot(node, spec, "ins_1", 0, check_interval_s=10, shipping=NothingShipped())
    with pytest.raises(
        CannotLaunch, match=r"on node b: cannot work in .* `--ship DIR` of a service sends one"
    ):
        await slot.launch()
