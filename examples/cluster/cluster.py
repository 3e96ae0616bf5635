"""How do services run on several machines? Here three addresses of this one stand for three machines.

pip install '.[cluster]'
python examples/cluster/cluster.py              # in one terminal; Ctrl-C ends all of it
cd cluster-demo                                 # in another one
agentmgr nodes
agentmgr status everywhere
agentmgr chat ws://127.0.0.3:9090/services/near
kill -9 PID                                     # of any of the three: no client notices; it is started again

It prints each command that it runs, and its PID. On machines of your own type these, each on its machine,
without --address and --directory, and give the manager `--cluster-host ADDRESS`.
"""

import argparse
import os
import shlex
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import trio

HERE = Path(__file__).resolve().parent
AGENTMGR = (sys.executable, "-m", "agentmgr")


async def run(*words):
    """A command on the machine of the manager; what it prints."""
    print("a$", shlex.join(["agentmgr", *words]), flush=True)
    done = await trio.run_process([*AGENTMGR, *words], capture_stdout=True, start_new_session=True)
    return done.stdout.decode()


async def keep(machine, *words, ready, task_status):
    """A command that serves: started again if it is killed, as systemd does. Ready once it prints `ready`."""
    command = [*AGENTMGR, *words]
    # In a session of its own: a Ctrl-C is for this program, which ends them in order.
    options = {"stdout": subprocess.PIPE, "check": False, "deliver_cancel": end, "start_new_session": True}
    killed = True
    while killed:
        async with trio.open_nursery() as nursery:
            process = await nursery.start(partial(trio.run_process, command, **options))
            print(f"{machine}$", shlex.join(["agentmgr", *words]), f"# PID {process.pid}", flush=True)
            said = b""
            async for data in process.stdout:
                said += data
                if ready.encode() in said:
                    task_status.started()
                    task_status = trio.TASK_STATUS_IGNORED
        if task_status is not trio.TASK_STATUS_IGNORED:
            raise subprocess.CalledProcessError(process.returncode, command)
        killed = process.returncode < 0


async def end(process):
    process.terminate()  # in order, however long it takes


async def main(port, cluster_port):
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:
            words = ["--gateways", "all", "--proxy-port", f"{port}", "--cluster-port", f"{cluster_port}"]
            await nursery.start(
                partial(keep, "a", "daemon", "--cluster", "joined", *words, ready="gateway at")
            )
            for number, name in enumerate("bc", 2):
                secret = trio.Path(f"join-{name}")
                await secret.write_text(await run("nodes", "invite"))
                join = ["--join", f"localhost:{cluster_port}", "--secret-file", f"{secret}"]
                here = ["--address", f"127.0.0.{number}", "--directory", f"node-{name}"]
                words = ["node", "--name", name, "--label", f"zone={name}", *join, *here]
                await nursery.start(partial(keep, name, *words, ready="node "))
            print(await run("apply", f"{HERE / 'services.toml'}"))
            print(await run("nodes"))
            print(f"clients connect to ws://localhost:{port}/services/everywhere", flush=True)
            await anext(signals)
            await run("shutdown")  # of the manager, and of all that runs on its nodes
            nursery.cancel_scope.cancel()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=9090, help="of the gateways")
    parser.add_argument("--cluster-port", type=int, default=9443, help="where nodes reach the manager")
    parser.add_argument("--directory", type=Path, default=Path("cluster-demo"), help="where all of it is")
    options = parser.parse_args()
    options.directory.mkdir(exist_ok=True)
    os.chdir(options.directory)
    try:
        trio.run(main, options.port, options.cluster_port)
    except* subprocess.CalledProcessError:  # it has said why
        sys.exit(1)
