"""`agentmgr nodes …`"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import asyncclick as click

from ...core.hosts import is_loopback
from ...errors import InvalidRequest
from ...process.paths import absolute
from ...replacing import replace
from ..group import COMMANDS, Cli, Command, DefaultGroup, common_options, each, format_option, subcommand
from ..managers import running
from ..names import FILE, NODE
from ..out import complain, note, say, say_json
from ..render import clock, counted, print_fields, print_table, size
from ..watch import progress

if TYPE_CHECKING:
    from ...models import DrainedNode, Node

_HOW = "`agentmgr daemon --cluster joined` runs one for several machines, with Ray `--cluster ray`"
_UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


@click.group(
    "nodes",
    cls=DefaultGroup,
    default="list",
    short_help=COMMANDS["nodes"],
    example="agentmgr nodes\nagentmgr nodes invite --uses 3",
)
@common_options
def command() -> None:
    """The nodes of a cluster: the manager's machine, and those that have joined with `agentmgr node`.

    Without a command they are listed. A node is linked; silent, for seconds, when nothing is heard of it;
    then lost, and what ran there starts elsewhere; cordoned, when nothing new is placed there.
    """


def _nodes(name: str, help: str, *, example: str) -> Callable[[Callable[..., Any]], Command]:
    return subcommand(name, short_help=help, example=example)


@_nodes("list", "List the nodes.", example="agentmgr nodes list")
@format_option
async def _list(cli: Cli, output: str) -> None:
    """List the nodes, the manager's machine first, and how many instances and connections each has.

    CPU and memory are what the instances use; 100% is one core. With Ray: how many GPUs and CPUs are reserved
    for instances, of how many.
    """
    nodes = await (await running(cli, _HOW)).list_nodes()
    if output == "json":
        say_json(nodes)
        return
    reserved = ["gpus", "cpus"] if any("CPU" in node.resources for node in nodes) else []
    print_table(
        ["name", "address", "state", "instances", "sessions", "cpu", "memory", *reserved, "labels"],
        [
            [
                *(node.name, node.address, node.state, node.instances, node.sessions, *_used(node)),
                *(_reserved(node, name.removesuffix("s").upper()) for name in reserved),
                _labels(node),
            ]
            for node in nodes
        ],
        empty="no nodes",
    )
    for node in nodes:
        if node.reason:
            note(f"{node.name} is {node.state}: {node.reason}")


def _used(node: Node) -> tuple[str, str]:
    cpu, memory = node.cpu_percent, node.memory_bytes
    return ("" if cpu is None else f"{cpu:.0f}%"), ("" if memory is None else size(memory))


def _reserved(node: Node, resource: str) -> str:
    """As in `3/8`; nothing where the node has none."""
    if (amount := node.resources.get(resource)) is None:
        return ""
    return f"{node.claimed.get(resource, 0):g}/{amount:g}"


def _labels(node: Node) -> str:
    return ",".join(f"{key}={value}" for key, value in sorted(node.labels.items()) if key != "node")


@_nodes("show", "Show a node in detail.", example="agentmgr nodes show b")
@click.argument("name", type=NODE)
@format_option
async def _show(cli: Cli, name: str, output: str) -> None:
    """Show a node: its state and why, what runs there, its versions and its clock."""
    manager = await running(cli, _HOW)
    node = await manager.get_node(name)
    if output == "json":
        say_json(node)
        return
    cpu, memory = _used(node)
    here = [
        f"{service.name}/{instance.slot} ({instance.status})"
        for service in await manager.list_services()
        for instance in service.instances
        # What waits for a node has no process, and is on none yet.
        if instance.node_id == node.node_id and (instance.pid or (instance.error_message and node.node_id))
    ]
    skew = node.clock_skew_s
    print_fields(
        (what, value)
        for what, value in (
            ("name", node.name),
            ("id", node.node_id or "the manager's own machine"),
            ("address", node.address),
            ("state", f"{node.state}{f': {node.reason}' if node.reason else ''}"),
            ("instances", ", ".join(here) or "none"),
            ("sessions", node.sessions),
            ("cpu", cpu),
            ("memory", memory),
            ("labels", _labels(node)),
            ("resources", ", ".join(f"{key}={value:g}" for key, value in sorted(node.resources.items()))),
            ("reserved", ", ".join(f"{key}={value:g}" for key, value in sorted(node.claimed.items()))),
            ("joined", clock(node.joined_at)),
            ("agentmgr", node.agentmgr),
            ("python", node.python),
            ("clock", "" if skew is None else f"{skew:+.1f} s from the manager's"),
            ("troubles", "; ".join(node.troubles)),
        )
        if value != ""
    )


@_nodes("invite", "Make a secret to join with.", example="agentmgr nodes invite --uses 3 --expires 1h")
@click.option("--uses", type=int, default=1, show_default=True, help="How many machines it lets in.")
@click.option("--expires", default="5m", show_default=True, metavar="TIME", help="As in 90s, 5m, 2h, 1d.")
@click.option("--file", type=FILE, metavar="FILE", help="Write it there, for its owner only to read.")
async def _invite(cli: Cli, uses: int, expires: str, file: str | None) -> None:
    """Make a secret, and print it: this once. A machine joins with it by `agentmgr node --join`."""
    manager = await running(cli, _HOW)
    if file is not None:
        _write(file, "")  # first: what cannot be written would be lost
    made = await manager.invite_nodes(uses=uses, expires_in_s=seconds("--expires", expires))
    host = f"[{made.host}]" if ":" in made.host else made.host
    good = f"good for {counted(made.uses, 'machine')}, until {clock(made.expires_at)}"
    if file is not None:
        _write(file, f"{made.secret}\n")
        note(f"the secret is in {file}: {good}")
    else:
        note(f"{good}; it is not shown again:")
        say(made.secret)
    from_file = "" if file is None else f" --secret-file {file}"
    note(f"on the other machine: agentmgr node --join {host}:{made.port}{from_file}")
    if is_loopback(made.host):
        note(
            "the manager listens on loopback only, where no other machine reaches it: "
            "`agentmgr daemon --cluster joined --cluster-host ADDRESS`"
        )


def _write(file: str, text: str) -> None:
    """Raises `InvalidRequest`."""
    try:
        replace(absolute(file), text.encode(), lasting=False)
    except OSError as error:
        raise InvalidRequest(f"{file} cannot be written: {error.strerror or error}") from None


def seconds(option: str, text: str) -> float:
    """Raises `InvalidRequest`."""
    if (found := re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([smhd]?)", text.strip())) is None:
        raise InvalidRequest(f"{option} is a time as in 90s, 5m, 2h or 1d, not {text!r}")
    return float(found[1]) * _UNITS[found[2]]


@_nodes("cordon", "Place nothing new on a node.", example="agentmgr nodes cordon b")
@click.argument("names", metavar="NAME...", nargs=-1, required=True, type=NODE)
async def _cordon(cli: Cli, names: tuple[str, ...]) -> int:
    """Place nothing new on a node. What runs there stays; `agentmgr nodes drain NAME` moves it away."""
    manager = await running(cli, _HOW)

    async def cordon(name: str) -> None:
        await manager.cordon_node(name)
        say(f"cordoned {name}")

    return await each(cli, names, cordon)


@_nodes("uncordon", "Place instances there again.", example="agentmgr nodes uncordon b")
@click.argument("names", metavar="NAME...", nargs=-1, required=True, type=NODE)
async def _uncordon(cli: Cli, names: tuple[str, ...]) -> int:
    """Place instances on a node again."""
    manager = await running(cli, _HOW)

    async def uncordon(name: str) -> None:
        await manager.cordon_node(name, cordoned=False)
        say(f"uncordoned {name}")

    return await each(cli, names, uncordon)


@_nodes("drain", "Move all that a node runs to others.", example="agentmgr nodes drain b --timeout 10m")
@click.argument("names", metavar="NAME...", nargs=-1, required=True, type=NODE)
@click.option(
    "--timeout",
    "patience",
    default="5m",
    show_default=True,
    metavar="TIME",
    help="What has not moved by then stays, as in 90s, 5m, 2h.",
)
async def _drain(cli: Cli, names: tuple[str, ...], patience: str) -> int:
    """Cordon a node and move all that it runs to others, before its machine is taken away.

    Each new instance is ready before the one on this node is drained (--drain-timeout of its service) and
    ended; its clients come back to the new one, and the sessions that are kept on this node move there. A
    job is not moved: its end is waited for.

    What cannot move, as --place-on allows no other node, runs on, and the exit code is 1. The manager goes on
    when this command is interrupted; to drain a node again goes on with what is left there.
    """
    timeout_s = seconds("--timeout", patience)
    manager = await running(cli, _HOW)
    code = 0

    async def cordon(name: str) -> None:
        await manager.cordon_node(name)

    async def drain(name: str) -> None:
        nonlocal code
        code |= say_drained(await manager.drain_node(name, timeout_s=timeout_s))

    if await each(cli, names, cordon):  # all first: nothing is moved from one to the next
        return 1
    async with progress(manager):
        return await each(cli, names, drain) | code


def say_drained(done: DrainedNode) -> int:
    """Returns the exit code."""
    for it in done.left:
        complain(f"{it.service}/{it.slot} stays on {done.node}: {it.reason}")
    for sentence in done.sessions_left:
        complain(f"on {done.node}: {sentence}")
    left = f", {counted(len(done.left), 'instance')} left" if done.left else ""
    say(f"drained {done.node}: {counted(done.moved, 'instance')} moved{left}")
    return int(bool(done.left or done.sessions_left))


@_nodes("forget", "Forget a node that will not come back.", example="agentmgr nodes forget b")
@click.argument("names", metavar="NAME...", nargs=-1, required=True, type=NODE)
async def _forget(cli: Cli, names: tuple[str, ...]) -> int:
    """Forget a node that will not come back: what ran there starts elsewhere, at once.

    Its certificate lets it in no longer. A node that is linked is not forgotten: end its daemon first.
    """
    manager = await running(cli, _HOW)

    async def forget(name: str) -> None:
        await manager.forget_node(name)
        say(f"forgot {name}")

    return await each(cli, names, forget)


for _command in (_list, _show, _invite, _cordon, _uncordon, _drain, _forget):
    command.add_command(_command)
