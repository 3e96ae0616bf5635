"""What the bridge to Ray does on each machine: it keeps a node daemon there.

`ensure` runs as a short task of Ray's, by value: the machine need not have agentmgr for it, and an upgrade of
the manager is one of this too. So it needs Python's own library alone, and gets and returns plain data. It is
no actor: one would keep Ray's autoscaler from removing the machine, even an idle one without resources
(measured with Ray 2.60), and costs 43 MiB.

The daemon is started by a process that ends at once, in a session of its own: Ray ends the direct children of
its worker processes, and with `ray stop` or a dead raylet the whole session of it.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
from contextlib import closing, suppress
from pathlib import Path
from secrets import token_hex
from typing import Any

_START_S = 60.0  #: until a daemon has joined: it waits itself for 30 s for a manager that is not there yet
_END_S = 10.0
_ASK_S = 30.0  #: for a Python on a machine that is busy
_MOST_LOG_BYTES = 2**20
_UNNEEDED_S = 600.0  #: without a manager and an instance a daemon ends: each manager has one started again

_ASK = """
import agentmgr.version, json, sys
import cryptography, pathspec
told, newer = json.loads(sys.argv[1]), None
if "generation" in told:
    from pathlib import Path
    from agentmgr.codec import from_answer, to_plain
    from agentmgr.dialing import ManagerAddress
    from agentmgr.generation import Generation
    from agentmgr.node.following import follow
    manager, own = ManagerAddress.parse(told["manager"]), from_answer(told["generation"], Generation)
    newer = to_plain(follow(Path(told["directory"]), manager, own))
print(json.dumps([agentmgr.version.__version__, newer]))
"""

# Ray's workers run at nice 15, and are the first to be ended when memory is short.
_STARTER = """
import os, subprocess, sys
os.setsid()
try:
    with open("/proc/self/oom_score_adj", "w") as file:
        file.write("0")
    os.setpriority(os.PRIO_PROCESS, 0, int(sys.argv.pop(1)))
except OSError:
    pass
