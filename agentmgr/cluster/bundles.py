"""What is sent to nodes along with services: the directories that their agents are in.

Which directory: the one that `ship` names, else that of the agent file, with links followed as its host
follows them. A module and a command have none, unless `ship` names one. Home directories and those that all
programs share are never sent unless `ship` names them: what is in them is more than the agent's.

An archive is made anew only when something in the directory has changed, and kept while it may be needed.
"""

from __future__ import annotations

import logging
import os
import tempfile
import time
from base64 import b64encode
from collections.abc import Iterable
from contextlib import suppress
from functools import cache
from pathlib import Path
from pwd import getpwall
from typing import Protocol
from weakref import WeakValueDictionary

import trio
from attrs import frozen

from ..core.restart import Cause
from ..models import ServiceSpec
from ..node.bundles import (
    PART_BYTES,
    UNUSED_S,
    BundleRefused,
    HasBundle,
    PutBundle,
    Shipment,
    mebibytes,
)
from ..process.paths import factory_parts, file_of
from ..supervisor.launcher import CannotLaunch
from .packing import IGNORE_FILE, CannotPack, Contents, Packed, look, look_and_pack

logger = logging.getLogger(__name__)

OFF = "off"
_SETTLED_S = 2.0
"""A file that is saved twice within one tick of the file system's clock looks unchanged: what was changed so
shortly before it was packed is packed anew. It is a second on the coarsest ones."""
_PERSON_UID = 1000  #: users from here on are people, by all distributions' rules


class Node(Protocol):
    """What is needed of a `NodeHandle`."""

    @property
    def node_id(self) -> str: ...

    @property
    def name(self) -> str: ...

    async def ask(self, order: PutBundle) -> object: ...


@frozen
class _Known:
    contents: Contents
    packed: Packed
    settled: bool  #: whether the same look means the same archive


class Bundles:
    def __init__(self, directory: Path, own: Iterable[Path] = ()) -> None:
        """`directory`: for the archives. `own`: what the manager itself writes, which is no agent's."""
        self._directory, self._own = directory, (directory, *own)
        self._known: dict[Path, _Known] = {}
        self._packing = WeakValueDictionary[Path, trio.Lock]()
        self._sending = WeakValueDictionary[tuple[str, str], trio.Lock]()
        self._limiter = trio.CapacityLimiter(2)  # not the one of all threads: disks may be slow

    async def shipment(self, spec: ServiceSpec) -> Shipment | None:
        """What has to be on a node before the service is launched there; None: nothing.

        Raises `CannotLaunch`.
        """
        try:
            directory = shipped_directory(spec)
            if directory is None:
                return None
            async with self._packing.setdefault(directory, trio.Lock()):
                known = await trio.to_thread.run_sync(
                    self._pack, directory, self._known.get(directory), limiter=self._limiter
                )
                self._remember(directory, known)
            return _shipment(spec, known)
        except CannotPack as problem:
            cause = Cause.CANNOT_EXECUTE if problem.lasting else Cause.SHORTAGE
            raise CannotLaunch(cause, problem.reason) from None

    async def send(self, node: Node, shipment: Shipment) -> None:
        """Returns once the node has the bundle. Two that send the same to one node send it once.

        Raises `CannotLaunch`, and what `node.ask` raises.
        """
        async with self._sending.setdefault((node.node_id, shipment.digest), trio.Lock()):
            started = trio.current_time()
            try:
                file = await trio.open_file(self._archive(shipment.digest), "rb")
            except OSError as error:
                # A later start has found the directory changed, and packed that.
                raise CannotLaunch(Cause.SHORTAGE, f"what was to be sent has changed ({error})") from None
            async with file:
                size = os.fstat(file.fileno()).st_size
                here = first = await _put(node, PutBundle(shipment.digest, size, 0, ""))
                while here < size:
                    await file.seek(here)
                    data = b64encode(await file.read(PART_BYTES)).decode()
                    more = await _put(node, PutBundle(shipment.digest, size, here, data))
                    if more <= here:
                        raise CannotLaunch(
                            Cause.SHORTAGE, f"node {node.name} does not keep the bundle's parts"
                        )
                    here = more
            if here > first:
                took = trio.current_time() - started
                logger.info(
                    "sent %s to node %s in %.1f s (%s)", mebibytes(here - first), node.name, took,
                    shipment.digest[:12],
                )  # fmt: skip

    def _archive(self, digest: str) -> Path:
        return self._directory / f"{digest}.tar"

    def _pack(self, directory: Path, known: _Known | None) -> _Known:
        """In a thread."""
        if known is not None and known.settled:
            contents = look(directory, self._own)
            with suppress(OSError):
                if contents.entries == known.contents.entries:
                    os.utime(known.packed.archive)
                    return known
        with suppress(FileExistsError):
            self._directory.mkdir(mode=0o700)
        self._tidy()
        before = time.time()
        contents, packed = look_and_pack(directory, self._directory, self._own)
        if contents.left_out:
            logger.warning(
                "not sent to nodes, as sockets, pipes and devices mean nothing on another machine: %s in %s",
                ", ".join(contents.left_out[:5]), directory,
            )  # fmt: skip
        return _Known(contents, packed, contents.newest_at < before - _SETTLED_S)

    def _remember(self, directory: Path, known: _Known) -> None:
        before = self._known.get(directory)
        self._known[directory] = known
        in_use = {each.packed.digest for each in self._known.values()}
        if before is not None and before.packed.digest not in in_use:
            with suppress(OSError):
                before.packed.archive.unlink()

    def _tidy(self) -> None:
        """Removes the archives that no start has needed for a week: also those of earlier managers."""
        oldest = time.time() - UNUSED_S
        for entry in os.scandir(self._directory):
            with suppress(OSError):
                if entry.stat().st_mtime < oldest:
                    os.unlink(entry.path)


