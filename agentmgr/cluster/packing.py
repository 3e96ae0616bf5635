"""A directory as an archive, the same bytes whenever it has the same contents.

What is in it: the directories, regular files and symbolic links below, sorted by name, less what is ignored.
Owners, times and all permissions but "may be executed" are left out, so that a file which is saved again
unchanged, or checked out anew, makes the same archive.

What is ignored: what the file `.agentmgrignore` in the directory names, in the syntax of a .gitignore; where
it says nothing of a name, directories that hold what tools can make again (version control, caches, virtual
environments, `node_modules`; `!node_modules/` in the file has it packed); and what belongs to managers and
node daemons, as their databases and directories hold keys. Sockets, pipes and devices are left out, as
another machine has no use for them.

A symbolic link that leads out of the directory cannot be packed: it would lead elsewhere on another machine.
"""

from __future__ import annotations

import errno
import os
import stat
import tarfile
import tempfile
from collections.abc import Iterable, Sequence
from contextlib import suppress
from hashlib import file_digest
from operator import attrgetter
from pathlib import Path
from typing import IO, TYPE_CHECKING

from attrs import frozen

from ..node.bundles import MAX_BUNDLE_BYTES, MAX_ENTRIES, mebibytes
from ..process.paths import RuntimePaths, reason

if TYPE_CHECKING:
    import pathspec

IGNORE_FILE = ".agentmgrignore"

_IGNORED_DIRECTORIES = frozenset(
    {
        *(".git", ".hg", ".svn", ".venv", ".tox", ".nox", "node_modules"),
        *("__pycache__", ".mypy_cache", ".pytest_cache", ".ruff_cache", ".hypothesis"),
    }
)
_FOREIGN = (("pyvenv.cfg",), ("node.json", "credentials"))
"""What a virtual environment has in it, whatever its name, and the directory of a node daemon."""
_TIME = 315_532_800  #: of all files: 1980, the first year that a zip file can have
_TRIES = 3  #: of a directory in which something changes while it is read


class CannotPack(Exception):
    """The directory cannot be packed, why, and what to do; for the user."""

    def __init__(self, reason: str, *, lasting: bool = True) -> None:
        super().__init__(reason)
        self.reason = reason
        self.lasting = lasting  #: whether it stays so until the user does something


@frozen
class Entry:
    """What a look at the directory has found."""

    path: str  #: relative to the directory
    mode: int
    size: int
    changed: tuple[int, ...] = ()  #: of a file: what differs once it has been written to
    target: str | None = None  #: of a link, relative to where the link is

    @property
    def is_executable(self) -> bool:
        return bool(self.mode & stat.S_IXUSR)


@frozen
class Contents:
    """A directory as it was at one moment."""

    directory: Path
    entries: tuple[Entry, ...]
    left_out: tuple[str, ...]  #: sockets, pipes and devices
    newest_at: float  #: when something in it was last changed, in seconds since 1970

    @property
    def size_bytes(self) -> int:
        return sum(entry.size for entry in self.entries)


@frozen
class Packed:
    digest: str  #: SHA-256, in hexadecimal
    size_bytes: int
    archive: Path


def look(directory: Path, own: Iterable[Path] = ()) -> Contents:
    """What would be packed, without reading it. `own`: files and directories of the manager.

    Raises `CannotPack`.
    """
    scan = _Scan(directory, frozenset(map(os.path.realpath, own)))
    entries = sorted(scan.entries(), key=attrgetter("path"))
    contents = Contents(directory, tuple(entries), tuple(sorted(scan.left_out)), scan.newest_at)
    if contents.size_bytes > MAX_BUNDLE_BYTES:
        raise CannotPack(
            f"{directory} holds {mebibytes(contents.size_bytes)}, more than the "
            f"{mebibytes(MAX_BUNDLE_BYTES)} that are sent to a node; the most is in {_largest(entries)}: "
            f"name what the agent does not need in {directory / IGNORE_FILE}, or bring it to the nodes "
            "yourself, and register with --ship off"
        )
    return contents


