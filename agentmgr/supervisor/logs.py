"""Where the output of an instance goes: a file to which it appends itself, also while no manager runs.

The file must stay bounded though its writer never reopens it, and the writer must lose nothing and never
wait. So the oldest part is copied to `POSITION.log.1` and then cut off the front of the live file in one step
(`fallocate` with FALLOC_FL_COLLAPSE_RANGE: ext4, xfs), while the writer goes on appending. Where the file
system cannot do that, the copied part is turned into a hole (FALLOC_FL_PUNCH_HOLE: btrfs, tmpfs and others),
which takes no space.

A file whose name is removed, or given to another file, is still written to: see `Astray`.

A reader that follows a log must not lose its place when the content moves up. So an offset counts bytes from
the beginning of the file as this process first saw it, and `_cut` has how many of them were cut off since.
"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count, pairwise
from pathlib import Path
from typing import BinaryIO

from attrs import frozen

from ..visible import without_sequences
from . import log_times

LAST_WORDS_LINES = 15
LAST_OUTPUT_LINES = 20  #: before an end, that are kept with it
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
_ROOM_BYTES = 256 * 1024  #: kept free for what instances write until the next look
_LAST_WORDS_BYTES = 4096
LAST_OUTPUT_BYTES = 16 * 1024

_libc = ctypes.CDLL(None, use_errno=True)
_KEEP_SIZE, _PUNCH_HOLE, _COLLAPSE_RANGE = 0x01, 0x02, 0x08  # linux/falloc.h

_moving = threading.Lock()  # held while a file is cut, and while one is read
_cut: dict[tuple[int, int], int] = {}  # bytes, by device and inode of the live file


def path(log_dir: Path, service_name: str, position: int) -> Path:
    return log_dir / service_name / f"{position}.log"


def move(log_dir: Path, old: str, new: str) -> None:
    """Moves the logs of a renamed service to its new name. Raises OSError.

    Running instances write on to their open files, and know the old path, so a link leads from it to the new
    directory until another service takes the name. Logs that are under the new name already belong to a
    service that no longer exists: they are renamed.
    """
    source, target = log_dir / old, log_dir / new
    if source.is_symlink() or not source.is_dir():
        return
    if target.is_symlink():
        target.unlink()
    elif target.exists():
        aside = log_dir / f"{new}~"  # no service has such a name
        shutil.rmtree(aside, ignore_errors=True)
        target.rename(aside)
    source.rename(target)
    source.symlink_to(new)


def claim(log_dir: Path, name: str) -> None:
    """Removes the link that `move` left under this name, as a new service has the name now."""
    if (log_dir / name).is_symlink():
        (log_dir / name).unlink(missing_ok=True)


def open_for_append(file: Path) -> int:
    """A descriptor for a child's stdout and stderr. Raises OSError."""
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor = _open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.set_blocking(descriptor, True)
    if os.fstat(descriptor).st_size == 0:
        with suppress(OSError):
            log_times.begin(file)
    return descriptor


def open_to_read(file: Path) -> BinaryIO:
    """Raises OSError."""
    return open(_open(file, os.O_RDONLY), "rb")


def _open(file: Path, flags: int) -> int:
    """It waits for no one: an instance may have put a pipe where its log was."""
    return os.open(file, flags | os.O_CLOEXEC | os.O_NONBLOCK, 0o600)


def last_words(file: Path, since: int) -> str:
    """The last lines that were written after the first `since` bytes; printable, and bounded."""
    try:
        with open_to_read(file) as log:
            end = log.seek(0, os.SEEK_END)
            # If the file is shorter than it was, it was rotated since.
            start = max(since if since <= end else 0, end - _LAST_WORDS_BYTES)
            log.seek(start)
            text = without_sequences(log.read(_LAST_WORDS_BYTES).decode(errors="replace"))
    except OSError:
        return ""
    lines = ["".join(c for c in line if c.isprintable() or c == "\t").rstrip() for line in text.splitlines()]
    return "\n".join(line for line in lines[-LAST_WORDS_LINES:] if line)


def last_output(file: Path, since: int) -> str:
    """The last lines that were written after the first `since` bytes, as they are; at most 16 KiB of them.
    Blocks on the disk.
    """
    try:
        with open_to_read(file) as log:
            end = log.seek(0, os.SEEK_END)
            begin = since if since <= end else 0  # if it is shorter than it was, it was rotated since
            start = max(begin, end - LAST_OUTPUT_BYTES)
            log.seek(start)
            data = log.read(end - start)
    except OSError:
        return ""
    lines = data.splitlines(keepends=True)
    if start > begin and len(lines) > 1:
        del lines[0]  # its beginning was not read
    return b"".join(lines[-LAST_OUTPUT_LINES:]).decode(errors="replace")


