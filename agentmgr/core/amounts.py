"""What a registration asks to have reserved for each instance, in words, and whether any machine has as much.

Amounts are by the names of an engine: `CPU`, `GPU`, `memory` in bytes, and what else the user calls his own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ..models import ServiceConfig
from ..models.nodes import resources

CPU, GPU, MEMORY = "CPU", "GPU", "memory"
_MIB = 2**20

Amounts = Mapping[str, float]


def asked(config: ServiceConfig) -> dict[str, float]:
    """Nothing, where an instance needs no claim."""
    return amounts(config.cpus, config.gpus, config.memory_mb, resources(config.resources))


def amounts(
    cpus: float | None, gpus: float | None, memory_mb: int | None, others: Amounts
) -> dict[str, float]:
    found = {CPU: cpus or 0.0, GPU: gpus or 0.0, MEMORY: float((memory_mb or 0) * _MIB), **others}
    return {name: amount for name, amount in found.items() if amount}


def in_words(found: Amounts) -> str:
    """As in `1 GPU, 4 CPUs and 2048 MiB of memory`."""
    order = {GPU: 0, CPU: 1, MEMORY: 2}
    words = [_in_words(name, found[name]) for name in sorted(found, key=lambda it: (order.get(it, 3), it))]
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


def _in_words(name: str, amount: float) -> str:
    if name == MEMORY:
        return f"{amount / _MIB:.0f} MiB of memory"
    if name in (CPU, GPU):
        return f"{amount:g} {name}{'' if amount == 1 else 's'}"
    return f"{amount:g} {name}"


def unmet(wanted: Amounts, machines: Iterable[Amounts]) -> str | None:
    """Why none of these machines could have it all, were nothing else there; None: one could."""
    machines = tuple(machines)
    if any(_has(machine, wanted) for machine in machines):
        return None
    for name, amount in wanted.items():
        most = max((machine.get(name, 0.0) for machine in machines), default=0.0)
        if most < amount:
            have = f"the most that one has is {_in_words(name, most)}" if most else "none has any"
            return f"no machine has {_in_words(name, amount)}: {have}"
    return f"no machine has {in_words(wanted)} together"


def _has(machine: Amounts, wanted: Amounts) -> bool:
    return all(machine.get(name, 0.0) >= amount for name, amount in wanted.items())
