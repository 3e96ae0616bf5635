"""A fork whose parent is our own parent: `clone(2)` with CLONE_PARENT, which `os.fork` cannot ask for.

So the manager is the parent of each instance, whether it was spawned or forked: it alone reaps it, reads its
exit code, and notices its end; a fork server that dies, hangs or is replaced takes none of that away.

What `os.fork` does around the system call is done here too: the interpreter's part by the functions that
`os.fork` calls (`PyOS_BeforeFork`, `PyOS_AfterFork_Child`, …), and of glibc's part what matters in a process
with one thread: the thread id that glibc keeps for its mutexes, and the list of robust ones. Left out are the
handlers of `pthread_atfork`: they take and release locks that no other thread could hold.
"""

from __future__ import annotations

import ctypes
import os
import platform
import signal
import sys
import threading

_CLONE_PARENT, _CLONE_CHILD_CLEARTID, _CLONE_CHILD_SETTID = 0x8000, 0x200000, 0x1000000
_PR_GET_TID_ADDRESS = 40

# clone, set_robust_list, get_robust_list (asm/unistd.h)
_CALLS = {"x86_64": (56, 273, 274), "aarch64": (220, 99, 100), "riscv64": (220, 99, 100)}


class CannotFork(Exception):
    """Such a fork is not possible here; the message says what is missing."""


class SiblingFork:
    """Called, it is as `os.fork`, but the child is a child of our parent. Raises OSError."""

    def __init__(self) -> None:
        """Raises `CannotFork`."""
        if sys.platform != "linux" or platform.machine() not in _CALLS:
            raise CannotFork(f"not on {sys.platform}, {platform.machine()}")
        self._clone, self._set_robust, get_robust = _CALLS[platform.machine()]
        # A PyDLL keeps the GIL: nothing else of this process runs between the calls before and after.
        self._libc = ctypes.PyDLL(None, use_errno=True)
        self._call = self._libc.syscall
        self._call.restype = ctypes.c_long
        api = ctypes.pythonapi
        self._before = api.PyOS_BeforeFork
        self._in_parent, self._in_child = api.PyOS_AfterFork_Parent, api.PyOS_AfterFork_Child
        for function in (self._before, self._in_parent, self._in_child):
            function.restype = None
        self._thread_id = self._address_of_thread_id()
        self._robust_list, self._robust_size = ctypes.c_void_p(), ctypes.c_size_t()
        self._call(
            ctypes.c_long(get_robust),
            ctypes.c_long(0),
            ctypes.byref(self._robust_list),
            ctypes.byref(self._robust_size),
        )

    def __call__(self) -> int:
        """0 in the child, its pid in this process."""
        flags = _CLONE_PARENT | _CLONE_CHILD_SETTID | _CLONE_CHILD_CLEARTID | signal.SIGCHLD
        nothing = ctypes.c_long(0)
        # The last two arguments are the child's thread id and its TLS, in an order that depends on the
        # architecture. Without CLONE_SETTLS the latter is not looked at.
        words = (
            ctypes.c_long(self._clone),
            ctypes.c_long(flags),
            nothing,
            nothing,
            self._thread_id,
            self._thread_id,
        )
        self._before()
        pid: int = self._call(*words)
        if pid == 0:
            self._in_child()
            if self._robust_size.value:
                self._call(ctypes.c_long(self._set_robust), self._robust_list, self._robust_size)
            return 0
        number = ctypes.get_errno()
        self._in_parent()
        if pid < 0:
            raise OSError(number, os.strerror(number))
        return pid

    def _address_of_thread_id(self) -> ctypes.c_void_p:
        address = ctypes.c_void_p()
        failed = self._libc.prctl(_PR_GET_TID_ADDRESS, ctypes.byref(address), 0, 0, 0)
        if failed or not address.value:
            raise CannotFork("the kernel has no PR_GET_TID_ADDRESS (CONFIG_CHECKPOINT_RESTORE)")
        if ctypes.c_int.from_address(address.value).value != threading.get_native_id():
            raise CannotFork("this C library is not glibc")
        return address