@frozen
class Still:
    """A live file that is not cut while this is in use."""

    begin: int  #: the offsets of its first byte, and after its last one
    end: int
    copy: Path  #: its newest copy, which ends where it begins
    _descriptor: int
    _cut: int

    def times(self, file: Path) -> log_times.Times:
        stat = os.fstat(self._descriptor)
        return log_times.read(
            file, shift=self._cut, end=self.end - self._cut, now_ms=stat.st_mtime_ns // 10**6
        )

    def read(self, offset: int, size: int) -> bytes:
        return os.pread(self._descriptor, size, offset - self._cut)


def copies(file: Path) -> Iterator[Path]:
    """The rotated logs, the newest first."""
    for number in count(1):
        copy = _copy_of(file, number)
        if not copy.exists():
            return
        yield copy


@contextmanager
def still(file: Path) -> Iterator[Still]:
    """Holds rotation up while the file is read: be quick. Raises OSError."""
    with _moving, open_to_read(file) as live:
        stat = os.fstat(live.fileno())
        cut = _cut.get((stat.st_dev, stat.st_ino), 0)
        begin = cut + _first_data(live.fileno())
        yield Still(begin, cut + stat.st_size, _copy_of(file, 1), live.fileno(), cut)


def rotate(file: Path, max_bytes: int, files: int) -> bool:
    """When the live file has reached `max_bytes`, moves its content to the copy `.1`; returns whether it did.

    Blocks on the disk. Raises OSError, as when the disk is full; then nothing is lost.
    """
    try:
        stat = file.stat()
        if stat.st_blocks * 512 < max_bytes:  # what it occupies, not its length: it may have a hole
            return False
        with file.open("r+b") as live:
            start = _first_data(live.fileno())
            # Only whole blocks can be cut off. What was written since the stat stays for the next time.
            block = stat.st_blksize
            end = stat.st_size // block * block
            end -= end > start and end == stat.st_size and block  # a file cannot be collapsed as a whole
            if end <= start:
                return False
            # There may be much more than `max_bytes` after a flood: then the newest part of it is kept.
            draft = _copy(live.fileno(), max(start, end - 2 * max_bytes), end, file, files)
            with _moving:
                _shift(draft, file, files)
                if _fallocate(live.fileno(), _COLLAPSE_RANGE, 0, end):
                    inode = stat.st_dev, stat.st_ino
                    _cut[inode] = _cut.get(inode, 0) + end
                    moved_by = end
                else:
                    _fallocate(live.fileno(), _PUNCH_HOLE | _KEEP_SIZE, 0, end, required=True)
                    moved_by = 0
                kept = sum(copy.stat().st_size for copy in copies(file))
                log_times.rotated(file, moved_by=moved_by, kept_from=end - kept)
            return True
    except FileNotFoundError:
        return False


File = tuple[int, int]  #: device and inode


def identity(file: Path | str) -> File | None:
    """Which file has that name now; None if there is none, or it cannot be read."""
    try:
        stat = os.stat(file)
    except OSError:
        return None
    return stat.st_dev, stat.st_ino


def written_by(pid: int, file: Path) -> File | None:
    """The log that this process writes to, even if the name `file` belongs to another file now.

    None when its output goes elsewhere.
    """
    output = f"/proc/{pid}/fd/1"
    try:
        target = os.readlink(output)  # of one without a name: the former one, and ` (deleted)`
    except OSError:
        return None
    return identity(output) if os.path.dirname(target) == os.path.realpath(file.parent) else None


def moved_to(pid: int, which: File, file: Path, log_dir: Path) -> Path | None:
    """Where the log of a service is that was renamed while it runs; None if it is not in its directory."""
    try:
        target = Path(os.readlink(f"/proc/{pid}/fd/1"))
    except OSError:
        return None
    at_home = target.name == file.name and target.parent.parent == Path(os.path.realpath(log_dir))
    return target if at_home and identity(target) == which else None


