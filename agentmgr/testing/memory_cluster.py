"""A cluster within the test: machines, cables and managers that break on demand, on trio's clock.

    async with memory_cluster(tmp_path, "b", "c") as cluster:
        await cluster.start_manager()
        await cluster.register(ServiceSpec("svc", ServiceConfig(agent_factory_path="agent.py", instances=3)))
        await trio.sleep(5)
        cluster.cut("b")
        await trio.sleep(30)  # its instances run elsewhere now
        cluster.mend("b")

Node daemons (`agentmgr.node`), nodes, launcher and supervisor are the real ones; the processes are fakes, as
those of `FakeLauncher`, and links are memory streams. Under `MockClock(autojump_threshold=0)` an hour without
a manager takes milliseconds.

The manager's own machine is "a". What a fault leaves is what it really leaves: a cut cable delays what was
sent, and neither end notices; a machine that loses its power says no goodbye; processes outlive their daemon
and their manager, and the next one adopts them.
"""

from __future__ import annotations

import random
import signal
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path

import trio
import trio.testing
from attrs import evolve

from ..cluster.claims import Claims
from ..cluster.launcher import ClusterLauncher
from ..cluster.nodes import Nodes
from ..core.liveness import LOST_AFTER_S
from ..core.restart import Exit
from ..errors import WrongState
from ..models import DesiredStatus, InstanceRecord, OnManagerDeath, ServiceSpec
from ..node.node import Node
from ..node.protocol import Facts
from ..supervisor import NullRecorder, Supervisor
from ..supervisor.log_file import LogFile
from .fake_launcher import Behaviour, FakeChild, FakeLauncher, FakeSlot
from .memory_engine import MemoryEngine, MemoryRay

OWN = "a"  #: the name of the manager's own machine
_CONNECT_S = 5.0  #: a dial over a cut cable takes so long to fail
KILLED = Exit(signal=signal.SIGKILL)


class Process(FakeChild):
    """A fake process; it outlives whoever watches it."""

    machine = ""  #: the name of the machine that it runs on
    dies = False  #: with its manager, or daemon

    @property
    def is_alive(self) -> bool:
        return self._exit is None

    @property
    def key(self) -> tuple[str, int]:
        """Its service, and its position there."""
        return self.record.service_id, self.record.slot

    async def end(self, grace_s: float) -> Exit:
        exit = await super().end(grace_s)
        self._exited.set()  # another one may have adopted it meanwhile
        return exit

    def kill_now(self) -> None:
        self.die(KILLED)
        self.ended_at = trio.current_time()


class _Processes(FakeLauncher):
    """The processes of one machine, over all its daemons."""

    def __init__(self, machine: str, launched: Callable[[Process], None], behaviour: Behaviour) -> None:
        super().__init__(behaviour)
        self.machine, self.launched = machine, launched
        self.boots = 0

    @property
    def boot_id(self) -> str:
        return f"boot-{self.machine}-{self.boots}"

    def slot(self, spec: ServiceSpec, instance_id: str, position: int) -> FakeSlot:
        return _MachineSlot(self, spec, instance_id, position)

    def open_log(self, spec: ServiceSpec, position: int) -> LogFile:
        # A file is read in a thread, and the mock clock runs on meanwhile.
        raise WrongState("fake processes write no log")

    async def sweep(self, keep: frozenset[str]) -> int:
        await trio.lowlevel.checkpoint()
        orphans = [process for process in self.alive if process.record.token not in keep]
        for process in orphans:
            process.kill_now()
        return len(orphans)

    def end_dying(self) -> None:
        """Those that do not outlive whoever launched them."""
        for process in self.alive:
            if process.dies:
                process.kill_now()

    @property
    def alive(self) -> list[Process]:
        return [it for it in self.children if isinstance(it, Process) and it.is_alive]


