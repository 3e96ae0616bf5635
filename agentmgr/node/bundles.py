"""The bundles of a node: directories that the manager has sent for agents to run in.

A bundle goes by the SHA-256 of its archive (`agentmgr.cluster.packing` makes it). Its bytes come in parts,
are kept in `DIGEST.part` until all are there and the digest is right, and become the directory `DIGEST` at
once, by a rename. Whoever asks twice, or anew after a broken link, loses nothing: each part says where it
begins, and each answer how many bytes are there.

Files are unpacked without permission to write: what an instance of one service changed there would be the
code of the next.

A bundle that no instance has used for a week is removed.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
import tarfile
import tempfile
import time
from base64 import b64decode
from collections.abc import Iterable
from contextlib import suppress
from functools import partial
from hashlib import file_digest
from io import BufferedRandom
from pathlib import Path, PurePosixPath
from weakref import WeakValueDictionary

import trio
from attrs import evolve, frozen

from ..models import ServiceSpec
from ..process.paths import reason

MAX_BUNDLE_BYTES = 200 * 2**20  #: of what the files contain
MAX_ENTRIES = 50_000
PART_BYTES = 512 * 2**10
"""Of one part. The link carries other messages, and heartbeats, only between parts: on a line of 10 Mbit/s
one takes half a second, which is less than the silence that ends a link."""
UNUSED_S = 7 * 24 * 3600.0
_MAX_ARCHIVE_BYTES = MAX_BUNDLE_BYTES + MAX_ENTRIES * 2048  #: with what an archive says of each file
_DIGEST = re.compile("[0-9a-f]{64}")
_ASIDE = ".aside-"  #: begins the names of what is not whole
_SPARE_BYTES = 16 * 2**20  #: of the disk, which a bundle leaves to logs and journals


class BadBundle(Exception):
    """The bundle cannot be kept here, and why; for the user."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def mebibytes(count: int) -> str:
    return f"{count / 2**20:.1f} MiB"


@frozen
class Shipment:
    """What is sent along with a service, and where in that the service runs; paths are relative to it."""

    digest: str
    agent: str | None = None  #: of an agent file, as in `ServiceConfig.agent_factory_path`; None: not in it
    cwd: str | None = None  #: None: it is elsewhere

    def placed(self, spec: ServiceSpec, root: Path) -> ServiceSpec:
        """The service, as it runs with the bundle at `root`.

        A working directory that was not sent stays where this machine has one of that name: for data that
        all machines share. Else it is the bundle.
        """
        config = spec.config
        agent, cwd = config.agent_factory_path, config.cwd
        if self.agent is not None:
            agent = str(root / self.agent)
        if self.cwd is not None or cwd is None or not os.path.isdir(cwd):
            cwd = str(root / (self.cwd or "."))
        return evolve(spec, config=evolve(config, agent_factory_path=agent, cwd=cwd))


@frozen
class PutBundle:
    """An order: keep a part of a bundle. Answered by `HasBundle` or `BundleRefused`."""

    digest: str
    size_bytes: int  #: of the whole archive
    begin: int  #: where the part begins
    data: str  #: in Base64; an empty one asks what is there


@frozen
class HasBundle:
    bytes_here: int  #: from the first on; all of them: it can be used


@frozen
class BundleRefused:
    reason: str


class NodeBundles:
    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._locks = WeakValueDictionary[str, trio.Lock]()  # they live as long as they are used
        # Work on one bundle must not wait for that on another, nor take the threads of others.
        self._limiter = trio.CapacityLimiter(2)

    def find(self, digest: str, *, others: bool = False) -> Path | None:
        """Its directory; None where it is not here. Counts as a use. `others`: another user must read it."""
        path = self._path(digest)
        try:
            os.utime(path)
            if others:
                path.chmod(0o755)
        except OSError:
            return None
        return path

    async def put(self, digest: str, size_bytes: int, begin: int, data: bytes) -> int:
        """Keeps a part, which begins `begin` bytes into the archive of `size_bytes` bytes.

        Returns how many bytes are here, from the first on; all of them: the bundle can be used. Parts that
        are here already, or that leave a gap, change nothing: an empty one asks how many there are.

        Raises `BadBundle`; what was here of it is gone then.
        """
        path = self._path(digest)
        if not 0 < size_bytes <= _MAX_ARCHIVE_BYTES:
            raise BadBundle(f"an archive of {mebibytes(size_bytes)} is refused: bundles have at most 200 MiB")
        async with self._locks.setdefault(digest, trio.Lock()):
            here = size_bytes
            if self.find(digest) is None:
                # Whoever is cancelled must not leave a thread that writes to the file of the next.
                with trio.CancelScope(shield=True):
                    keep = partial(_keep, path, size_bytes, begin, data)
                    here = await trio.to_thread.run_sync(keep, limiter=self._limiter)
            return here

    async def answer(self, order: PutBundle) -> HasBundle | BundleRefused:
        try:
            data = b64decode(order.data, validate=True)
            return HasBundle(await self.put(order.digest, order.size_bytes, order.begin, data))
        except BadBundle as problem:
            return BundleRefused(problem.reason)
        except ValueError:
            return BundleRefused("a part is not in Base64")

    async def tidy(self, used: Iterable[str]) -> None:
        """Removes the bundles that have not been in use for a week, and what was not received whole.

        `used`: the digests of those that instances run in.
        """
        for digest in used:
            self.find(digest)
        doomed = self._set_aside()
        await trio.to_thread.run_sync(_remove, doomed, limiter=self._limiter)

    def _set_aside(self) -> list[str]:
        """Renames what is to be removed: at once, so that no launch finds half of it, and without a
        checkpoint, so that none finds it in between.
        """
        oldest, doomed = time.time() - UNUSED_S, []
        with suppress(OSError):
            for entry in os.scandir(self._directory):
                with suppress(OSError):
                    if entry.stat(follow_symlinks=False).st_mtime > oldest:
                        continue
                    aside = os.path.join(self._directory, f"{_ASIDE}{secrets.token_hex(8)}")
                    os.rename(entry.path, aside)
                    doomed.append(aside)
        return doomed

    def _path(self, digest: str) -> Path:
        if not _DIGEST.fullmatch(digest):  # it becomes a path
            raise BadBundle(f"{digest!r} is no digest of a bundle")
        return self._directory / digest


