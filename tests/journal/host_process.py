"""A host with one session, as a process to be stopped and killed.

Says `held` once it has claimed or made the session, or `elsewhere`; then the number of each event that is
committed; `lost` when another one holds the session. With a number as STOP_AT in its environment it stops, as
SIGSTOP does, once it has committed so many: not within a transaction, which would keep all others waiting.
"""

import math
import os
import signal
import sys

import trio
from attrs import evolve

from agentmgr.journal import redis, sqlite
from agentmgr.journal.journal import Frame, HeldElsewhere, SessionRecord, SessionSnapshot


def tell(word):
    os.write(1, f"{word}\n".encode())


class Copy:
    def __init__(self, held):
        self.held, self.said, self.is_lost = held, held.loaded.record.last_seq, trio.Event()
        self.stop_at = float(os.environ.get("STOP_AT", "inf"))
        held.keep(self)

    def committed(self, seq):
        tell(seq)
        if seq >= self.stop_at:
            self.stop_at = math.inf
            os.kill(os.getpid(), signal.SIGSTOP)

    def lost(self):
        tell("lost")
        self.is_lost.set()

    def snapshot(self):
        return SessionSnapshot(evolve(self.held.loaded.record, last_seq=self.said), (), ())

    def say(self, text):
        self.said += 1
        self.held.write(Frame(self.said, 0, b"%d of %s" % (self.said, text.encode())))


def open_journal(where, instance_id):
    """`where`: a file, or the URL of a Redis and a service there."""
    url, at, service_id = where.partition("#")
    if not at:
        return sqlite.open_journal(where, instance_id)
    return redis.open_journal(url, service_id, instance_id, run=os.environ["RUN"])


async def main(where, instance_id, session_id):
    async with open_journal(where, instance_id) as journal:
        sys.stdin.readline()  # all begin at once
        try:
            held = await journal.take_up(session_id)
        except HeldElsewhere:
            tell("elsewhere")
            return
        copy = Copy(held or await journal.create(SessionRecord(session_id, None, 1.0, 1.0)))
        tell("held")
        while not copy.is_lost.is_set():
            for _ in range(copy.said % 5 + 1):
                copy.say(instance_id)
            await trio.sleep(0.0005)


if __name__ == "__main__":
    trio.run(main, *sys.argv[1:])