class Astray:
    """A log that its instance still writes to, though its name was removed or given to another file.

    Nothing can make the instance open another file. So what it writes is moved to the file that has the name
    now, which is made if there is none: `agentmgr logs` shows it, and neither file grows without bounds.
    """

    def __init__(self, pid: int, which: File, file: Path, seen: int | None) -> None:
        """`seen`: its size when it last had its name. Raises OSError, as when the process has ended."""
        self._file = Path(os.path.realpath(file.parent), file.name)
        self._descriptor = os.open(f"/proc/{pid}/fd/1", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
        stat = os.fstat(self._descriptor)
        if (stat.st_dev, stat.st_ino) != which:
            os.close(self._descriptor)
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(file))
        self._block = stat.st_blksize
        # Earlier content stays in the file if that was renamed; if it was removed, it was meant to go.
        self._moved = seen if seen is not None else stat.st_size if stat.st_nlink else 0
        self._begin = -(-self._moved // self._block) * self._block  #: only whole blocks can be cut out

    def move_on(self, max_bytes: int) -> None:
        """Appends to the named file what was written since the last call. Blocks on the disk.

        Raises OSError.
        """
        end = os.fstat(self._descriptor).st_size
        if end < self._moved:  # it was truncated
            self._moved, self._begin = 0, 0
        self._moved = max(self._moved, end - 2 * max_bytes)  # after a flood the newest part is kept
        target = open_for_append(self._file)
        try:
            while self._moved < end:
                data = os.pread(self._descriptor, min(end - self._moved, 2**18), self._moved)
                self._moved += os.write(target, data)
        finally:
            os.close(target)
        self._cut_out(end)

    def _cut_out(self, end: int) -> None:
        last = (self._moved - (self._moved == end)) // self._block * self._block  # the last byte has to stay
        if last <= self._begin:
            return
        if _fallocate(self._descriptor, _COLLAPSE_RANGE, self._begin, last - self._begin):
            self._moved -= last - self._begin
        else:
            _fallocate(
                self._descriptor, _PUNCH_HOLE | _KEEP_SIZE, self._begin, last - self._begin, required=True
            )
            self._begin = last

    def close(self) -> None:
        os.close(self._descriptor)


def make_room(log_dir: Path) -> bool:
    """On a full disk, removes rotated logs, oldest first, until instances can write.

    Returns whether the disk was full. Live files stay: an operator needs them. Blocks on the disk.
    Raises OSError.
    """
    if _free_bytes(log_dir) >= _ROOM_BYTES:
        return False
    copies = [(copy.stat().st_mtime, copy) for copy in log_dir.glob("*/*.log.[0-9]*")]
    for _, copy in sorted(copies):
        copy.unlink(missing_ok=True)
        if _free_bytes(log_dir) >= _ROOM_BYTES:
            break
    return True


def _free_bytes(directory: Path) -> int:
    disk = os.statvfs(directory)
    return (disk.f_bfree if os.geteuid() == 0 else disk.f_bavail) * disk.f_frsize


def _copy(live: int, start: int, end: int, file: Path, files: int) -> Path:
    copies = [_copy_of(file, number) for number in range(1, files)]
    if copies:
        copies[-1].unlink(missing_ok=True)  # before the copy: the disk may be full
    draft = file.with_name(f"{file.name}.new")
    while True:
        try:
            with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as copy:
                copied = start
                while copied < end:
                    copied += os.copy_file_range(live, copy.fileno(), end - copied, copied)
            return draft
        except OSError as error:
            draft.unlink(missing_ok=True)
            left = [copy for copy in copies if copy.exists()]
            if error.errno not in _NO_ROOM or not left:
                raise
            left[-1].unlink()  # the newest copy is worth more than the oldest


def _shift(draft: Path, file: Path, files: int) -> None:
    """Makes the draft the newest copy."""
    copies = [_copy_of(file, number) for number in range(1, files)]
    for newer, older in reversed(list(pairwise(copies))):
        if newer.exists():
            newer.replace(older)
    if copies:
        draft.replace(copies[0])
    else:
        draft.unlink()


def _copy_of(file: Path, number: int) -> Path:
    """The rotated log with this number; higher is older."""
    return file.with_name(f"{file.name}.{number}")


def _first_data(live: int) -> int:
    try:
        return os.lseek(live, 0, os.SEEK_DATA)
    except OSError as error:
        if error.errno == errno.ENXIO:  # it is one hole
            return os.fstat(live).st_size
        raise


def _fallocate(file: int, mode: int, start: int, length: int, *, required: bool = False) -> bool:
    begin, size = ctypes.c_longlong(start), ctypes.c_longlong(length)
    if _libc.fallocate(file, ctypes.c_int(mode), begin, size) == 0:
        return True
    number = ctypes.get_errno()
    if required or number not in (errno.EOPNOTSUPP, errno.EINVAL):
        raise OSError(number, os.strerror(number))
    return False
