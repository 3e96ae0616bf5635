"""The fields of a registration that are about nodes: what a cluster refuses, what has no effect without one.

The rules:

* Without a cluster none of them has an effect, and nothing is refused: the same file serves a cluster and the
  machine of a developer. A remark says which are ignored.
* Nodes that have joined by themselves only say that they are there. None of them keeps account of what is
  free, so a claim (`cpus`, `gpus`, `memory_mb`, `resources`) is refused there rather than ignored. Where an
  engine does (`--cluster ray`), a remark says so of what no machine that is known has: one may be added.
* A port that is fixed is the same over all restarts, and so has to be on one node.
* Labels that no known node has are accepted, as the node may come; a remark says so.
"""

from __future__ import annotations

from collections.abc import Iterable

from attrs import fields

from ..errors import FieldProblem, InvalidRequest
from ..models import Instance, ServiceConfig, ServiceSpec
from ..models.nodes import one_node, resources, selectors
from . import amounts
from .placement import Candidate, Nowhere, Placed, Wish, place

CLAIMS = ("cpus", "gpus", "memory_mb", "resources")
ABOUT_NODES = (*CLAIMS, "place_on", "spread", "on_node_loss", "ship")


def given(config: ServiceConfig, names: Iterable[str] = ABOUT_NODES) -> tuple[str, ...]:
    """Those that differ from their defaults."""
    of_class = fields(ServiceConfig)
    return tuple(name for name in names if getattr(config, name) != getattr(of_class, name).default)


def unreservable(config: ServiceConfig) -> str | None:
    """Why nodes that have joined cannot run it; None: they can."""
    if not (asked := given(config, CLAIMS)):
        return None
    return (
        f"{' and '.join(asked)} cannot be reserved: nothing keeps account of what is free on nodes that "
        "joined by themselves (--cluster joined). Leave it out, and choose nodes by labels, with place_on; "
        "or run the manager with --cluster ray"
    )


def check(spec: ServiceSpec, *, reserves: bool) -> None:
    """Raises `InvalidRequest` for what the cluster cannot do. `reserves`: it has an engine that does."""
    config = spec.config
    if not reserves and (why := unreservable(config)) is not None:
        fields = [FieldProblem(name, "cannot be reserved on joined nodes") for name in given(config, CLAIMS)]
        raise InvalidRequest(f"service {spec.name}: {why}", fields=fields)
    if reserves:
        _check_amounts(spec)
    if spec.port is not None and one_node(config.place_on) is None:
        problem = (
            "is fixed, and so is on one node: name it by place_on, as in node=NAME, or leave the port out"
        )
        raise InvalidRequest(
            f"service {spec.name}: port {spec.port} {problem}", fields=[FieldProblem("port", problem)]
        )


def _check_amounts(spec: ServiceSpec) -> None:
    gpus = spec.config.gpus or 0.0
    if gpus > 1 and gpus != int(gpus):
        problem = (
            f"must be a whole number, or less than 1, not {gpus:g}: no part of a further GPU is reserved"
        )
        raise InvalidRequest(f"service {spec.name}: gpus {problem}", fields=[FieldProblem("gpus", problem)])
    for name in resources(spec.config.resources):
        if (option := _OPTION_OF.get(name)) is not None:
            problem = f"cannot have {name}: {option} reserves that"
            raise InvalidRequest(
                f"service {spec.name}: resources {problem}", fields=[FieldProblem("resources", problem)]
            )


_OPTION_OF = {amounts.CPU: "cpus", amounts.GPU: "gpus", amounts.MEMORY: "memory_mb"}


def unmet(config: ServiceConfig, machines: Iterable[amounts.Amounts]) -> tuple[str, ...]:
    """The remark on it where no machine that is known has what it asks for. None is known: no remark."""
    machines = tuple(machines)
    if not machines or (why := amounts.unmet(amounts.asked(config), machines)) is None:
        return ()
    return (f"{why}; it waits until a machine that has it comes",)


def ignored(config: ServiceConfig) -> tuple[str, ...]:
    """The remark on it where there is no cluster."""
    if not (names := given(config)):
        return ()
    have = "has" if len(names) == 1 else "have"
    return (f"{', '.join(names)} {have} no effect: this manager has no cluster (`--cluster`)",)


def unplaceable(spec: ServiceSpec, nodes: Iterable[Candidate]) -> tuple[str, ...]:
    """The remark on it in a cluster where no node that is known has the labels that it asks for."""
    wanted, nodes = selectors(spec.config.place_on), tuple(nodes)
    if any(all(selector.matches(node.labels) for selector in wanted) for node in nodes):
        return ()
    found = place(Wish(spec.service_id, 0, wanted), nodes, Placed())
    return (f"it {found.reason}",) if isinstance(found, Nowhere) else ()


def scattered(
    spec: ServiceSpec, instances: Iterable[Instance], sessions_url: str | None = None
) -> tuple[str, ...]:
    """The remark on it where its sessions are kept on several nodes, each on that of its instance.

    `sessions_url`: of the manager's network journal, if it has one.
    """
    if not spec.config.keeps_sessions or spec.config.journal_url(sessions_url) is not None:
        return ()
    nodes = sorted({instance.node for instance in instances if instance.node})
    if len(nodes) < 2:
        return ()
    return (
        f"its sessions are kept on {', '.join(nodes)}, each on the node of its instance, and no journal is "
        "kept elsewhere: those of a node that is lost are lost with it. With `--sessions redis://…` all are "
        "in a Redis",
    )
