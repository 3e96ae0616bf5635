"""Files that decide what runs with our rights: they are believed only where no other user can write them.

A database, the directory beside it, a settings file and an environment file decide which programs run, and
how. Another user of the machine can put one where a command looks for it, as in /tmp or in a shared project.
So each is judged before it is read, as git judges a repository (`safe.directory`):

* It belongs to the user who runs this, or to root. Root itself believes only root's.
* Others may not write it. Its group may where that has no other members, as with a umask of 002.
* A symbolic link belongs to one of the two as well, and its target is judged by the same rules.
* The directories above are not judged: a file of ours that another user replaces there is no longer ours.

`AGENTMGR_TRUST` (`--trust`) names what is accepted all the same: paths, each with all below it, and of a
database what stands beside it under its name.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

VARIABLE = "AGENTMGR_TRUST"  #: paths, separated by colons

_BESIDE = ("", "-wal", "-shm", "-journal", ".d")  # a database, what SQLite keeps along with it, our directory


def trust(path: str) -> None:
    """Accepts a path, in this process and those that it starts."""
    os.environ[VARIABLE] = os.pathsep.join([*filter(None, [os.environ.get(VARIABLE)]), os.path.abspath(path)])


def distrust(path: Path, *, of: Path | None = None) -> str | None:
    """Why the file or directory at `path` is not to be believed, and what to do. None where it is, or where
    nothing is there. `of`: the database that it belongs to, which is what a user accepts.
    """
    try:
        problem = (
            _foreign(path, os.lstat(path)) or _foreign(path, found := os.stat(path)) or _open(path, found)
        )
    except OSError:  # nothing there, or a link to nowhere: whoever opens it says so
        return None
    accept = of or path
    return None if problem is None or _accepted(accept) else f"{problem}, or accept it with --trust {accept}"


class Distrusted(Exception):
    """A file is not to be believed; the message is what `distrust` says."""


def opened(path: Path, flags: int) -> int:
    """A descriptor of a file that is believed; a new one is for its owner only. Raises `Distrusted`, OSError.

    It is judged again once it is open: another user may put a file there between a look and the opening.
    """
    if (problem := distrust(path)) is not None:
        raise Distrusted(problem)
    fd = os.open(path, flags | os.O_CLOEXEC, 0o600)
    found = os.fstat(fd)
    problem = _foreign(path, found) or _open(path, found)
    if problem is not None and not _accepted(path):
        os.close(fd)
        raise Distrusted(problem)
    return fd


def read_text(path: Path, encoding: str = "utf-8", *, waits: bool = True) -> str:
    """The text of a file that is believed. Raises `Distrusted`, OSError, `UnicodeDecodeError`.

    Without `waits` only a regular file is read: to open a named pipe is to wait until a program writes to it.
    """
    extra = 0 if waits else os.O_NONBLOCK
    with open(path, encoding=encoding, opener=lambda _, flags: opened(path, flags | extra)) as file:
        found = os.fstat(file.fileno())
        if not (waits or stat.S_ISREG(found.st_mode) or os.path.samestat(found, os.stat(os.devnull))):
            raise OSError(errno.EINVAL, "it is a pipe or a device, and no file", os.fspath(path))
        return file.read()


def distrust_database(path: Path) -> str | None:
    """The same, for a database and all that stands beside it under its name."""
    every = (distrust(path.with_name(path.name + suffix), of=path) for suffix in _BESIDE)
    return next(filter(None, every), None)


def _foreign(path: Path, found: os.stat_result) -> str | None:
    if found.st_uid in (os.geteuid(), 0):
        return None
    owner = f"{_user(found.st_uid) or 'no name'}, uid {found.st_uid}"
    return f"{path} belongs to another user ({owner}), who could have programs run as you: name another one"


def _open(path: Path, found: os.stat_result) -> str | None:
    if not (stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode)):  # as /dev/null
        return None
    by_group = found.st_mode & stat.S_IWGRP and (_has_acl(path) or not _private(found.st_gid, found.st_uid))
    if not (found.st_mode & stat.S_IWOTH or by_group):
        return None
    mode = f"{stat.S_IMODE(found.st_mode):o}"
    return (
        f"{path} can be written by other users (mode {mode}), who could have programs run as you: "
        f"`chmod go-w {path}`"
    )


def _has_acl(path: Path) -> bool:
    """Whether an access control list names more users: the group bits then show what the list allows."""
    try:
        return bool(os.getxattr(path, "system.posix_acl_access"))
    except OSError:  # it has none, or the file system knows none
        return False


def _private(group: int, owner: int) -> bool:
    """Whether the group is the owner's alone, or root's."""
    import grp  # needed where a file is open to its group, which ours are not

    try:
        found = grp.getgrgid(group)
    except KeyError:  # a container that names no users
        return group in (owner, 0)
    alone = {_user(owner), "root"}
    return found.gr_name in alone and set(found.gr_mem) <= alone


def _user(uid: int) -> str | None:
    import pwd

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return None


def _accepted(path: Path) -> bool:
    accepted = [
        Path(os.path.realpath(named)) for named in os.environ.get(VARIABLE, "").split(os.pathsep) if named
    ]
    return any(Path(os.path.realpath(path)).is_relative_to(parent) for parent in accepted)
