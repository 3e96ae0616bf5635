"""Hosts that are killed, stopped, or want the same session at once. Real processes, one journal."""

import os
import random
import signal
import subprocess
import sys
import warnings
from contextlib import ExitStack
from pathlib import Path

import trio

from agentmgr.journal import holders

SCRIPT = Path(__file__).parent / "host_process.py"
KILLS = int(os.environ.get("JOURNAL_KILLS", "6"))


class Process:
    def __init__(self, hosts, instance_id, session_id="ses_1", **environment):
        where, more = hosts.place(instance_id)
        command = [sys.executable, str(SCRIPT), where, instance_id, session_id]
        environment |= more | os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
        self.popen = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.popen.kill()
        self.popen.communicate()

    def go(self):
        self.popen.stdin.write("go\n")
        self.popen.stdin.flush()

    def hears(self, wanted):
        """Reads on to the word, or to a number as large."""
        for line in self.popen.stdout:
            word = line.strip()
            if word == wanted or (word.isdigit() and isinstance(wanted, int) and int(word) >= wanted):
                return
        raise AssertionError(f"it ended before it said {wanted}")

    def kill(self):
        """Returns the last number that it said, or 0."""
        self.popen.kill()
        heard = self.popen.stdout.read()
        return max((int(word) for word in heard.split() if word.isdigit()), default=0)


async def events(hosts):
    """The numbers of all events, and who said each."""
    found = await hosts.events("ses_1")
    return [frame.seq for frame in found], [frame.line.decode().split() for frame in found]


async def test_what_was_called_back_as_committed_is_there_after_a_kill(any_hosts):
    seed = random.randrange(2**32)
    print("seed", seed)
    chance = random.Random(seed)
    for number in range(KILLS):
        with Process(any_hosts, f"inst_{number}") as process:
            process.go()
            process.hears("held")
            await trio.sleep(chance.random() * 0.2)
            committed = process.kill()
        await any_hosts.ended(f"inst_{number}")
        numbers, said = await events(any_hosts)
        assert len(numbers) >= committed
        assert numbers == list(range(1, len(numbers) + 1))
        assert [int(words[0]) for words in said] == numbers
    assert len(numbers) > 0


async def test_of_several_that_want_a_session_at_once_one_has_it(any_hosts):
    with Process(any_hosts, "inst_0") as first:
        first.go()
        first.hears(5)
    await any_hosts.ended("inst_0")
    for attempt in range(3):
        with ExitStack() as stack:
            several = [stack.enter_context(Process(any_hosts, f"inst_{attempt}_{n}")) for n in range(3)]
            for process in several:
                process.go()
            answers = [process.popen.stdout.readline().strip() for process in several]
            assert sorted(answers) == ["elsewhere", "elsewhere", "held"]
        for n in range(3):
            await any_hosts.ended(f"inst_{attempt}_{n}")


def test_a_child_that_a_host_forks_does_not_keep_its_lock(tmp_path):
    with ExitStack() as stack:
        stack.enter_context(holders.living(tmp_path, "inst_1"))
        (lock,) = tmp_path.glob("*.lock")
        ours, childs = os.pipe(), os.pipe()
        with warnings.catch_warnings(action="ignore"):  # of the threads that this process may have
            child = os.fork()
        if not child:
            os.write(childs[1], b"!")
            os.read(ours[0], 1)
            os._exit(0)
        os.read(childs[0], 1)
        kept = tmp_path / "kept"
        os.link(lock, kept)
    assert not holders._is_locked(kept)
    os.write(ours[1], b"!")
    os.waitpid(child, 0)


async def test_a_holder_that_was_stopped_while_its_session_moved_writes_nothing_more(any_hosts):
    with Process(any_hosts, "inst_1", STOP_AT="20") as stopped:
        stopped.go()
        await trio.to_thread.run_sync(os.waitpid, stopped.popen.pid, os.WUNTRACED)
        with Process(any_hosts, "inst_2") as refused:
            refused.go()
            refused.hears("elsewhere")
        await any_hosts.revoke("inst_1")
        with Process(any_hosts, "inst_2") as holder:
            holder.go()
            holder.hears("held")
            stopped.popen.send_signal(signal.SIGCONT)
            stopped.hears("lost")
            stopped.popen.wait()
    numbers, said = await events(any_hosts)
    assert numbers == list(range(1, len(numbers) + 1))
    writers = [words[-1] for words in said]
    assert writers == sorted(writers)
    assert set(writers) == {"inst_1", "inst_2"}
