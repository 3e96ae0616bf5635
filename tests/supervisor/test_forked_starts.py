"""A hosted agent that was forked is as one that was spawned, and quicker there.

Each service here is an agent file with the real host, under a supervisor with a fork server of its own.
"""

from __future__ import annotations

import json
import os
import signal

import pytest

from agentmgr.models import DesiredStatus, ServiceConfig, ServiceSpec
from agentmgr.supervisor.procfs import token
from tests.conditions import until

# What a process can know of itself. Taken when the agent file is imported: the first line of the author's.
FACTS = r"""
import gc, json, locale, os, random, resource, signal, sys, threading, time, warnings

def read(name):
    with open(f"/proc/self/{name}", "rb") as file:
        return file.read().decode(errors="surrogateescape")

status = dict(line.split(":\t", 1) for line in read("status").splitlines())
stat = read("stat").rpartition(")")[2].split()
facts = {
    "cmdline": read("cmdline").split("\0"),
    "environ": read("environ").split("\0"),
    "status": {k: status[k] for k in ("Name", "Umask", "Uid", "Gid", "Groups", "Threads", "SigBlk", "SigIgn",
        "SigCgt", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp")},
    "limits": read("limits"),
    "oom": read("oom_score_adj"),
    "descriptors": sorted(
        (os.readlink(f"/proc/self/fd/{n}").split(":")[0], os.get_inheritable(int(n)))
        for n in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{n}")
    ),
    "leads": (os.getsid(0) == os.getpid(), os.getpgrp() == os.getpid()),
    "parent": os.getppid(), "terminal": stat[4], "nice": os.nice(0),
    "cwd": os.getcwd(), "exe": os.readlink("/proc/self/exe"),
    "flags": str(sys.flags), "path": sys.path, "argv": sys.argv, "orig_argv": sys.orig_argv,
    "executable": sys.executable, "prefix": sys.prefix, "xoptions": sys._xoptions,
    "main": sys.modules["__main__"].__file__,
    "signals": {str(n): str(signal.getsignal(n)).partition(" at ")[0] for n in signal.valid_signals()},
    "mask": [int(n) for n in signal.pthread_sigmask(signal.SIG_BLOCK, ())],
    "variables": dict(os.environ), "locale": locale.setlocale(locale.LC_ALL), "time zone": time.tzname,
    "gc": (gc.isenabled(), gc.get_threshold()), "warnings": str(warnings.filters),
    "threads": [thread.name for thread in threading.enumerate()],
    "native": threading.get_native_id() == os.getpid() == threading.main_thread().native_id,
    "streams": [
        (each.encoding, each.errors, each.line_buffering, each.isatty())
        for each in (sys.stdin, sys.stdout, sys.stderr)
    ],
    "hash": hash("agentmgr") if os.environ.get("PYTHONHASHSEED") else 0,
}
chance = [random.random() for _ in range(3)]
with open(os.environ["FACTS"], "w") as file:
    file.write(json.dumps(facts) + "\n" + json.dumps(chance))

def create_agent():
    async def answer(message):
        return "echo: " + message
    return answer
"""


@pytest.fixture
def agent(tmp_path):
    """Makes services of an agent file."""

    def make(source=FACTS, name="svc", **config):
        file = tmp_path / f"{name}.py"
        file.write_text(source)
        config = {"restart_delay": 0.0, **config}
        return ServiceSpec(
            name, ServiceConfig(agent_factory_path=str(file), **config), desired_status=DesiredStatus.RUNNING
        )

    return make


@pytest.fixture
def odd_manager():
    """This process, with what a child inherits set to what is not usual."""
    mask = os.umask(0o027)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    yield
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR2})
    os.umask(mask)


def differing(forked, spawned):
    """The facts that differ; of lists and dicts, what differs in them."""
    found = {}
    for key, value in spawned.items():
        ours = forked[key]
        if ours != value and isinstance(value, list):
            ours, value = [x for x in ours if x not in value], [x for x in value if x not in ours]
        elif ours != value and isinstance(value, dict):
            names = [name for name in {*ours, *value} if ours.get(name) != value.get(name)]
            ours, value = [{name: each.get(name) for name in names} for each in (ours, value)]
        if ours != value:
            found[key] = (ours, value)
    return found


async def test_a_forked_child_is_as_a_spawned_one_field_by_field(
    supervisor, agent, tmp_path, odd_manager, monkeypatch
):
    (tmp_path / "authors").mkdir()
    monkeypatch.setenv("ONLY_OF_THE_MANAGER", "1")
    environment = {
        "FACTS": str(tmp_path / "facts"),
        "TZ": "Asia/Kathmandu",
        "LC_ALL": "C.UTF-8",
        "PYTHONHASHSEED": "7",
        "PYTHONPATH": str(tmp_path / "authors"),
        "ODD": "a\udc80b=c\n",
    }
    spec = agent(
        env=environment, cwd=str(tmp_path), on_manager_death="die", max_open_files=100, turn_timeout=9.0,
        preload="colorsys",
    )  # fmt: skip
    written = []
    async with supervisor() as s:
        await s.start(spec)
        assert [it.forks for it in s.fork_servers()] == [1]
        assert token(s.instances()[0].pid)
        written.append((tmp_path / "facts").read_text())
        await until(lambda: s.preloaded(spec.service_id) is not None)
        await s.stop(spec.service_id)
        await s.start(spec)
        assert [it.forks for it in s.fork_servers() if it.imported] == [1], "by a second stage"
        written.append((tmp_path / "facts").read_text())
    async with supervisor(fork_server=False) as s:
        await s.start(spec)
        assert s.fork_servers() == ()
        written.append((tmp_path / "facts").read_text())
    found = []
    for both in written:
        text, chance = both.split("\n")
        variables = json.loads(text)["variables"]
        for name in ("AGENTMGR_INSTANCE_TOKEN", "AGENTMGR_INSTANCE_ID", "PORT"):
            text = text.replace(variables[name], name)
        facts = json.loads(text)
        for words in (facts["cmdline"], facts["argv"], facts["orig_argv"]):
            for option in ("--fd", "--lifeline-fd"):  # their numbers are the first ones in a forked child
                words[words.index(option) + 1] = "N"
        facts["environ"] = [it for it in facts["environ"] if not it.startswith(("PWD=", "_="))]
        for name in ("PWD", "_"):  # of the shell that holds a spawned one back until its limits are set
            facts["variables"].pop(name, None)
        found.append((facts, chance))
    (forked, _), (preloaded, _), (spawned, _) = found
    assert differing(forked, spawned) == {}
    assert differing(preloaded, spawned) == {}
    assert forked["variables"]["ONLY_OF_THE_MANAGER"] == "1"
    assert len({chance for _, chance in found}) == 3