def _keep(path: Path, size_bytes: int, begin: int, data: bytes) -> int:
    part = path.with_suffix(".part")
    try:
        path.parent.mkdir(mode=0o711, exist_ok=True)
        fd = os.open(part, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with open(fd, "r+b") as file:
            here = os.fstat(fd).st_size
            if here == 0:
                _ensure_space(path.parent, size_bytes)
            if here > size_bytes:
                raise BadBundle("more was received than was announced")
            if begin == here and data:
                file.write(data[: size_bytes - here])
                file.flush()
                here = os.fstat(fd).st_size
            if here < size_bytes:
                return here
            file.seek(0)
            _unpack(file, path)
        part.unlink()
    except (BadBundle, OSError, tarfile.TarError) as problem:
        with suppress(OSError):
            part.unlink()
        raise _bad(problem, path.parent) from None
    return size_bytes


def _bad(problem: BadBundle | OSError | tarfile.TarError, directory: Path) -> BadBundle:
    if isinstance(problem, BadBundle):
        return problem
    if isinstance(problem, tarfile.TarError):
        return BadBundle(f"the archive cannot be unpacked: {problem}")
    if problem.errno in (errno.ENOSPC, errno.EDQUOT):
        return BadBundle(f"no space is left in {directory}")
    return BadBundle(f"the bundle cannot be kept: {reason(problem)}")


def _ensure_space(directory: Path, size_bytes: int) -> None:
    """Room for the archive and what is in it."""
    needed, free = 2 * size_bytes + _SPARE_BYTES, shutil.disk_usage(directory).free
    if free < needed:
        raise BadBundle(
            f"{mebibytes(free)} are free in {directory}, and {mebibytes(needed)} are needed to unpack a "
            "bundle"
        )


def _unpack(file: BufferedRandom, path: Path) -> None:
    if file_digest(file, "sha256").hexdigest() != path.name:
        raise BadBundle("what was received has another digest than what was sent")
    file.seek(0)
    new = Path(tempfile.mkdtemp(dir=path.parent, prefix=_ASIDE))
    try:
        with tarfile.open(fileobj=file, mode="r:") as archive:
            _extract(archive, new)
        os.utime(new)
        os.rename(new, path)
    finally:
        shutil.rmtree(new, ignore_errors=True)  # it has its name by now, unless something went wrong


def _extract(archive: tarfile.TarFile, to: Path) -> None:
    """Only what `packing` makes, whatever the archive contains; beside Python's own filter for data."""
    if not hasattr(tarfile, "data_filter"):
        raise BadBundle("this Python cannot unpack archives safely: use 3.11.4 or later")
    directories, names, total = {PurePosixPath(".")}, {PurePosixPath(".")}, 0
    for number, member in enumerate(archive):
        name = PurePosixPath(member.name)
        total += member.size
        if number >= MAX_ENTRIES or total > MAX_BUNDLE_BYTES:
            raise BadBundle("it holds more than a bundle may")
        if name.is_absolute() or ".." in name.parts or name in names:
            raise BadBundle(f"{member.name!r} is no name in a bundle")
        if name.parent not in directories:  # so no member is reached through a link
            raise BadBundle(f"{member.name!r} is in no directory of the bundle")
        names.add(name)
        if member.isdir():
            directories.add(name)
        elif not (member.issym() or member.type == tarfile.REGTYPE):
            raise BadBundle(f"{member.name!r} is neither a file, nor a directory, nor a symbolic link")
        archive.extract(member, to, filter="data", set_attrs=False)
        if member.type == tarfile.REGTYPE:
            target = to / name
            os.chmod(target, 0o555 if member.mode & 0o100 else 0o444)
            os.utime(target, (member.mtime, member.mtime))


def _remove(paths: Iterable[str]) -> None:
    for path in paths:
        if os.path.isdir(path):
            shutil.rmtree(path, ignore_errors=True)
        else:
            with suppress(OSError):
                os.unlink(path)
