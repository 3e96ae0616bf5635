"""Paths as users name them, what the system says of them, and the files that belong to a database."""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from pathlib import Path

from attrs import field, frozen

from ..errors import DatabaseUnusable, InvalidRequest
from .trust import distrust, distrust_database


def current_directory() -> Path:
    """As the shell names it: a link that led here is kept, so that it may lead elsewhere later.

    Raises `InvalidRequest` when the directory was removed.
    """
    named = os.environ.get("PWD", "")
    with suppress(OSError):
        if os.path.isabs(named) and os.path.samefile(named, "."):
            return Path(named)
    try:
        return Path.cwd()
    except FileNotFoundError:
        which = f"the current directory {named}" if named else "the current directory"
        raise InvalidRequest(
            f"{which} was removed: change to one that exists, or give absolute paths"
        ) from None


def absolute(path: str | os.PathLike[str]) -> Path:
    """From the current directory on; no link is followed. Raises `InvalidRequest` when that was removed."""
    return Path(path) if os.path.isabs(path) else current_directory() / path


def reason(error: OSError) -> str:
    """What the system said, with the path that it is about where it is known."""
    said = error.strerror or str(error)
    return said if error.filename is None else f"{os.fsdecode(error.filename)}: {said}"


def file_of(factory_path: str) -> str | None:
    """The file of a located factory; None where that is a module."""
    file, *_ = factory_parts(factory_path)
    return file if os.path.isabs(file) else None


def factory_parts(factory_path: str) -> tuple[str, str, str]:
    """The file or module, the colon, the name of the factory; the last two are empty where there are none."""
    name, colon, factory = factory_path.rpartition(":")
    return (name, colon, factory) if colon and factory.isidentifier() else (factory_path, "", "")


_BESIDE = ".d"


@frozen
class RuntimePaths:
    """The files that belong to a database, in the directory `PATH.d` beside it."""

    database: Path  #: with all symbolic links followed, so that one database has one owner
    directory: Path
    named: Path = field(eq=False)  #: the database as it was given, which may be a link

    @classmethod
    def of(cls, db_path: str | os.PathLike[str]) -> RuntimePaths:
        named = absolute(db_path)
        database = Path(os.path.realpath(named))
        return cls(database, database.with_name(database.name + _BESIDE), named)

    @property
    def control_socket(self) -> Path:
        return self.directory / "control.sock"

    @property
    def worker_socket(self) -> Path:
        """Where the manager talks with the workers of its gateway."""
        return self.directory / "workers.sock"

    @property
    def workers(self) -> Path:
        """Their logs, and a file that each keeps locked while it lives."""
        return self.directory / "workers"

    @property
    def lock(self) -> Path:
        return self.directory / "lock"

    @property
    def starting_lock(self) -> Path:
        return self.directory / "starting.lock"

    @property
    def daemon_log(self) -> Path:
        return self.directory / "daemon.log"

    @property
    def logs(self) -> Path:
        return self.directory / "logs"

    @property
    def sessions(self) -> Path:
        """The journals of the services' sessions, `SERVICE_ID.db` each."""
        return self.directory / "sessions"

    @property
    def cluster(self) -> Path:
        """The keys and certificates of its cluster, where it has one (`agentmgr.ca`)."""
        return self.directory / "cluster"

    @property
    def of_sqlite(self) -> tuple[Path, ...]:
        """The database, and what SQLite keeps along with it."""
        name = self.database.name
        return tuple(self.database.with_name(name + end) for end in ("", "-wal", "-shm", "-journal"))

    def check(self) -> None:
        """Raises `DatabaseUnusable` where it, or what stands beside it, can be another user's work."""
        problem = distrust(self.named, of=self.database) or distrust_database(self.database)
        if problem is not None:
            raise DatabaseUnusable(problem)

    def create(self) -> None:
        """Makes the directory, for its owner only. Raises `DatabaseUnusable`."""
        directory = self.directory
        try:
            directory.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            if not directory.parent.exists():
                raise DatabaseUnusable(
                    f"the directory {directory.parent} does not exist: "
                    "make it, or name another file with --db-path"
                ) from None
            why = error.strerror if error.errno != errno.ENOENT else "no directory can be made there"
            raise DatabaseUnusable(
                f"{directory} cannot be made ({why}): name another file with --db-path"
            ) from error
        self.check()


def database_of(path: Path) -> Path | None:
    """The database whose manager's lock or directory of logs is at `path`; None where it is neither."""
    directory = path.parent
    if not directory.name.endswith(_BESIDE):
        return None
    paths = RuntimePaths.of(directory.with_name(directory.name.removesuffix(_BESIDE)))
    return paths.database if path in (paths.lock, paths.logs) else None
