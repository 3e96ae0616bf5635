"""What is wrong with the nodes of a cluster, and what to do about it; part of `agentmgr doctor`."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Iterator, Mapping, Sequence

import trio

from ..cluster.node_handle import NodeHandle, NodeLost, OrderFailed
from ..models import Service
from ..models.nodes import NodeState
from ..node.checkup import Examine, Examined, packages
from ..version import __version__
from .doctor import FEW_FILES, LOW_DISK_BYTES, Finding

_ANSWER_S = 20.0  #: each Python that a service names is started, and may take half of that
_CLOCKS_S = 2.0  #: a larger difference is none of the link's
_NAMED = 5


async def examine_nodes(nodes: Iterable[NodeHandle], services: Sequence[Service]) -> list[Finding]:
    pythons = {it.config.python for it in services if it.config.python is not None}
    agents = any(it.agent_factory_path is not None and it.config.python is None for it in services)
    ours = await trio.to_thread.run_sync(packages) if agents else {}
    found: dict[str, list[Finding]] = {}

    async def examine(node: NodeHandle) -> None:
        findings = list(_standing(node))
        if node.linked:
            try:
                with trio.fail_after(_ANSWER_S):
                    answer = await node.call(Examine(tuple(sorted(pythons))), Examined)
                findings += _examined(_what(node), answer, ours)
            except (NodeLost, OrderFailed, trio.TooSlowError) as error:
                why = str(error) or f"no answer within {_ANSWER_S:g} s"
                findings.append(Finding(_what(node), "warning", f"could not be examined: {why}"))
        found[node.node_id] = findings

    nodes = list(nodes)
    async with trio.open_nursery() as nursery:
        for node in nodes:
            nursery.start_soon(examine, node)
    return [finding for node in nodes for finding in found[node.node_id]]


def _what(node: NodeHandle) -> str:
    return f"node {node.name}"


def _standing(node: NodeHandle) -> Iterator[Finding]:
    what, why = _what(node), node.state_reason or node.unlinked_why
    if node.state is NodeState.LOST:
        advice = f"start its daemon; or, if it will not come back, `agentmgr nodes forget {node.name}`"
        yield Finding(what, "error", f"lost: {why}", advice)
    elif not node.linked:
        advice = "see there whether its daemon runs, and what it says of the manager"
        yield Finding(what, "warning", f"silent: {why}", advice)
    elif node.facts is not None:
        there = f"agentmgr {node.facts.agentmgr}, Python {node.facts.python}"
        yield Finding(what, "ok", f"{node.state}, {there}")
        if node.facts.agentmgr != __version__:
            advice = "install the same on both: nodes may be updated one after the other"
            seen = f"has agentmgr {node.facts.agentmgr}, the manager {__version__}"
            yield Finding(what, "warning", seen, advice)
        if _minor(node.facts.python) != _minor(platform.python_version()):
            seen = f"has Python {node.facts.python}, the manager {platform.python_version()}"
            yield Finding(what, "warning", seen, "agents may find other packages there: use one version")
    skew = node.clock_skew_s or 0.0
    if node.linked and abs(skew) > _CLOCKS_S:
        seen = f"its clock is {abs(skew):.1f} s {'ahead' if skew > 0 else 'behind'}"
        advice = "synchronise it (NTP): certificates and the times of logs depend on it"
        yield Finding(what, "warning", seen, advice)


def _examined(what: str, answer: Examined, ours: Mapping[str, str]) -> Iterator[Finding]:
    lacking = sorted(ours.keys() - answer.packages.keys())
    others = sorted(
        name for name in ours.keys() & answer.packages.keys() if ours[name] != answer.packages[name]
    )
    if lacking:
        advice = "install there what agents import: packages are not sent along"
        yield Finding(what, "warning", f"lacks packages that the manager has: {_some(lacking)}", advice)
    if others:
        named = [f"{name} {answer.packages[name]} (here {ours[name]})" for name in others]
        advice = "install the same there, or agents may behave otherwise"
        yield Finding(what, "warning", f"has other versions of packages: {_some(named)}", advice)
    for python, why in answer.unfit.items():
        yield Finding(what, "error", why, answer.advice.get(python, ""))
    if answer.free_bytes < LOW_DISK_BYTES:
        seen = f"{answer.free_bytes / 2**20:.0f} MiB free for logs and what is sent along"
        yield Finding(what, "error", seen, "free some space there")
    if answer.open_files is not None and answer.open_files <= FEW_FILES:
        advice = "raise the hard limit there, as with LimitNOFILE= in a systemd unit"
        yield Finding(what, "warning", f"at most {answer.open_files} open files", advice)


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def _minor(version: str) -> str:
    return ".".join(version.split(".")[:2])
