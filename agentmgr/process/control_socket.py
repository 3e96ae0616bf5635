"""The manager's own sockets. Only the user who runs the manager can open them; that is their access rule."""

from __future__ import annotations

import errno
import logging
import os
import socket
import stat
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import trio

from ..errors import DatabaseUnusable, StorageError

logger = logging.getLogger(__name__)

_BACKLOG = 256
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.005, 0.1  #: between tries to connect, doubling
_LONGEST_BYTES = 107  #: of the path in the address of a unix socket (unix(7))
LOOK_S = 2.0  #: between looks at whether the file is still there


@contextmanager
def control_listener(path: Path) -> Iterator[trio.SocketListener]:
    """A listener at `path` that only this user may open; the file is gone in the end.

    A socket file that is there already is a dead manager's: the caller holds the database's lock.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        try:
            if stat.S_ISSOCK(os.lstat(path).st_mode):
                os.unlink(path)
        except FileNotFoundError:
            pass
        # The directory is 0700, and no one can connect before listen().
        with _short(path) as name:
            sock.bind(name)
        mine = os.lstat(path).st_ino
        try:
            os.chmod(path, 0o600)
            sock.listen(_BACKLOG)
            yield trio.SocketListener(trio.socket.from_stdlib_socket(sock))
        finally:
            # The next manager may have put its own there, once this one gave up the lock.
            if _inode(path) == mine:
                os.unlink(path)


async def connect(path: Path) -> trio.SocketStream:
    """A connection to the socket at `path`. Raises OSError, and `DatabaseUnusable` for a link to a socket.

    Where so many connect at once that the listener has no room for more, it waits for room; the deadline is
    the caller's.
    """
    pause_s = _FIRST_PAUSE_S
    while (found := await _connect_once(path)) is None:
        await trio.sleep(pause_s)
        pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
    stream, bound = found
    if _is_link(path, bound):
        await trio.aclose_forcefully(stream)
        raise DatabaseUnusable(
            f"{path.parent} consists of links to the files of {bound.parent}, whose manager is another one: "
            "use that database, or copy the files themselves, as `agentmgr backup` does"
        )
    return stream


async def _connect_once(path: Path) -> tuple[trio.SocketStream, Path] | None:
    """A connection, and where its other end was bound; None where the listener has no room."""
    with _short(path) as name:
        stream = await trio.open_unix_socket(name)
    try:
        return stream, Path(os.fsdecode(stream.socket.getpeername()))
    except OSError as error:
        await trio.aclose_forcefully(stream)
        # connect(2) says EAGAIN then, which trio takes for the beginning of a connection, as of TCP.
        if error.errno != errno.ENOTCONN:
            raise
        return None


def _is_link(path: Path, bound: Path) -> bool:
    """Whether `path` is another name of the socket that its manager made as `bound` (`cp -l`, `rsync
    --link-dest`). A directory that was moved, or reached by a symbolic link, has the one name only.
    """
    try:
        return os.path.samefile(path, bound) and not os.path.samefile(path.parent, bound.parent)
    except OSError:  # it is not at `bound` any more; or its manager bound it by way of /proc/self/fd
        return False


@contextmanager
def _short(path: Path) -> Iterator[str]:
    """A name of the file that fits into the address of a socket, good inside the block. Raises OSError."""
    if len(os.fsencode(path)) <= _LONGEST_BYTES:
        yield os.fspath(path)
        return
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{directory}/{path.name}"
    finally:
        os.close(directory)


async def keep_bound(
    path: Path,
    serve: Callable[[trio.SocketListener], Awaitable[None]],
    *,
    make_directory: Callable[[], None],
) -> None:
    """Serves on another socket whenever the file at `path` was deleted, as a cleaner of old files does; until
    cancelled. The socket bound before goes on with the clients that are connected to it.
    """
    bound = _inode(path)
    async with trio.open_nursery() as nursery:

        async def serve_again(*, task_status: trio.TaskStatus[None]) -> None:
            with control_listener(path) as listener:
                task_status.started()
                await serve(listener)

        while True:
            await trio.sleep(LOOK_S)
            if bound is not None and _inode(path) == bound:
                continue
            try:
                make_directory()
                await nursery.start(serve_again)
            except (OSError, StorageError) as error:
                if bound is not None:
                    logger.error("the socket %s was deleted; cannot make it again yet: %s", path, error)
                bound = None
            else:
                logger.warning("the socket %s was deleted; made again", path)
                bound = _inode(path)


def _inode(path: Path) -> int | None:
    try:
        return os.lstat(path).st_ino
    except OSError:
        return None
