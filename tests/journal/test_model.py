"""Two hosts and two sessions against a model: whatever they do in whatever order, a session has one holder,
and has in it what that one was called back for, and nothing of the other.
"""

import tempfile
from pathlib import Path

import trio
from hypothesis import given
from hypothesis import strategies as st

from agentmgr.journal.journal import HeldElsewhere
from tests.redis_server import NEEDS_REDIS

HOSTS = st.sampled_from(["inst_a", "inst_b"])
SESSIONS = st.sampled_from(["ses_1", "ses_2"])
STEPS = st.one_of(
    st.tuples(st.just("open"), HOSTS, SESSIONS),
    st.tuples(st.just("say"), HOSTS, SESSIONS),
    st.tuples(st.just("say"), HOSTS, SESSIONS),
    st.tuples(st.just("settle"), HOSTS, SESSIONS),
    st.tuples(st.just("release"), HOSTS, SESSIONS),
    st.tuples(st.just("kill"), HOSTS, SESSIONS),
    st.tuples(st.just("revoke"), HOSTS, SESSIONS),
    st.tuples(st.just("rob"), HOSTS, SESSIONS),
)


class World:
    def __init__(self, hosts, nursery):
        self.hosts, self.nursery = hosts, nursery
        self.journals, self.ends = {}, {}
        self.copies = {}  # by host and session: as the host sees it
        self.holder = {}  # by session: as it is
        self.revoked = set()
        self.said = {"ses_1": [], "ses_2": []}  # by the rightful holder
        self.committed = {"ses_1": 0, "ses_2": 0}
        self.count = 0

    async def start(self, host):
        self.journals[host] = await self.nursery.start(self.live, host)
        self.revoked.discard(host)

    async def live(self, host, task_status):
        end, ended = self.ends[host] = trio.Event(), trio.Event()
        async with self.hosts.open(host) as journal:
            task_status.started(journal)
            await end.wait()
        ended.set()

    async def end(self, host):
        end, ended = self.ends[host]
        end.set()
        await ended.wait()

    async def open(self, host, session):
        if (host, session) in self.copies:
            return
        holder = self.holder.get(session)
        try:
            copy = await self.hosts.take_up(self.journals[host], session)
        except HeldElsewhere as error:
            refused_for = error.holder
        else:
            refused_for = None
        assert refused_for == (None if holder in self.revoked else holder)
        if refused_for is not None:
            return
        if copy is None:
            assert self.committed[session] == 0
            copy = await self.hosts.create(self.journals[host], session)
        found = [frame.line for frame in copy.frames]
        assert found == self.said[session][: len(found)]
        assert len(found) >= self.committed[session]
        self.said[session], self.committed[session] = found, len(found)
        self.copies[host, session], self.holder[session] = copy, host
        if not found:  # it has no row yet
            self.say(host, session)
            await self.settle(host, session)

    def say(self, host, session):
        copy = self.copies.get((host, session))
        if copy is None:
            return
        for _ in range(self.count % 3 + 1):
            self.count += 1
            copy.say(f"{host} {self.count}")
            if self.holder.get(session) == host:
                self.said[session].append(copy.frames[-1].line)

    async def settle(self, host, session):
        copy = self.copies.get((host, session))
        if copy is None:
            return
        await copy.held.settled()
        assert self.journals[host].degraded is None
        if self.holder.get(session) == host:
            assert copy.visible == copy.last_seq
            self.committed[session] = len(self.said[session])
        elif copy.last_seq > copy.visible:
            assert copy.is_lost
            del self.copies[host, session]

    async def release(self, host, session):
        copy = self.copies.pop((host, session), None)
        if copy is None:
            return
        await copy.held.release()
        if self.holder.get(session) == host:
            assert copy.visible == copy.last_seq
            self.committed[session] = len(self.said[session])
            self.holder[session] = None

    async def kill(self, host, _):
        self.journals[host]._pending.clear()  # what its process had not written yet
        await self.end(host)
        self.copies = {key: copy for key, copy in self.copies.items() if key[0] != host}
        self.holder = {session: None if held == host else held for session, held in self.holder.items()}
        await self.start(host)

    async def revoke(self, host, _):
        await self.hosts.revoke(host)
        self.revoked.add(host)

    async def rob(self, host, session):
        """It goes on as if nothing had happened."""
        await self.revoke(host, session)
        await self.open("inst_b" if host == "inst_a" else "inst_a", session)
        self.say(host, session)
        await self.settle(host, session)


async def live_through(hosts, steps):
    async with trio.open_nursery() as nursery:
        world = World(hosts, nursery)
        for host in ("inst_a", "inst_b"):
            await world.start(host)
        for step, host, session in steps:
            done = getattr(world, step)(host, session)
            if done is not None:
                await done
        for host in ("inst_a", "inst_b"):
            await world.end(host)
    async with hosts.open("inst_c") as journal:
        for session, said in world.said.items():
            held = await journal.take_up(session)
            found = [] if held is None else held.loaded.frames
            assert [frame.line for frame in found] == said[: len(found)]
            assert len(found) >= world.committed[session]


CASES = st.lists(STEPS, min_size=10, max_size=50)


@given(CASES)
def test_a_session_has_one_holder_and_all_that_was_committed(hosts_at, tmp_path_factory, steps):
    with tempfile.TemporaryDirectory(dir=tmp_path_factory.getbasetemp()) as directory:
        trio.run(live_through, hosts_at(Path(directory) / "sessions" / "svc_1.db"), steps)


@NEEDS_REDIS
@given(CASES)
def test_so_it_is_in_redis(redis_hosts_at, redis_server, steps):
    trio.run(live_through, redis_hosts_at(redis_server), steps)
