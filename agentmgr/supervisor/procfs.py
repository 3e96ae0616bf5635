"""Facts about processes from Linux's /proc, as of now: a moment later a pid may belong to another process.

So code that acts on a process opens a pidfd first and then asks again, see `process.kill_all`.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path

from attrs import frozen

# Only these mean that there is no such process. EMFILE must not: a process that cannot be read is not gone.
_GONE = (FileNotFoundError, ProcessLookupError)

PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
TOKEN_VARIABLE = "AGENTMGR_INSTANCE_TOKEN"


@frozen
class Stat:
    """Some of /proc/PID/stat (proc(5))."""

    pid: int
    state: str  #: one letter, of its first thread
    parent: int
    session: int
    cpu_ticks: int
    threads: int
    start_ticks: int  #: since boot; with the pid it identifies a process
    resident_pages: int

    @property
    def lives(self) -> bool:
        """Other threads may outlive the first: while one does, the process has its descriptors and ports."""
        return self.state not in "ZX" or self.threads > 1


@frozen
class Living:
    """What shows which instance the process belongs to."""

    pid: int
    session: int
    token: str | None


@cache
def boot_id() -> str:
    """Changes with each boot: a pid and its start time identify a process within one boot only."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def stat(pid: int) -> Stat | None:
    """None when there is no such process. Raises OSError when it cannot be looked at."""
    try:
        text = _read(f"/proc/{pid}/stat")
    except _GONE:
        return None
    # The second field, the name in brackets, may hold blanks and brackets itself.
    fields = text[text.rindex(b")") + 2 :].split()
    return Stat(
        pid=pid,
        state=fields[0].decode(),
        parent=int(fields[1]),
        session=int(fields[3]),
        cpu_ticks=int(fields[11]) + int(fields[12]),
        threads=int(fields[17]),
        start_ticks=int(fields[19]),
        resident_pages=int(fields[21]),
    )


def resident_bytes(pid: int) -> int:
    """0 when there is no such process."""
    facts = stat(pid)
    return 0 if facts is None else facts.resident_pages * PAGE_BYTES


def token(pid: int) -> str | None:
    """The instance token in the environment that it was started with; None where that cannot be read."""
    try:
        environment = _read(f"/proc/{pid}/environ")
    except (*_GONE, PermissionError):
        return None
    name = TOKEN_VARIABLE.encode() + b"="
    if environment.startswith(name):
        start = len(name)
    else:
        start = environment.find(b"\0" + name) + 1 + len(name)
        if start == len(name):
            return None
    return environment[start : environment.find(b"\0", start)].decode(errors="replace")


def living(pid: int) -> Living | None:
    """None when there is no such process, or it is dead. Raises OSError when it cannot be looked at."""
    facts = stat(pid)
    return Living(pid, facts.session, token(pid)) if facts is not None and facts.lives else None


def pids() -> Iterator[int]:
    return (int(name) for name in os.listdir("/proc") if name.isdecimal())


def scan(since_ticks: int = 0) -> list[Living]:
    """The living processes except this one that began at `since_ticks` or later; takes 10 to 20 µs for each.

    Raises OSError when /proc cannot be read.
    """
    me = os.getpid()
    found = []
    for pid in pids():
        facts = stat(pid) if pid != me and not _of_kernel(pid) else None
        if facts is not None and facts.start_ticks >= since_ticks and facts.lives:
            found.append(Living(pid, facts.session, token(pid)))
    return found


def members(leaders: Collection[int]) -> dict[int, list[int]]:
    """The processes of the sessions with these leaders, by leader: a look at each process of the machine."""
    found: dict[int, list[int]] = {leader: [] for leader in leaders}
    for pid in pids() if found else ():
        with suppress(OSError):  # it is gone, or hidden
            if (session := os.getsid(pid)) in found:
                found[session].append(pid)
    return found


def _of_kernel(pid: int) -> bool:
    """Whether it is a thread of the kernel, as most entries of /proc often are; or gone by now.

    Their session is 0. So is that of a process whose session is outside of our process namespace; the
    supervisor starts none of those. It takes a thirtieth of the time that `stat` does.
    """
    try:
        return os.getsid(pid) == 0
    except ProcessLookupError:
        return True
    except PermissionError:  # a security module's
        return False


def name(pid: int) -> str:
    """As in `node server.js (pid 4711)`."""
    try:
        words = _read(f"/proc/{pid}/cmdline").decode(errors="replace").replace("\0", " ").strip()
    except OSError:
        words = ""
    return f"{words[:80]} (pid {pid})" if words else f"pid {pid}"


def holds(pid: int, inode: int) -> bool:
    """Whether the process has this socket open."""
    return f"socket:[{inode}]" in open_targets(pid)


def open_targets(pid: int) -> Iterator[str]:
    """Its open files in the words of /proc, as a path or `socket:[INODE]`; none where they are hidden."""
    try:
        with os.scandir(f"/proc/{pid}/fd") as entries:
            for entry in entries:
                yield _target(entry.path)
    except OSError:
        return


def open_files(pid: int) -> int:
    try:
        return len(os.listdir(f"/proc/{pid}/fd"))
    except OSError:
        return 0


def _target(link: str) -> str:
    try:
        return os.readlink(link)
    except OSError:  # closed in between
        return ""


def _read(path: str) -> bytes:
    # Half the time of `open`, for thousands of files a second.
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        data = os.read(file, 2**16)
        if len(data) == 2**16:
            while more := os.read(file, 2**20):
                data += more
        return data
    finally:
        os.close(file)