def pack(contents: Contents, into: Path) -> Packed:
    """Writes the archive `into/DIGEST.tar`. Raises `CannotPack`: `lasting` is False where a file changed."""
    try:
        with tempfile.NamedTemporaryFile(dir=into, prefix=".packing-", delete=False) as file:
            try:
                _write(contents, file)
                size = file.tell()
                file.seek(0)
                digest = file_digest(file, "sha256").hexdigest()
                archive = into / f"{digest}.tar"
                os.replace(file.name, archive)
            finally:
                with suppress(OSError):  # it has its name by now, unless something went wrong
                    os.unlink(file.name)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        what = f"no space is left in {into}" if full else reason(error)
        raise CannotPack(f"{contents.directory} cannot be packed: {what}", lasting=False) from None
    return Packed(digest, size, archive)


def look_and_pack(directory: Path, into: Path, own: Iterable[Path] = ()) -> tuple[Contents, Packed]:
    """Both; again where something changed in between. Raises `CannotPack`."""
    for last in [False] * (_TRIES - 1) + [True]:
        contents = look(directory, own)
        try:
            return contents, pack(contents, into)
        except _Changed as change:
            if last:
                raise CannotPack(
                    f"{directory} cannot be packed: {change.path} was written to meanwhile, {_TRIES} times: "
                    f"name it in {directory / IGNORE_FILE} if the agent does not need it on another machine",
                    lasting=False,
                ) from None
    raise AssertionError


class _Changed(Exception):
    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.path = path


def _write(contents: Contents, to: IO[bytes]) -> None:
    with tarfile.open(mode="w", fileobj=to, format=tarfile.PAX_FORMAT) as archive:
        for entry in contents.entries:
            member = tarfile.TarInfo(entry.path)
            member.mtime = _TIME
            member.mode = 0o755 if entry.is_executable else 0o644
            if entry.target is not None:
                member.type, member.linkname, member.mode = tarfile.SYMTYPE, entry.target, 0o777
                archive.addfile(member)
            elif stat.S_ISDIR(entry.mode):
                member.type, member.mode = tarfile.DIRTYPE, 0o755
                archive.addfile(member)
            else:
                member.size = entry.size
                _add_file(archive, member, contents.directory / entry.path, entry)


def _add_file(archive: tarfile.TarFile, member: tarfile.TarInfo, path: Path, entry: Entry) -> None:
    try:
        # It may be another one by now: neither follow a link, nor wait for whoever writes to a pipe.
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except PermissionError as error:
        raise CannotPack(
            f"{path} cannot be read ({error.strerror}): name it in {IGNORE_FILE} if the agent does not need "
            "it on another machine"
        ) from None
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENXIO):
            raise _Changed(entry.path) from None
        raise
    with open(fd, "rb", buffering=0) as file:
        if _changed(os.fstat(fd)) != entry.changed:
            raise _Changed(entry.path)
        try:
            archive.addfile(member, file)
        except OSError as error:
            if error.errno is None:  # tarfile's own: the file has become shorter
                raise _Changed(entry.path) from None
            raise
        if _changed(os.fstat(fd)) != entry.changed:
            raise _Changed(entry.path)


def _changed(found: os.stat_result) -> tuple[int, ...]:
    return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


