"""The nodes of a cluster, as interfaces show them."""

from __future__ import annotations

import platform
from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import TYPE_CHECKING

from ..cluster.engine import Machine
from ..cluster.node_handle import NodeHandle
from ..models import SERVING, Node, NodeRecord
from ..version import __version__

if TYPE_CHECKING:
    from .cluster import JoinedCluster
    from .control_plane import ControlPlane


def shown(plane: ControlPlane, cluster: JoinedCluster) -> list[Node]:
    """The manager's own machine first, then by name."""
    instances = Counter[str]()
    usage = defaultdict[str, list[tuple[float, int]]](list)
    node_of = dict[str, str]()
    for instance in plane.supervisor.instances():
        node_of[instance.instance_id] = instance.node_id
        if instance.status in SERVING or instance.pid is not None:
            instances[instance.node_id] += 1
            for sample in plane.supervisor.usage(instance.instance_id)[-1:]:
                usage[instance.node_id].append((sample.cpu_percent, sample.memory_bytes))
    sessions = Counter[str]()
    for (_, instance_id), count in plane.connections.counts().items():
        sessions[node_of.get(instance_id, "?")] += count
    claimed = {} if cluster.claims is None else cluster.claims.claimed()
    found = []
    for record in cluster.joining.all():
        node_id = record.node_id
        machine = None if cluster.claims is None else cluster.claims.machine(node_id)
        state, reason = cluster.nodes.state_of(node_id)
        handle, used = cluster.nodes.get(node_id), usage[node_id]
        facts = None if handle is None else handle.facts
        versions = (__version__, platform.python_version()) if not node_id else ("", "")
        if facts is not None:
            versions = (facts.agentmgr, facts.python)
        found.append(
            Node(
                node_id,
                record.name,
                record.address or (cluster.host if not node_id else ""),
                state,
                reason,
                instances[node_id],
                sessions[node_id],
                sum(cpu for cpu, _ in used) if used else None,
                sum(memory for _, memory in used) if used else None,
                cluster.nodes.labels_of(node_id),
                _resources(record, handle, machine),
                record.joined_at,
                record.cordoned,
                *versions,
                clock_skew_s=None if handle is None else handle.clock_skew_s,
                troubles=handle.figures.troubles if handle is not None and handle.figures else (),
                claimed=claimed.get(node_id, {}),
            )
        )
    return found


def _resources(record: NodeRecord, handle: NodeHandle | None, machine: Machine | None) -> Mapping[str, float]:
    """As its engine, its daemon or the database has them."""
    if machine is not None:
        return machine.resources
    return record.resources if handle is None or handle.facts is None else handle.facts.resources