log = open(sys.argv[1], "ab")
options = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": log, "start_new_session": True}
print(subprocess.Popen(sys.argv[2:], **options).pid)
"""


class _Unfit(Exception):
    """For the user: why there is no daemon, and what to do."""


def ensure(told: dict[str, Any]) -> dict[str, Any]:
    """Sees that a daemon runs on this machine.

    Told are `cluster_id`, `address` (the machine's own), and of the manager `manager` (HOST:PORT), `version`
    (of its agentmgr) and `generation`; perhaps the node's `name`, and a `secret` to join with. Returns
    `{"unfit": REASON}`, or `{"wants_secret": True}` where a daemon has to be started and no secret was given,
    or `{"obeys": GENERATION}`, with `node_id`, where there is a newer manager than this, or `node_id` and
    `remarks` for the user.
    """
    try:
        return _ensured(told)
    except _Unfit as problem:
        return {"unfit": str(problem)}
    except OSError as error:
        return {"unfit": f"its daemon cannot be started: {error}"}


def directory_of(cluster_id: str, address: str) -> Path:
    """Of the daemon: homes may be shared by several machines, and a machine may be in several clusters."""
    state = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    return Path(os.path.expanduser(state), "agentmgr", "nodes", cluster_id, address)


def _ensured(told: dict[str, Any]) -> dict[str, Any]:
    directory = directory_of(told["cluster_id"], told["address"])
    directory.mkdir(mode=0o711 if os.geteuid() == 0 else 0o700, parents=True, exist_ok=True)
    pid = running(directory)
    installed, newer = _asked(told, directory)
    if newer is not None:
        return {"node_id": _node_id(directory), "obeys": newer}
    started = _started(directory)
    if pid is not None and started.get("pid") == pid and started["version"] != installed:
        _end(pid)  # what it runs lives on, and the next one takes it over
        pid = None
    if pid is None:
        if not told.get("secret"):
            return {"wants_secret": True}
        try:
            _start(told, directory, installed)
        except _Unfit as problem:
            other = _other_version(told, installed)
            raise _Unfit(f"{problem}; it {other[0]}" if other else str(problem)) from None
    return {"node_id": _node_id(directory), "remarks": _remarks(told, directory, installed)}


def running(directory: Path) -> int | None:
    """The pid of the daemon that runs there.

    Its lock is not tried for that, which might keep it from one that starts just now.
    """
    lock = directory / "lock"
    try:
        pid = int(lock.read_text())
        wanted = lock.stat()
        for fd in os.listdir(f"/proc/{pid}/fd"):
            with suppress(OSError):
                if os.path.samestat(os.stat(f"/proc/{pid}/fd/{fd}"), wanted):
                    return pid
    except (OSError, ValueError):
        pass
    return None


def _node_id(directory: Path) -> str:
    node_id: str = json.loads((directory / "node.json").read_text())["node_id"]
    return node_id


def _asked(told: dict[str, Any], directory: Path) -> tuple[str, Any]:
    """The version of agentmgr that is installed here; and the generation of a newer manager, if there is one.
    Else the node follows this one from now on.
    """
    words = {"directory": str(directory), "manager": told["manager"]}
    if (directory / "node.json").exists():
        words["generation"] = told["generation"]
    command = [sys.executable, "-P", "-c", _ASK, json.dumps(words)]
    pip = f"{sys.executable} -m pip install 'agentmgr-trio[ray]=={told['version']}'"
    try:
        asked = subprocess.run(
            command, capture_output=True, text=True, timeout=_ASK_S, cwd="/", env=_environment()
        )
    except subprocess.TimeoutExpired:
        raise _Unfit(f"it is too busy: {sys.executable} did not answer within {_ASK_S:g} s") from None
    if asked.returncode == 0:
        version, newer = json.loads(asked.stdout.strip().splitlines()[-1])
        return version, newer
    why = (asked.stderr.strip() or f"exit code {asked.returncode}").splitlines()[-1]
    if why.startswith("ModuleNotFoundError"):
        raise _Unfit(f"its Python lacks agentmgr ({why.partition(': ')[2]}): `{pip}` there")
    raise _Unfit(f"agentmgr cannot be used there: {why}")


def _raylet() -> int:
    return int(os.environ.get("RAY_RAYLET_PID") or os.getppid())


def _nice(pid: int) -> int:
    try:
        return os.getpriority(os.PRIO_PROCESS, pid)
    except ProcessLookupError:
        return 0


def _usual_nice() -> int:
    """That of Ray itself."""
    return _nice(_raylet())


def _environment() -> dict[str, str]:
    """What `ray start` got there, and not what Ray has made of it for its workers: they have
    `OMP_NUM_THREADS=1`, a debugger of Ray's, and the token of its cluster, and an agent would have them too.
    """
    try:
        words = Path(f"/proc/{_raylet()}/environ").read_bytes()
        pairs = [word.partition("=") for word in os.fsdecode(words).split("\0") if "=" in word]
        found = {name: value for name, _, value in pairs}
    except OSError:
        found = dict(os.environ)
    if "LD_PRELOAD" not in os.environ:  # the raylet's is its own memory allocator
        found.pop("LD_PRELOAD", None)
    # Nor is it one of an agent that has started Ray.
    return {name: it for name, it in found.items() if not name.startswith(("RAY_", "AGENTMGR_INSTANCE_"))}


def _start(told: dict[str, Any], directory: Path, version: str) -> None:
    log = directory / "node.log"
    with suppress(FileNotFoundError):
        if log.stat().st_size > _MOST_LOG_BYTES:
            log.replace(directory / "node.log.1")
    command = [sys.executable, "-P", "-m", "agentmgr", "node", "--join", told["manager"]]
    command += ["--directory", str(directory), "--address", told["address"]]
    command += ["--unneeded-after", str(_UNNEEDED_S)]
    if told.get("name") and not (directory / "node.json").exists():
        command += ["--name", told["name"]]
    name = f"@agentmgr-{token_hex(8)}"
    environment = {**_environment(), "AGENTMGR_JOIN_SECRET": told["secret"], "NOTIFY_SOCKET": name}
    with closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)) as ready:
        ready.bind("\0" + name[1:])
        starter = [sys.executable, "-P", "-c", _STARTER, str(_usual_nice()), str(log), *command]
        old = os.umask(0o077)
        try:
            said = subprocess.run(starter, env=environment, cwd=directory, check=True, stdout=subprocess.PIPE)
        finally:
            os.umask(old)
        pid = int(said.stdout)
        try:
            pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            raise _Unfit(f"its daemon has ended: {_last_words(log)}") from None
        try:
            found, _, _ = select.select([ready.fileno(), pidfd], [], [], _START_S)
            is_ready = ready.fileno() in found
        finally:
            os.close(pidfd)
    if not is_ready:
        if pid_lives := not found:
            os.kill(pid, signal.SIGKILL)
        took = f"has not joined within {_START_S:g} s" if pid_lives else "has ended"
        raise _Unfit(f"its daemon {took}: {_last_words(log)}")
    (directory / "started.json").write_text(json.dumps({"pid": pid, "version": version}))


def _started(directory: Path) -> dict[str, Any]:
    """`pid` and `version` of the last daemon that was started from here; another one may run."""
    try:
        found: dict[str, Any] = json.loads((directory / "started.json").read_text())
    except (OSError, ValueError):
        return {}
    return found


def _end(pid: int) -> None:
    with suppress(ProcessLookupError):
        pidfd = os.pidfd_open(pid)
        try:
            os.kill(pid, signal.SIGTERM)
            if not select.select([pidfd], [], [], _END_S)[0]:
                os.kill(pid, signal.SIGKILL)
                select.select([pidfd], [], [], _END_S)
        finally:
            os.close(pidfd)


def _last_words(log: Path) -> str:
    with suppress(OSError):
        lines = log.read_bytes()[-4096:].decode(errors="replace").split("\n")
        if said := [line.strip() for line in lines if line.strip()]:
            return said[-1][-500:]
    return f"it has said nothing in {log}"


def _other_version(told: dict[str, Any], installed: str) -> list[str]:
    if installed == told["version"]:
        return []
    return [
        f"has agentmgr {installed}, and the manager {told['version']}: "
        f"`{sys.executable} -m pip install 'agentmgr-trio[ray]=={told['version']}'` there"
    ]


def _remarks(told: dict[str, Any], directory: Path, installed: str) -> list[str]:
    remarks = _other_version(told, installed)
    pid = running(directory)
    nice = _usual_nice() if pid is None else _nice(pid)
    if nice > _usual_nice():
        remarks.append(
            f"runs its instances at nice {nice}, behind all else there: start Ray with RAY_worker_niceness=0"
        )
    return remarks
