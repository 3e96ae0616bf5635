"""The gateway workers of a node: started as the manager orders, adopted, restarted, ended.

They outlive the daemon, as the instances do. What it is to keep is in a file, with the id of each worker, so
that the next daemon takes over those that live, and ends one that it does not know.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import trio
from attrs import define, evolve, field, frozen

from ..codec import from_answer, parse_json, to_json
from ..errors import InvalidRequest
from ..process.paths import reason
from ..replacing import replace
from ..supervisor.process import Leader
from ..worker import keeping
from ..worker.pidfile import PidFile, living
from ..worker.spec import ClusterManager, WorkerSpec
from .protocol import AwaitGateway, Done, GatewayOrder, KeepGateways, KillGateway

log = logging.getLogger(__name__)

_FILE = "gateways.json"


@frozen
class OwnFacts:
    """What its gateways have of a node."""

    node_id: str
    credentials: Path
    manager: ClusterManager
    certfile: str | None = None  #: for the clients of its gateways
    keyfile: str | None = None


@frozen
class _Written:
    """What the file says of one."""

    order: GatewayOrder
    worker_id: str
    options: str  #: as `WorkerSpec.options`


@define(eq=False)
class _Gateway:
    """One that is kept. Its worker is another one after each restart."""

    order: GatewayOrder
    spec: WorkerSpec
    is_over: bool = False  #: its worker is to end
    scope: trio.CancelScope = field(factory=trio.CancelScope)
    trouble: str = ""  #: why it does not run
    tried: trio.Event = field(factory=trio.Event)  #: it has been started, or could not be


class NodeGateways:
    """`run` runs beside a `Node`, whose orders `keep`, `ended` and `kill` answer."""

    def __init__(
        self,
        directory: Path,
        facts: OwnFacts,
        troubles: Callable[[tuple[str, ...]], None] = lambda reasons: None,
    ) -> None:
        """`directory`: of their logs and locks, and the file. `troubles` is called with why gateways do not
        run, when that changes.
        """
        self._directory = directory
        self._facts = facts
        self._troubles = troubles
        self._gateways: list[_Gateway] = []
        self._said: tuple[str, ...] = ()  # as troubles
        self._nursery: trio.Nursery | None = None

    async def run(self) -> None:
        """Keeps what it is to keep, until cancelled; then the workers live on."""
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        alive = {found.worker_id: found for found in living(self._directory)}
        self._gateways = []
        async with trio.open_nursery() as self._nursery:
            for known in self._read():
                alike = known.options == self._spec(known.order, "").options
                self._begin(known.order, alive.pop(known.worker_id, None) if alike else None)
            for left in alive.values():  # it was just being replaced, or has another manager's address
                log.info("ending gateway worker %d: it was replaced", left.pid)
                self._nursery.start_soon(keeping.end, left, self._directory, keeping.END_S)
            await trio.sleep_forever()

    @property
    def serve_clients(self) -> bool:
        """Whether a gateway here is more than a gate."""
        return any(gateway.order.listens for gateway in self._gateways)

    async def end(self) -> None:
        """Ends all. Raises OSError."""
        self.keep(KeepGateways(()))
        for found in living(self._directory):
            await self.ended(AwaitGateway(found.worker_id))

    # Orders

    def keep(self, order: KeepGateways) -> Done:
        """Those that are not wanted any more end once the new ones serve. Raises OSError."""
        assert self._nursery is not None
        if order.at_least and self._gateways:
            return Done()
        # Another manager may have other settings: what does not concern a gateway leaves it as it is.
        wanted, unwanted = {self._serves(each): each for each in order.gateways}, []
        for gateway in self._gateways:
            if wanted.pop(self._serves(gateway.order), None) is None:
                unwanted.append(gateway)
        self._gateways = [gateway for gateway in self._gateways if gateway not in unwanted]
        new = [self._begin(each, None) for each in wanted.values()]
        self._write()
        self._nursery.start_soon(self._replace, unwanted, new)
        return Done()

    async def ended(self, order: AwaitGateway) -> Done:
        if (found := self._alive(order.worker_id)) is not None:
            with suppress(ProcessLookupError):
                process = os.pidfd_open(found.pid)
                try:
                    if self._alive(order.worker_id) == found:  # and so the pid is still that worker's
                        await trio.lowlevel.wait_readable(process)
                finally:
                    os.close(process)
        return Done()

    async def kill(self, order: KillGateway) -> Done:
        if (found := self._alive(order.worker_id)) is not None:
            log.warning("killing gateway worker %d: it does not answer the manager", found.pid)
            await keeping.end(found, self._directory, 0)
        return Done()

    # What is kept

    def _begin(self, order: GatewayOrder, found: PidFile | None) -> _Gateway:
        """Keeps such a gateway; `found` is its worker, if it lives."""
        assert self._nursery is not None
        spec = self._spec(order, keeping.new_id() if found is None else found.worker_id)
        gateway = _Gateway(order, spec)
        self._gateways.append(gateway)
        self._nursery.start_soon(self._keep, gateway, found)
        return gateway

    async def _keep(self, gateway: _Gateway, found: PidFile | None) -> None:
        with gateway.scope:
            await keeping.keep(
                None if found is None else keeping.adopt(found, self._directory),
                partial(self._start, gateway),
                name=f"the gateway at {gateway.order.address}:{gateway.order.port or 'its gate'}",
                leaving=lambda: not gateway.is_over,
                trouble=partial(self._has_trouble, gateway),
            )

    async def _start(self, gateway: _Gateway) -> Leader:
        """Raises `DidNotStart`."""
        gateway.spec = evolve(gateway.spec, worker_id=keeping.new_id())
        try:
            self._write()  # first: a worker that is not in the file is ended
        except OSError as error:
            raise keeping.DidNotStart(reason(error)) from None
        return await keeping.start(gateway.spec)

    def _has_trouble(self, gateway: _Gateway, why: str) -> None:
        gateway.tried.set()
        if why != gateway.trouble:
            gateway.trouble = why
            self._say_troubles()

    def _say_troubles(self) -> None:
        reasons = tuple(gateway.trouble for gateway in self._gateways if gateway.trouble)
        if reasons != self._said:
            self._said = reasons
            self._troubles(reasons)

    async def _replace(self, unwanted: list[_Gateway], new: list[_Gateway]) -> None:
        for gateway in new:
            await gateway.tried.wait()
        for gateway in unwanted:
            gateway.is_over = True
            gateway.scope.cancel()
        self._say_troubles()

    def _spec(self, order: GatewayOrder, worker_id: str) -> WorkerSpec:
        facts = self._facts
        return WorkerSpec(
            worker_id,
            order.settings,
            order.address,
            order.port,
            facts.certfile if order.listens else None,
            facts.keyfile if order.listens else None,
            listens=order.listens,
            node_id=facts.node_id,
            credentials=str(facts.credentials),
            gate_host=order.address,
            manager=facts.manager,
            directory=str(self._directory),
            lease_s=order.lease_s,
        )

    def _serves(self, order: GatewayOrder) -> tuple[int, str]:
        """Equal for orders whose gateways serve clients alike."""
        return order.port, self._spec(order, "").options

    def _alive(self, worker_id: str) -> PidFile | None:
        return next((found for found in living(self._directory) if found.worker_id == worker_id), None)

    def _read(self) -> list[_Written]:
        path = self._directory / _FILE
        try:
            return from_answer(parse_json(path.read_bytes()), list[_Written])
        except FileNotFoundError:
            pass
        except (OSError, InvalidRequest) as error:
            log.warning("cannot read %s, ending the gateways: %s", path, error)
        return []

    def _write(self) -> None:
        """Raises OSError."""
        written = [_Written(it.order, it.spec.worker_id, it.spec.options) for it in self._gateways]
        # A power cut ends the workers too.
        replace(self._directory / _FILE, to_json(written).encode(), lasting=False)
