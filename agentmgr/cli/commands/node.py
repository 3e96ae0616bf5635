"""`agentmgr node`"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import asyncclick as click
import trio
from attrs import evolve

from ...errors import AgentManagerError, CannotUseCluster, InvalidRequest
from ...logging_setup import configure_logging
from ...process.descriptors import raise_limit
from ...process.paths import absolute
from ..group import Cli, subcommand
from ..manager_options import certificate_options, read_certificate, settings_options
from ..names import DIRECTORY, FILE
from ..out import note, say
from ..signals import Notifier, stop_signals

if TYPE_CHECKING:
    from ...dialing import ManagerAddress
    from ...node.daemon import NodeConfig
    from ...node.joining import Secret

_SECRET = "AGENTMGR_JOIN_SECRET"
_DIRECTORY = "agent_node.d"


@subcommand(
    "node",
    example="agentmgr node --join manager.example:9443 --secret-file ~/.agentmgr-join --label zone=b\n"
    "agentmgr node                # again, after a restart of this machine",
    database=False,  # its directory has all that it keeps
)
@click.option("--join", metavar="HOST:PORT", help="The manager.  [default: the one that was joined]")
@click.option(
    "--secret-file",
    type=FILE,
    metavar="FILE",
    help=f"Has a secret of `agentmgr nodes invite`; or {_SECRET}.  [default: a terminal is asked]",
)
@click.option("--name", help="What the node is called.  [default: the host's name]")
@click.option(
    "--address",
    help="Where other nodes reach this one.  [default: where its connection to the manager comes from]",
)
@click.option(
    "--label", "labels", multiple=True, metavar="KEY=VALUE", help="For --place-on. May be repeated."
)
@click.option(
    "--resource",
    "resources",
    multiple=True,
    metavar="KEY=NUMBER",
    help="What the node has, as `agentmgr nodes` shows it. May be repeated.",
)
@click.option(
    "--directory",
    type=DIRECTORY,
    default=_DIRECTORY,
    show_default=True,
    metavar="DIR",
    help="What the node keeps; one for each node.",
)
@click.option(
    "--drain",
    "drains",
    is_flag=True,
    help="Have the manager move all that runs here to other nodes, and return: for what ends the machine, as "
    "a pod's preStop. As `agentmgr nodes drain` does; the daemon runs on.",
)
@click.option(
    "--timeout",
    "patience",
    default="5m",
    show_default=True,
    metavar="TIME",
    help="With --drain: what has not moved by then stays.",
)
@click.option(
    "--unneeded-after",
    type=float,
    hidden=True,  # of what keeps daemons on machines, and starts them again
    help="Seconds without a manager and without instances after which it ends.",
)
@certificate_options
@settings_options(
    without=(
        "proxy_workers",
        "allowed_origins",
        "trusted_proxies",
        "proxy_protocol",
        "fronts",
    )
)
async def command(
    cli: Cli,
    join: str | None,
    secret_file: str | None,
    name: str | None,
    address: str | None,
    labels: tuple[str, ...],
    resources: tuple[str, ...],
    directory: str,
    drains: bool,
    patience: str,
    unneeded_after: float | None,
    certfile: str | None,
    keyfile: str | None,
    flags: dict[str, Any],
) -> int:
    """Run this machine as a node of a cluster, in the foreground, until Ctrl-C.

    The manager (`agentmgr daemon --cluster joined`) then starts instances here as well. They live on when
    this command ends, is killed or loses its connection: the next one in the same directory takes them over.
    When the manager has moved to another machine, `--join` beside the daemon that runs tells it where to.

    The first time it needs a secret, which `agentmgr nodes invite` prints on the manager's machine.
    """
    from ...credentials import import_cryptography
    from ...node import daemon
    from ...node.following import manager_file

    import_cryptography()
    secret_text = os.environ.pop(_SECRET, None)  # what runs here does not get it
    settings = cli.settings(**flags)
    configure_logging(settings.log_level, settings.log_format)
    raise_limit()
    place = absolute(directory)
    if drains:
        return await _drain(
            _kept_by_ray() if directory == _DIRECTORY and not place.exists() else place, patience
        )
    described = name is not None or address is not None or labels or resources or certfile is not None
    if join is None and daemon.NodeConfig.read(place) is None and daemon.runs_in(place) is None:
        raise _no_node()  # before anything is made there
    if join is not None and await _moved(place, join, bool(described), secret_file is not None):
        return 0
    with daemon.held(place):
        if (config := daemon.NodeConfig.read(place)) is not None:
            config.refuse_copy(place)
        known, config = config, _described(_joined_by(config, join), name, address, labels, resources)
        config = _with_certificate(config, certfile, keyfile)
        at = _manager_now(place, known, config)
        if (why := daemon.needs_secret(place)) is not None:
            secret = await _secret(secret_text, secret_file, why)
            note(f"joining the cluster of {at}")
            config = await daemon.join_cluster(place, config, secret, at)
        else:
            config.write(place)
            manager_file(place).write(at)
            if secret_file is not None or secret_text is not None:
                config = await _joined_anew(place, config, at, secret_text, secret_file)
        notifier = Notifier()
        async with stop_signals() as signals:
            node = daemon.NodeDaemon(
                place, config, fork_server=settings.fork_server, preload_max=settings.preload_max
            )
            async with daemon.running(node), trio.open_nursery() as nursery:
                say(f"node {config.name} of the manager at {at}, pid {os.getpid()}", flush=True)
                notifier.send("READY=1")
                nursery.start_soon(notifier.keep_alive)

                async def end_unneeded() -> None:
                    if unneeded_after is not None:
                        await node.unneeded(unneeded_after)
                        note(f"no manager and no instance for {unneeded_after:g} s: this daemon ends")
                        signals.first.set()

                nursery.start_soon(end_unneeded)
                await signals.first.wait()
                notifier.send("STOPPING=1")
                nursery.cancel_scope.cancel()
            if count := sum(instance.run is not None for instance in node.node.instances.values()):
                lives = "1 instance lives" if count == 1 else f"{count} instances live"
                note(f"{lives} on here; `agentmgr node --directory {directory}` takes over again")
    return 0


def _kept_by_ray() -> Path:
    """The one node that Ray had started here. Raises `InvalidRequest` where there is none, or several."""
    from ...node.kept import kept

    found = kept()
    if len(found) == 1:
        return found[0]
    which = "name one with --directory: " + ", ".join(map(str, found)) if found else "name its --directory"
    what = "several nodes run" if found else f"there is no {_DIRECTORY} here, and no node runs"
    raise InvalidRequest(f"{what} on this machine by Ray: {which}")


async def _drain(place: Path, patience: str) -> int:
    from ...node import daemon, draining
    from ...node.following import manager_file
    from .nodes import say_drained, seconds

    if daemon.NodeConfig.read(place) is None:
        raise InvalidRequest(f"{place} is the directory of no node: name it with --directory")
    manager = manager_file(place).read()
    return say_drained(await draining.drain(place, manager, seconds("--timeout", patience)))


async def _moved(place: Path, join: str, described: bool, joins: bool) -> bool:
    """Whether a daemon runs there, which links with the manager at this address from now on, or does so
    already. One that `described` it or `joins` is to be its daemon. Raises `InvalidRequest`,
    `CannotReachManager`, `CannotUseCluster`.
    """
    from ...dialing import ManagerAddress
    from ...node import daemon
    from ...node.following import manager_file

    manager = ManagerAddress.parse(join)
    pid, config = daemon.runs_in(place), daemon.NodeConfig.read(place)
    if pid is None or config is None:
        return False
    with suppress(CannotUseCluster):  # damaged: it is to be written anew
        if manager == manager_file(place).read():
            if not described and not joins:
                say(f"node {config.name} links with the manager at {manager} already: its daemon, pid {pid}")
            return not described and not joins
    if described:
        raise InvalidRequest(
            f"the daemon of node {config.name} runs in {place}, pid {pid}: beside it --join can be given "
            "alone, to tell it where its manager is now; end it first for anything else"
        )
    await daemon.move(place, config, manager)
    say(f"node {config.name} links with the manager at {manager} now: its daemon, pid {pid}, goes on")
    return True


def _manager_now(place: Path, known: NodeConfig | None, config: NodeConfig) -> ManagerAddress:
    """Where it is: a unit gives the same --join at each start, and its manager may have moved since."""
    from ...node.following import manager_file

    if known is None or known.manager != config.manager:
        return config.manager
    try:
        now = manager_file(place).read()
    except CannotUseCluster:  # there is none yet, or it is damaged
        return config.manager
    if now != config.manager:
        note(
            f"the manager was at {config.manager} when this node joined, and has moved to {now}, where it is "
            "looked for (--join in another terminal, once this runs, tells it otherwise)"
        )
    return now


async def _joined_anew(
    place: Path, config: NodeConfig, at: ManagerAddress, text: str | None, file: str | None
) -> NodeConfig:
    """A unit gives an old secret at each start: it is used where the manager does not know the node."""
    from ...node import daemon

    if (why := await daemon.unwelcome(place, config)) is None:
        return config
    note(f"{why}: joining the cluster of {at} again")
    try:
        return await daemon.join_cluster(place, config, await _secret(text, file, why), at)
    except AgentManagerError as error:
        note(f"cannot join again: {error.message}")  # what runs here still needs a daemon
        return config


def _no_node() -> InvalidRequest:
    return InvalidRequest(
        "no node was made here yet: `agentmgr node --join HOST:PORT`, with a secret of "
        "`agentmgr nodes invite` on the manager's machine; or name its --directory"
    )


def _joined_by(config: NodeConfig | None, join: str | None) -> NodeConfig:
    """Raises `InvalidRequest`."""
    from ...dialing import ManagerAddress
    from ...node import daemon

    if join is None:
        if config is not None:
            return config
        raise _no_node()
    manager = ManagerAddress.parse(join)
    return daemon.new_config(manager) if config is None else evolve(config, manager=manager)


def _described(
    config: NodeConfig,
    name: str | None,
    address: str | None,
    labels: tuple[str, ...],
    resources: tuple[str, ...],
) -> NodeConfig:
    """With what was given; the rest is as it was. Raises `InvalidRequest`."""
    from ...models.nodes import NAME_LABEL, label
    from ...models.nodes import resources as read_resources

    given: dict[str, Any] = {}
    if name is not None and name != config.name:
        if config.name:
            raise InvalidRequest(
                f"this node is called {config.name}, and services may be placed by that: `agentmgr nodes "
                f"forget {config.name}`, and join anew from another directory"
            )
        given["name"] = name
    if address is not None:
        given["address"] = address
    if labels:
        given["labels"] = dict(map(label, labels))
        if NAME_LABEL in given["labels"]:
            raise InvalidRequest(f"the label {NAME_LABEL} is the node's name: --name gives it")
    if resources:
        given["resources"] = dict(read_resources(resources))
    return evolve(config, **given)


def _with_certificate(config: NodeConfig, certfile: str | None, keyfile: str | None) -> NodeConfig:
    """With that for the clients of its gateway. Raises `InvalidRequest`."""
    if (certificate := read_certificate(certfile, keyfile)) is None:
        return config
    certificate_file, key_file = certificate.files
    return evolve(config, certfile=certificate_file, keyfile=key_file)


async def _secret(text: str | None, file: str | None, why: str) -> Secret:
    """Raises `InvalidRequest`."""
    from ...node.joining import Secret, read_secret

    if file is not None:
        return read_secret(Path(file))
    if text is not None:
        return Secret.parse(text)
    if not sys.stdin.isatty():
        raise InvalidRequest(
            f"{why}: give a secret of `agentmgr nodes invite`, with --secret-file FILE or {_SECRET}"
        )
    import getpass

    note(why)
    # Not in a thread: nothing else runs yet, and Ctrl-C has to end it with the terminal as it was.
    return Secret.parse(getpass.getpass("secret of `agentmgr nodes invite`: "))
