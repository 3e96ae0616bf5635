"""How the child of another process has ended."""

import os
import sys

import pytest
import trio

from agentmgr.core.restart import Exit
from agentmgr.supervisor import pidfds

# A parent that adopts the orphan, and reaps it when it is told to.
PARENT = """
import ctypes, os, sys
ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER
read, write = os.pipe()
if not (child := os.fork()):
    if not (orphan := os.fork()):
        os.read(read, 1)
        {end}
    print(orphan, flush=True)
    os._exit(0)
os.waitpid(child, 0)
sys.stdin.readline()
os.write(write, b"x")
sys.stdin.readline()
os.wait()
"""


def kernel_says_it() -> bool:
    return tuple(int(part) for part in os.uname().release.split(".")[:2]) >= (6, 15)


@pytest.mark.skipif(not kernel_says_it(), reason="before Linux 6.15 no kernel says it")
@pytest.mark.parametrize(
    ("end", "exit"),
    [
        ("os._exit(7)", Exit(code=7)),
        ("os._exit(0)", Exit(code=0)),
        ("os.kill(os.getpid(), 9)", Exit(signal=9)),
    ],
)
async def test_it_is_known_when_its_parent_has_reaped_it(end: str, exit: Exit) -> None:
    words = [sys.executable, "-c", PARENT.format(end=end)]
    process = await trio.lowlevel.open_process(words, stdin=-1, stdout=-1)
    assert process.stdin is not None
    assert process.stdout is not None
    pidfd = os.pidfd_open(int(await process.stdout.receive_some()))
    try:
        with trio.fail_after(60):
            await process.stdin.send_all(b"end\n")
            await trio.lowlevel.wait_readable(pidfd)
            assert pidfds.known_exit(pidfd) == Exit()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(process.stdin.send_all, b"reap\n")
                assert await pidfds.foreign_exit(pidfd) == exit
            assert pidfds.known_exit(pidfd) == exit
            await process.wait()
    finally:
        os.close(pidfd)
        process.kill()
        await process.wait()


async def test_what_no_kernel_says_is_not_known() -> None:
    with open(os.devnull) as file:
        assert await pidfds.foreign_exit(file.fileno()) == Exit()