async def _put(node: Node, part: PutBundle) -> int:
    match await node.ask(part):
        case HasBundle(here):
            return here
        case BundleRefused(why):
            # Also where it is no shortage: another try sends it anew, and costs no restart.
            raise CannotLaunch(Cause.SHORTAGE, f"node {node.name} cannot keep what is sent along: {why}")
        case other:
            raise AssertionError(f"an answer to something else: {other}")


def shipped_directory(spec: ServiceSpec) -> Path | None:
    """With all links followed. Raises `CannotPack`."""
    config = spec.config
    file = file_of(config.agent_factory_path or "")
    if config.ship == OFF:
        return None
    if config.ship is not None:
        return Path(os.path.realpath(os.path.join(config.cwd or ".", config.ship)))
    if file is None:
        return None
    directory = Path(os.path.realpath(file)).parent
    if (why := _too_much(directory)) is not None:
        raise CannotPack(
            f"{file} is in {directory}, {why}, which is not sent to other machines whole: move the agent "
            f"into a directory of its own, or register with --ship {directory}, or with --ship off if the "
            "nodes have the file"
        )
    return directory


@cache
def _too_much(directory: Path) -> str | None:
    """Why it holds more than an agent; None where it need not."""
    homes = {Path(os.path.realpath(user.pw_dir)) for user in getpwall() if user.pw_uid in (0, os.geteuid())}
    homes |= {Path(user.pw_dir) for user in getpwall() if user.pw_uid >= _PERSON_UID}
    homes.add(Path(os.path.realpath(Path.home())))
    homes.discard(Path("/"))
    if directory in homes:
        return "a home directory"
    if any(directory in home.parents for home in homes) or directory == Path("/"):
        return "which holds much else"
    if directory in {Path(os.path.realpath(path)) for path in (tempfile.gettempdir(), "/tmp", "/var/tmp")}:
        return "which all programs share"
    return None


def _shipment(spec: ServiceSpec, known: _Known) -> Shipment:
    """Where in the archive the service runs. Raises `CannotPack`."""
    directory, config = known.contents.directory, spec.config
    agent, file = None, file_of(config.agent_factory_path or "")
    if file is not None:
        assert config.agent_factory_path is not None
        inside = _inside(directory, file)
        if inside is None:
            raise CannotPack(
                f"{file} is not in {directory}, which --ship names: name a directory that has both"
            )
        if all(entry.path != inside for entry in known.contents.entries):
            raise CannotPack(
                f"{file} would not be sent to the node: it does not exist, or {directory / IGNORE_FILE} "
                "names it"
            )
        agent = inside + "".join(factory_parts(config.agent_factory_path)[1:])
    cwd = None
    if config.cwd is not None:
        # A project's, of which only a part is sent, becomes that part.
        above = directory.is_relative_to(os.path.realpath(config.cwd))
        cwd = "." if above else _inside(directory, config.cwd)
    return Shipment(known.packed.digest, agent, cwd)


def _inside(directory: Path, path: str) -> str | None:
    real = Path(os.path.realpath(path))
    return str(real.relative_to(directory)) if real.is_relative_to(directory) else None
