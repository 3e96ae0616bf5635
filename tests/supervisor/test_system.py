"""What is missing of the system is said in one sentence, before anything is started."""

import ctypes
import errno
import os
import signal
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from agentmgr import AgentManager, Supervisor
from agentmgr.cli.entry import run
from agentmgr.errors import ManagerError
from agentmgr.supervisor import procfs, system

NEEDS = "It needs Linux 5.4 or newer with /proc mounted"


def refused(number):
    def call(*_):
        raise OSError(number, os.strerror(number))

    return call


@pytest.mark.parametrize(
    ("module", "name", "number", "said"),
    [
        (os, "pidfd_open", errno.ENOSYS, r"the system refuses pidfd_open \(Function not implemented\)"),
        (os, "pidfd_open", errno.EPERM, r"the system refuses pidfd_open \(Operation not permitted\)"),
        (signal, "pidfd_send_signal", errno.ENOSYS, "the system refuses pidfd_send_signal"),
        (os, "waitid", errno.EINVAL, r"the system refuses waitid\(P_PIDFD\)"),
        (procfs, "boot_id", errno.ENOENT, r"/proc is not usable"),
    ],
)
async def test_each_is_named_and_nothing_is_made(tmp_path, monkeypatch, module, name, number, said):
    system.check()
    monkeypatch.setattr(module, name, refused(number))
    with pytest.raises(ManagerError, match=f"agentmgr cannot look after processes here: {said}.* {NEEDS}"):
        async with AgentManager(tmp_path / "a.db"):
            pass
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ManagerError, match=said):
        async with Supervisor(log_dir=tmp_path / "logs"):
            pass
    async with Supervisor():  # of functions of this program
        pass


def test_a_python_or_a_system_without_them_is_named(monkeypatch):
    with monkeypatch.context() as patch:
        patch.delattr(os, "pidfd_open")
        with pytest.raises(ManagerError, match="was built without pidfd_open"):
            system.check()
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(ManagerError, match="this is darwin"):
        system.check()


def test_a_command_for_which_another_system_lacks_something_says_so(monkeypatch, capsys, tmp_path):
    def lacking(*_):
        raise ModuleNotFoundError("No module named 'fcntl'")

    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr("agentmgr.cli.group.import_module", lacking)
    assert run(["list", "--db-path", str(tmp_path / "a.db")]) == 1
    assert (
        capsys.readouterr().err == "Error: agentmgr needs Linux, and this is win32: No module named 'fcntl'\n"
    )


def test_a_want_of_descriptors_is_no_reason(monkeypatch):
    monkeypatch.setattr(os, "pidfd_open", refused(errno.EMFILE))
    system.check()


def without_pidfd_open(number):
    """In a child before its exec: a seccomp filter as of an old container engine (seccomp(2))."""

    def install():
        load, equal, ret = 0x20, 0x15, 0x06
        refuse = 0x00050000 | number
        code = [(load, 0, 0, 0), (equal, 0, 1, 434), (ret, 0, 0, refuse), (ret, 0, 0, 0x7FFF0000)]
        program = b"".join(struct.pack("HBBI", *line) for line in code)
        buffer = ctypes.create_string_buffer(program)
        filter = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(code), ctypes.addressof(buffer)))
        libc = ctypes.CDLL(None, use_errno=True)
        assert libc.prctl(38, 1, 0, 0, 0) == 0  # PR_SET_NO_NEW_PRIVS
        assert libc.prctl(22, 2, filter, 0, 0) == 0, ctypes.get_errno()  # PR_SET_SECCOMP

    return install


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EPERM])
def test_the_command_says_it_in_one_line(tmp_path, number):
    done = subprocess.run(
        [sys.executable, "-m", "agentmgr", "daemon", "--db-path", str(tmp_path / "a.db")],
        preexec_fn=without_pidfd_open(number),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stderr.startswith(
        "Error: agentmgr cannot look after processes here: the system refuses pidfd"
    )
    assert done.stderr.count("\n") == 1


def test_so_it_does_where_proc_is_not_mounted(tmp_path):
    mount = "mount -t tmpfs none /proc && exec"
    words = [sys.executable, "-m", "agentmgr", "daemon", "--db-path", str(tmp_path / "a.db")]
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", f'{mount} "$@"', "sh", *words], capture_output=True, text=True
    )
    if "agentmgr" not in done.stderr:
        pytest.skip("this user may not mount a file system")
    assert done.returncode == 1
    assert "/proc is not usable (/proc/sys/kernel/random/boot_id: No such file or directory)" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not Path(tmp_path / "a.db").exists()