class _MachineSlot(FakeSlot):
    def adopt(self, record: InstanceRecord) -> FakeChild | None:
        assert isinstance(self._launcher, _Processes)
        for process in self._launcher.alive:
            if process.record.token == record.token:
                process.released = False
                return process
        return None

    def _begin(self, record: InstanceRecord, behaviour: Behaviour) -> FakeChild:
        processes = self._launcher
        assert isinstance(processes, _Processes)
        record = evolve(record, token=f"{processes.machine}-{record.pid}", boot_id=processes.boot_id)
        process = Process(self._spec.name, record, behaviour)
        process.machine = processes.machine
        process.dies = self._spec.config.on_manager_death is OnManagerDeath.DIE
        processes.children.append(process)
        processes.launched(process)
        return process


class Machine:
    """One with a node daemon, or the manager's own."""

    def __init__(self, name: str, processes: _Processes, directory: Path) -> None:
        self.name, self.processes, self.directory = name, processes, directory
        self.node_id = "" if name == OWN else f"nod_{name}"
        self.plugged = True  #: its cable
        self.daemon: trio.CancelScope | None = None
        self.wires: set[trio.CancelScope] = set()


class Manager:
    """One run of a manager."""

    def __init__(self, nodes: Nodes, launcher: ClusterLauncher, supervisor: Supervisor) -> None:
        self.nodes, self.launcher, self.supervisor = nodes, launcher, supervisor
        self.claims = launcher.claims
        self.is_alive = True
        self.links: set[trio.CancelScope] = set()
        self.scope = trio.CancelScope()


class _Recorder(NullRecorder):
    """Writes to the cluster's store, as long as its manager lives."""

    def __init__(self, cluster: MemoryCluster) -> None:
        self._cluster = cluster
        self.manager: Manager | None = None

    async def instance_spawned(self, record: InstanceRecord) -> None:
        await trio.lowlevel.checkpoint()
        if self._may_write:
            self._cluster.recorded(record)

    async def instance_gone(self, instance_id: str) -> None:
        await trio.lowlevel.checkpoint()
        if self._may_write:
            self._cluster.dropped(instance_id)

    @property
    def _may_write(self) -> bool:
        return self.manager is None or self.manager.is_alive