class _Scan:
    def __init__(self, directory: Path, own: frozenset[str]) -> None:
        self._directory, self._own = directory, set(own)
        self._real = os.path.realpath(directory)
        self._ignored = _ignore_file(directory)
        self.left_out: list[str] = []
        self.newest_at = 0.0

    def entries(self) -> list[Entry]:
        found: list[Entry] = []
        pending = [""]
        while pending:
            inside = pending.pop()
            for each in self._children(inside):
                path = os.path.join(inside, each.name)
                try:
                    entry = self._entry(path, each.stat(follow_symlinks=False))
                except FileNotFoundError:  # removed since: it is not part of it
                    continue
                if entry is None:
                    continue
                found.append(entry)
                if len(found) > MAX_ENTRIES:
                    raise CannotPack(
                        f"{self._directory} holds more than {MAX_ENTRIES:,} files: name what the agent does "
                        f"not need in {self._directory / IGNORE_FILE}, or register with --ship off"
                    )
                if stat.S_ISDIR(entry.mode):
                    pending.append(path)
        return found

    def _children(self, inside: str) -> list[os.DirEntry[str]]:
        directory = self._directory / inside
        try:
            with os.scandir(directory) as children:
                found = list(children)
        except FileNotFoundError:
            if not inside:
                raise CannotPack(f"{directory} does not exist") from None
            return []
        except NotADirectoryError:
            raise CannotPack(f"{directory} is no directory: name one with --ship") from None
        except OSError as error:
            raise CannotPack(
                f"{directory} cannot be read ({error.strerror}): name it in {self._directory / IGNORE_FILE} "
                "if the agent does not need it"
            ) from None
        for each in found:
            if not each.name.endswith(".d"):
                continue
            paths = RuntimePaths.of(directory / each.name.removesuffix(".d"))
            marks = (
                paths.lock,
                paths.cluster,
                paths.sessions,
            )  # the last two: a backup has them, with the CA's key
            if paths.database.exists() and any(map(os.path.lexists, marks)):
                self._own |= {str(paths.directory), *map(str, paths.of_sqlite)}
        return found

    def _entry(self, path: str, found: os.stat_result) -> Entry | None:
        """None: it is ignored."""
        is_directory = stat.S_ISDIR(found.st_mode)
        if self._is_ignored(path, is_directory):
            return None
        self.newest_at = max(self.newest_at, found.st_mtime, found.st_ctime)
        if is_directory:
            return Entry(path, found.st_mode, 0)
        if stat.S_ISLNK(found.st_mode):
            return Entry(path, found.st_mode, 0, target=self._target(path))
        if not stat.S_ISREG(found.st_mode):
            self.left_out.append(path)
            return None
        return Entry(path, found.st_mode, found.st_size, _changed(found))

    def _is_ignored(self, path: str, is_directory: bool) -> bool:
        if os.path.join(self._real, path) in self._own:
            return True
        if self._ignored is not None:
            said = self._ignored.check_file(f"{path}/" if is_directory else path).include
            if said is not None:
                return said
        if not is_directory:
            return False
        if os.path.basename(path) in _IGNORED_DIRECTORIES:
            return True
        return any(
            all(os.path.lexists(self._directory / path / mark) for mark in marks) for marks in _FOREIGN
        )

    def _target(self, path: str) -> str:
        """Where the link leads, relative to itself. Raises `CannotPack`."""
        link = self._directory / path
        said = os.readlink(link)
        where = os.path.dirname(os.path.join(self._real, path))
        if os.path.isabs(said):
            first = os.path.join(os.path.realpath(os.path.dirname(said)), os.path.basename(said))
        else:
            first = os.path.normpath(os.path.join(where, said))
        # The first step must stay inside, not only the last: a way out and in again is none elsewhere.
        for leads_to in (first, os.path.realpath(link)):
            if leads_to != self._real and not leads_to.startswith(self._real.rstrip("/") + "/"):
                raise CannotPack(
                    f"the link {link} leads out of the directory, to {said}, which a node does not have: put "
                    f"a copy in its place, name a directory that has both with --ship DIR, or the link in "
                    f"{self._directory / IGNORE_FILE}"
                )
        # As `../project/lib` does: on a node the directory has another name.
        if os.path.isabs(said) or _climbs(said, path.count("/")):
            return os.path.relpath(first, where)
        return said


def _climbs(target: str, depth: int) -> bool:
    """Whether a link that is `depth` directories below the first one passes above that."""
    for part in target.split("/"):
        depth += {"..": -1, ".": 0, "": 0}.get(part, 1)
        if depth < 0:
            return True
    return False


def _ignore_file(directory: Path) -> pathspec.GitIgnoreSpec | None:
    """Raises `CannotPack`."""
    path = directory / IGNORE_FILE
    try:
        if not path.is_file():
            return None
        text = path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not in UTF-8"
        raise CannotPack(f"{path} cannot be read: {why}") from None
    try:
        from pathspec import GitIgnoreSpec  # 20 ms that only such a file needs
    except ImportError:
        raise CannotPack(f"{path} needs a package: pip install 'agentmgr-trio[cluster]'") from None
    for number, line in enumerate(lines := text.splitlines(), 1):
        try:
            GitIgnoreSpec.from_lines([line])
        except ValueError:
            raise CannotPack(
                f"{path}, line {number}: {line!r} is no pattern, as a .gitignore has them"
            ) from None
    return GitIgnoreSpec.from_lines(lines)


def _largest(entries: Sequence[Entry]) -> str:
    sizes: dict[str, int] = {}
    for entry in entries:
        top, slash, _ = entry.path.partition("/")
        name = top + slash if slash else top
        sizes[name] = sizes.get(name, 0) + entry.size
    most = sorted(sizes.items(), key=lambda each: -each[1])[:3]
    return ", ".join(f"{name} ({mebibytes(size)})" for name, size in most)
