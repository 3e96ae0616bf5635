"""The interface to what knows the machines of a cluster, reserves parts of them, and may add some."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from attrs import Factory, frozen

from ..models import ServiceConfig


@frozen
class Machine:
    engine_id: str  #: what the engine calls it
    node_id: str  #: what its daemon calls itself, for ever
    address: str
    labels: Mapping[str, str] = Factory(dict)
    resources: Mapping[str, float] = Factory(dict)


@frozen
class Wish:
    """What is to be reserved for an instance."""

    cpus: float = 0.0
    gpus: float = 0.0
    memory_mb: int = 0
    resources: Mapping[str, float] = Factory(dict)
    labels: Mapping[str, str] = Factory(dict)


@frozen
class Claim:
    """What is reserved."""

    claim_id: str  #: `agentmgr/DATABASE/INSTANCE`: found again after the manager's death
    engine_id: str
    gpu_ids: tuple[str, ...] = ()


class EngineObserver(Protocol):
    def machine_up(self, machine: Machine) -> None: ...

    def machine_gone(self, engine_id: str, reason: str) -> None: ...


class Engine(Protocol):
    async def run(self, observer: EngineObserver) -> None:
        """Until cancelled; never raises for the engine's faults."""

    def refusal(self, config: ServiceConfig) -> str | None:
        """Why this engine can reserve nothing of what the service claims, and what to do; None: it can, or
        nothing is claimed.
        """

    async def claim(self, wish: Wish, claim_id: str, prefer: str | None) -> Claim:
        """Waits while it is pending. `prefer`: the engine's id of a machine."""

    async def release(self, claim_id: str) -> None: ...

    async def claims(self) -> Mapping[str, Claim]:
        """All that are there, by their ids: to give back what no instance has."""

    def troubles(self) -> tuple[str, ...]: ...