class MemoryCluster:
    """Made by `memory_cluster`."""

    def __init__(
        self,
        directory: Path,
        nursery: trio.Nursery,
        names: Iterable[str],
        *,
        behaviour: Behaviour,
        lost_after_s: float,
        draw: random.Random,
        ray: MemoryRay | None = None,
    ) -> None:
        self.ray = ray
        self.records: dict[str, InstanceRecord] = {}  #: the manager's database
        self.services: dict[str, ServiceSpec] = {}
        self.manager: Manager | None = None
        self._directory, self._behaviour = directory, behaviour
        self.machines = {name: self.new_machine(name) for name in (OWN, *names)}
        self._nursery = nursery
        self._lost_after_s = lost_after_s
        self._draw = draw
        self._managers = 0
        self._mended = trio.Event()

    # What a test may override

    def launched(self, process: Process) -> None:
        """It begins to run."""

    def recorded(self, record: InstanceRecord) -> None:
        self.records[record.instance_id] = record

    def dropped(self, instance_id: str) -> None:
        """The manager takes it to be over."""
        self.records.pop(instance_id, None)

    # What there is

    def new_machine(self, name: str) -> Machine:
        """One that can join: `machines` has to have it, and the manager's nodes."""
        return Machine(name, _Processes(name, self.launched, self._behaviour), self._directory / name)

    @property
    def alive(self) -> list[Process]:
        """On all machines."""
        return [process for machine in self.machines.values() for process in machine.processes.alive]

    @property
    def supervisor(self) -> Supervisor:
        assert self.manager is not None
        return self.manager.supervisor

    def is_linked(self, name: str) -> bool:
        """Whether the manager is linked with this machine, or is on it."""
        if self.manager is None:
            return False
        handle = self.manager.nodes.get(self.machines[name].node_id)
        return name == OWN or (handle is not None and handle.linked)

    def is_lost(self, name: str) -> bool:
        """Whether the manager has given the machine up."""
        if self.manager is None or name == OWN:
            return False
        handle = self.manager.nodes.get(self.machines[name].node_id)
        return handle is None or handle.lost is not None

    async def register(self, spec: ServiceSpec) -> None:
        """Starts it, now and with each further manager."""
        self.services[spec.service_id] = spec = evolve(spec, desired_status=DesiredStatus.RUNNING)
        await self.supervisor.start(spec, wait=False)

    # Managers

    async def start_manager(self) -> None:
        """Returns when it has adopted what is recorded, and starts what should run."""
        self.manager = await self._nursery.start(self._run_manager)

    async def _run_manager(self, *, task_status: trio.TaskStatus[Manager]) -> None:
        self._managers += 1
        nodes = Nodes(f"m{self._managers}", OWN, lost_after_s=self._lost_after_s)
        for machine in self.machines.values():
            if machine.node_id:
                ran = any(record.node_id == machine.node_id for record in self.records.values())
                nodes.add(machine.node_id, machine.name, ran=ran)
        claims = None
        if self.ray is not None:
            claims = Claims(MemoryEngine(self.ray, draw=self._draw), "memory", nodes)
        own = self.machines[OWN].processes
        launcher = ClusterLauncher(own, nodes, check_interval_s=10, claims=claims)
        recorder = _Recorder(self)
        supervisor = Supervisor(recorder, launcher=launcher, random=self._draw.random)
        recorder.manager = manager = Manager(nodes, launcher, supervisor)
        records = list(self.records.values())
        adopt = [
            (spec, [record for record in records if record.service_id == spec.service_id])
            for spec in self.services.values()
        ]
        with manager.scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(nodes.run)
                if claims is not None:
                    nursery.start_soon(claims.run)
                if self._draw.random() < 0.5:  # links may come while it adopts
                    self.manager = manager
                await nursery.start(partial(supervisor.run, adopt=adopt))
                for spec in list(self.services.values()):
                    await supervisor.start(spec, wait=False)
                task_status.started(manager)

    def kill_manager(self) -> None:
        """As `kill -9` does: its links end, it writes nothing more, and its processes live on."""
        manager, self.manager = self.manager, None
        assert manager is not None
        manager.is_alive = False
        if manager.claims is not None and isinstance(manager.claims.engine, MemoryEngine):
            manager.claims.engine.cut()
        self.machines[OWN].processes.end_dying()
        for link in list(manager.links):
            link.cancel()
        self._nursery.start_soon(self._bury, manager)

    async def _bury(self, manager: Manager) -> None:
        """Ends its tasks. They reach no node any more."""
        await manager.supervisor.shutdown(leave_running=True)
        manager.scope.cancel()

    # Node daemons

    async def start_daemon(self, name: str) -> None:
        """Returns when it has adopted what an earlier one has launched."""
        machine = self.machines[name]
        boot_id = machine.processes.boot_id
        facts = Facts(machine.node_id, f"host-{name}", labels={"zone": name}, boot_id=boot_id)
        dial = partial(self._dial, machine)
        node = Node(machine.directory, machine.processes, facts, dial, random=self._draw.random)
        machine.daemon = await self._nursery.start(self._run_daemon, node)

    async def _run_daemon(self, node: Node, *, task_status: trio.TaskStatus[trio.CancelScope]) -> None:
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                await nursery.start(node.run)
                task_status.started(scope)

    def kill_daemon(self, name: str) -> None:
        """As `kill -9` does: what it launched lives on, except what dies with its manager."""
        machine = self.machines[name]
        if machine.daemon is not None:
            machine.daemon.cancel()
            machine.daemon = None
            machine.processes.end_dying()

    # Machines and cables

    def cut(self, name: str) -> None:
        """Its cable is pulled; "a" cuts off the manager."""
        self.machines[name].plugged = False

    def mend(self, name: str) -> None:
        self.machines[name].plugged = True
        self._mended.set()
        self._mended = trio.Event()

    def power_off(self, name: str) -> None:
        """All its processes are dead, and its links say nothing more."""
        machine = self.machines[name]
        for wire in list(machine.wires):
            wire.cancel()
        for process in machine.processes.alive:
            process.kill_now()
        self.kill_daemon(name)

    async def power_on(self, name: str) -> None:
        self.machines[name].processes.boots += 1
        await self.start_daemon(name)

    def _passes(self, machine: Machine) -> bool:
        return machine.plugged and self.machines[OWN].plugged

    async def _until_passes(self, machine: Machine) -> None:
        while not self._passes(machine):
            await self._mended.wait()

    async def _dial(self, machine: Machine) -> trio.abc.Stream:
        """Raises `OSError`."""
        await trio.sleep(self._draw.uniform(0, 0.01))
        with trio.move_on_after(_CONNECT_S) as patience:
            await self._until_passes(machine)
        if patience.cancelled_caught:
            raise TimeoutError("no route to the manager")
        if (manager := self.manager) is None:
            raise ConnectionRefusedError("no manager listens there")
        near, here = trio.testing.memory_stream_pair()
        there, far = trio.testing.memory_stream_pair()
        self._nursery.start_soon(self._carry, machine, here, there)
        self._nursery.start_soon(self._serve, manager, machine.node_id, far)
        return near

    async def _serve(self, manager: Manager, node_id: str, stream: trio.abc.Stream) -> None:
        with trio.CancelScope() as scope:
            manager.links.add(scope)
            if not manager.is_alive:  # it was killed since it was dialled
                scope.cancel()
            await manager.nodes.serve(node_id, stream)
        manager.links.discard(scope)
        await trio.aclose_forcefully(stream)

    async def _carry(self, machine: Machine, here: trio.abc.Stream, there: trio.abc.Stream) -> None:
        with trio.CancelScope() as wire:
            machine.wires.add(wire)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._pass_on, machine, here, there)
                nursery.start_soon(self._pass_on, machine, there, here)
        machine.wires.discard(wire)
        if not wire.cancelled_caught:  # else a machine without power says nothing
            await trio.aclose_forcefully(here)
            await trio.aclose_forcefully(there)

    async def _pass_on(self, machine: Machine, source: trio.abc.Stream, target: trio.abc.Stream) -> None:
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            while data := await source.receive_some():
                await trio.sleep(self._draw.uniform(0, 0.01))
                await self._until_passes(machine)
                await target.send_all(bytes(data))
        await self._until_passes(machine)
        await trio.aclose_forcefully(source)
        await trio.aclose_forcefully(target)


@asynccontextmanager
async def memory_cluster(
    directory: Path,
    *names: str,
    behaviour: Behaviour | None = None,
    lost_after_s: float = LOST_AFTER_S,
    draw: random.Random | None = None,
    ray: MemoryRay | None = None,
    kind: type[MemoryCluster] = MemoryCluster,
) -> AsyncIterator[MemoryCluster]:
    """A cluster of these machines, whose daemons run; a manager does not yet. All ends with the block.

    `behaviour`: of all processes. `draw`: delays, backoffs and jitter. `ray`: the engine, if it has one.
    """
    async with trio.open_nursery() as nursery:
        cluster = kind(
            directory,
            nursery,
            names,
            behaviour=behaviour or Behaviour(ready_after_s=0.3, stop_takes_s=0.1),
            lost_after_s=lost_after_s,
            draw=draw or random.Random(0),
            ray=ray,
        )
        for name in names:
            await cluster.start_daemon(name)
        try:
            yield cluster
        finally:
            for machine in cluster.machines.values():
                if machine.node_id:
                    cluster.power_off(machine.name)
            nursery.cancel_scope.cancel()
