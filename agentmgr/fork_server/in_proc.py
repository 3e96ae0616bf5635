"""What `ps` and /proc show of this process: its command line and environment.

They show the memory that the kernel filled at exec. Managers recognise their instances by what is there
(`supervisor.procfs.token`), so a forked process points the kernel to memory of its own: PR_SET_MM_MAP of
prctl(2), which needs no privilege.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

_PR_SET_MM, _PR_SET_MM_MAP = 35, 14
_MAP = struct.Struct("=12QIi")  #: struct prctl_mm_map: eleven addresses, auxv and its size, exe_fd

# Fields of /proc/PID/stat (proc(5)), counted from the third, the state.
_CODE, _STACK, _DATA, _BRK = slice(23, 25), 25, slice(42, 44), 44

_kept: list[object] = []  # the memory that /proc shows now


def show(argv: Sequence[str], environment: Mapping[str, str]) -> None:
    """Raises OSError, on a kernel without CONFIG_CHECKPOINT_RESTORE."""
    words = b"".join(os.fsencode(word) + b"\0" for word in argv)
    variables = b"".join(os.fsencode(f"{name}={value}") + b"\0" for name, value in environment.items())
    memory = ctypes.create_string_buffer(words + variables)
    start = ctypes.addressof(memory)
    middle, end = start + len(words), start + len(words) + len(variables)
    stat = Path("/proc/self/stat").read_bytes()
    fields = [int(field) if field[:1].isdigit() else 0 for field in stat[stat.rindex(b")") + 2 :].split()]
    libc = ctypes.CDLL(None, use_errno=True)
    libc.sbrk.restype = ctypes.c_void_p
    wanted = _MAP.pack(
        *fields[_CODE], *fields[_DATA], fields[_BRK], libc.sbrk(0), fields[_STACK],
        start, middle, middle, end, 0, 0, -1,
    )  # fmt: skip
    if libc.prctl(_PR_SET_MM, _PR_SET_MM_MAP, ctypes.c_char_p(wanted), ctypes.c_ulong(_MAP.size), 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    _kept[:] = [memory]
