"""How do services run on several machines? Here three addresses of this one stand for three machines.

pip install '.[cluster]'
python examples/cluster/cluster.py              # in one terminal; Ctrl-C ends all of it
cd cluster-demo                                 # in another one
agentmgr nodes
agentmgr status everywhere
agentmgr chat ws://127.0.0.3:9090/services/near
kill -9 PID                                     # of any of the three: no client notices; it is started again

pip install '.[ray]'
python examples/cluster/cluster.py --ray        # the same on Ray, which reserves CPUs and GPUs
cd ray-demo
agentmgr status model                           # its instances have GPUs, of the three that b claims to have
agentmgr scale model 4                          # and the fourth one waits

It prints each command that it runs, and its PID. On machines of your own type these, each on its machine,
without what is about addresses and directories, and give the manager `--cluster-host ADDRESS`.
"""

import argparse
import os
import secrets
import shlex
import signal
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

import trio

HERE = Path(__file__).resolve().parent
AGENTMGR = (sys.executable, "-m", "agentmgr")
RAY = (sys.executable, "-m", "ray.scripts.scripts")


async def run(*words):
    """A command on the machine of the manager; what it prints."""
    print("a$", shlex.join(["agentmgr", *words]), flush=True)
    done = await trio.run_process([*AGENTMGR, *words], capture_stdout=True, start_new_session=True)
    return done.stdout.decode()


async def keep(machine, program, *words, ready, task_status):
    """A command that serves: started again if it is killed, as systemd does. Ready once it prints `ready`."""
    command = [*program, *words]
    # In a session of its own: a Ctrl-C is for this program, which ends them in order.
    options = {"stdout": subprocess.PIPE, "check": False, "deliver_cancel": end, "start_new_session": True}
    killed = True
    while killed:
        async with trio.open_nursery() as nursery:
            process = await nursery.start(partial(trio.run_process, command, **options))
            name = "agentmgr" if program is AGENTMGR else "ray"
            print(f"{machine}$", shlex.join([name, *words]), f"# PID {process.pid}", flush=True)
            said = b""
            async for data in process.stdout:
                said += data
                if ready.encode() in said:
                    task_status.started()
                    task_status = trio.TASK_STATUS_IGNORED
        if task_status is not trio.TASK_STATUS_IGNORED:
            print(said.decode(), file=sys.stderr)
            raise subprocess.CalledProcessError(process.returncode, command)
        killed = process.returncode < 0


async def end(process):
    process.terminate()  # in order, however long it takes


async def joined(nursery, port, cluster_port):
    """The nodes join by themselves."""
    manager = ["--gateways", "all", "--proxy-port", f"{port}", "--cluster-port", f"{cluster_port}"]
    words = ["daemon", "--cluster", "joined", *manager]
    await nursery.start(partial(keep, "a", AGENTMGR, *words, ready="gateway at"))
    for number, name in enumerate("bc", 2):
        secret = f"join-{name}"
        await run("nodes", "invite", "--file", secret)
        join = ["--join", f"localhost:{cluster_port}", "--secret-file", secret]
        here = ["--address", f"127.0.0.{number}", "--directory", f"node-{name}"]
        words = ["node", "--name", name, "--label", f"zone={name}", *join, *here]
        await nursery.start(partial(keep, name, AGENTMGR, *words, ready="node "))


async def by_ray(nursery, port, cluster_port, ray_port, sessions):
    """Each machine has Ray, and the manager starts a node daemon wherever Ray is."""
    os.environ |= {
        "RAY_AUTH_MODE": "token",  # else whoever reaches Ray's ports runs code on all machines
        "RAY_AUTH_TOKEN": secrets.token_hex(24),
        "RAY_worker_niceness": "0",  # else agents run at nice 15
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",  # all that runs has ended before Ray does
        "XDG_STATE_HOME": str(await trio.Path().absolute()),  # the daemons' directories are below it
    }
    ray_at = f"127.0.0.2:{ray_port}"
    small = ["--num-cpus", "2", "--object-store-memory", "80000000"]
    small += ["--min-worker-port", "0", "--max-worker-port", "0"]  # any that are free
    head = ["--head", "--port", f"{ray_port}", "--temp-dir", sessions, "--include-dashboard=false"]
    for number, name in enumerate("abc", 2):
        where = head if name == "a" else ["--address", ray_at, "--num-gpus", "3" if name == "b" else "0"]
        here = ["--node-ip-address", f"127.0.0.{number}", "--labels", f"node={name},zone={name}", *small]
        words = ["start", *where, *here, "--disable-usage-stats", "--block"]
        await nursery.start(partial(keep, name, RAY, *words, ready="block forever"))
    manager = ["--gateways", "all", "--proxy-port", f"{port}", "--cluster-port", f"{cluster_port}"]
    manager += ["--ray-address", ray_at, "--cluster-host", "127.0.0.2"]
    await nursery.start(
        partial(keep, "a", AGENTMGR, "daemon", "--cluster", "ray", *manager, ready="gateway at")
    )
    while (await run("nodes")).count(" linked ") < 3:  # noqa: ASYNC110 (the manager is another process)
        await trio.sleep(1)  # a daemon that the manager has Ray start has yet to join


def end_daemons():
    """Ray ends none of them: they outlive it, with all that they run."""
    for lock in Path().glob("agentmgr/nodes/*/*/lock"):
        os.kill(int(lock.read_text()), signal.SIGTERM)


async def main(options, sessions):
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:
            if options.ray:
                await by_ray(nursery, options.port, options.cluster_port, options.ray_port, sessions)
            else:
                await joined(nursery, options.port, options.cluster_port)
            print(await run("apply", f"{HERE / 'services.toml'}"))
            if options.ray:
                print(await run("apply", f"{HERE / 'gpus.toml'}"))
            print(await run("nodes"))
            print(f"clients connect to ws://localhost:{options.port}/services/everywhere", flush=True)
            await anext(signals)
            await run("shutdown")  # of the manager, and of all that runs on its nodes
            end_daemons()
            nursery.cancel_scope.cancel()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--ray", action="store_true", help="by Ray; else the nodes join by themselves")
    parser.add_argument("--port", type=int, default=9090, help="of the gateways")
    parser.add_argument("--cluster-port", type=int, default=9443, help="where nodes reach the manager")
    parser.add_argument("--ray-port", type=int, default=6399, help="of Ray's head")
    parser.add_argument("--directory", type=Path, help="where all of it is; cluster-demo, or ray-demo")
    options = parser.parse_args()
    directory = options.directory or Path("ray-demo" if options.ray else "cluster-demo")
    directory.mkdir(exist_ok=True)
    os.chdir(directory)
    with tempfile.TemporaryDirectory(prefix="ray-") as sessions:  # of Ray: the path has to be short
        try:
            trio.run(main, options, sessions)
        except* subprocess.CalledProcessError:  # it has said why
            sys.exit(1)
