"""Whatever happens to Redis, sessions go on, and are in it again once it can be written. Real servers."""

import time
from contextlib import ExitStack, asynccontextmanager, contextmanager

import pytest
import trio

from agentmgr.errors import InvalidRequest, StorageError
from agentmgr.journal import redis, redis_connection, redis_keys
from agentmgr.journal.journal import Accepted, Asked, HeldElsewhere, Question, TurnRecord, Unreachable, Used
from agentmgr.journal.redis_connection import Redis, RedisAddress, RedisTrouble
from agentmgr.journal.redis_look import look_at
from agentmgr.journal.redis_scripts import CLAIM, COMMIT, WHOLE
from tests.journal.conftest import RedisHosts
from tests.journal.test_faults import TURN, degraded, until, well_again
from tests.journal.test_links import Link, write
from tests.redis_server import NEEDS_REDIS, running_redis

pytestmark = NEEDS_REDIS
LOGGED = ("--appendonly", "yes", "--appendfsync", "always")


@contextmanager
def own_hosts(*options, **of_hosts):
    with running_redis(*options) as server:
        yield RedisHosts(server, **of_hosts)


@asynccontextmanager
async def restarted(server):
    """The block runs while it is away."""
    server.kill()
    yield
    await trio.to_thread.run_sync(server.start)


async def test_killed_and_started_again_it_holds_up_a_turn_and_loses_nothing():
    with own_hosts(*LOGGED, patience_s=30) as hosts:
        async with hosts.one() as (journal, copy):
            copy.held.write(Accepted(TURN))
            copy.say("one", turn=1)
            await copy.held.settled()
            async with restarted(hosts.server):
                copy.say("two", "three", turn=1)
                await trio.sleep(0.1)
                assert (copy.visible, journal.degraded) == (1, None)
            await copy.held.settled()
            assert (copy.visible, journal.degraded) == (3, None)
            assert [it.seq for it in await copy.held.frames(1, 9, max_bytes=1000)] == [1, 2, 3]


@pytest.mark.parametrize("has_snapshot", [False, True])
async def test_what_it_lost_at_its_restart_is_written_again_before_anything_else(has_snapshot, caplog):
    """It has nothing on disk, or an older state. No event goes to a client meanwhile, and no host takes over
    a session.
    """
    with own_hosts(patience_s=30) as hosts:
        async with hosts.one() as (journal, copy), hosts.open("inst_2") as other:
            second, link_copy = await hosts.create(other, "ses_2", owner="ann", name="plans"), Link()
            link = journal.keep_link("con_1", link_copy)
            await write(link, link_copy, "before")
            if has_snapshot:
                hosts.server("SAVE")
            copy.held.write(Accepted(TURN), Asked(Question("ask_1", "{}", 3.0)))
            copy.turns[1], copy.questions["ask_1"] = TURN, Question("ask_1", "{}", 3.0)
            for one in (copy, second):
                one.say("one", "two")
                await one.held.settled()
            async with restarted(hosts.server):
                copy.say("three")
                link_copy.text = "after"
                link.changed()
            await copy.held.settled()
            await link.settled()
            assert (copy.visible, journal.degraded) == (3, None)
            assert not copy.is_lost
            assert not link_copy.is_lost
            await until(lambda: caplog.text.count("written anew") == 2)
            second.say("three")  # by a host that had nothing to write when it happened
            await second.held.settled()
            assert (second.visible, second.is_lost) == (3, False)
            assert [it.seq for it in await second.held.frames(1, 9, max_bytes=1000)] == [1, 2, 3]
            assert await journal.named("ann", "plans") == "ses_2"
            with pytest.raises(HeldElsewhere):
                await other.take_up("ses_1")
            await copy.held.release()
            found = (await other.take_up("ses_1")).loaded
            assert [turn.step_id for turn in found.turns] == ["turn_1"]
            assert [question.step_id for question in found.questions] == ["ask_1"]
            assert [frame.line for frame in found.frames] == [b"one", b"two", b"three"]
            assert await other.take_link("con_1") == "after"


async def test_emptied_under_its_hosts_it_is_filled_again(redis_hosts):
    async with redis_hosts.one() as (journal, copy):
        copy.say("one")
        await copy.held.settled()
        await redis_hosts.lose()
        copy.say("two")
        await copy.held.settled()
        assert journal.degraded is None
        assert [it.seq for it in await copy.held.frames(1, 9, max_bytes=1000)] == [1, 2]


async def test_what_was_done_before_its_answer_was_lost_is_not_done_twice(redis_server, monkeypatch, caplog):
    ask, lost = Redis.run, []

    async def lose_the_first(self, script, keys, *args):
        answer = await ask(self, script, keys, *args)
        if script in (COMMIT, CLAIM) and script not in lost:
            lost.append(script)
            raise RedisTrouble("it cannot be reached: as if it had ended just then", passes=True)
        return answer

    hosts = RedisHosts(redis_server, patience_s=30)
    async with hosts.one() as (_, copy):
        copy.say("zero")
        await copy.held.settled()
        monkeypatch.setattr(Redis, "run", lose_the_first)
        copy.say("one")
        copy.held.write(Used(1, 2))
        await copy.held.settled()
        await copy.held.release()
    async with hosts.open("inst_2") as journal:
        taken = await hosts.take_up(journal)
        taken.say("two")
        await taken.held.settled()
        record, frames = taken.record, await taken.held.frames(1, 9, max_bytes=100)
        assert (record.input_tokens, record.output_tokens) == (1, 2)
        assert [frame.line for frame in frames] == [b"zero", b"one", b"two"]
        assert not taken.is_lost
    assert lost == [COMMIT, CLAIM]
    assert "written anew" not in caplog.text


async def test_a_write_that_comes_late_or_whose_answer_is_lost_takes_no_session_away(
    redis_hosts, monkeypatch, caplog
):
    ask, sent, whole = Redis.run, [], []

    async def run(self, script, keys, *args):
        answer = await ask(self, script, keys, *args)
        if script is COMMIT:
            sent.append((keys, args))
        if script is WHOLE and not whole:
            whole.append(answer)
            raise RedisTrouble("it cannot be reached: as if it had ended just then", passes=True)
        return answer

    monkeypatch.setattr(Redis, "run", run)
    async with redis_hosts.one() as (_, copy):
        for text in ("one", "two"):
            copy.say(text)
            await copy.held.settled()
        async with redis_hosts.redis() as network:
            await ask(network, COMMIT, sent[0][0], *sent[0][1])  # from a connection that was given up
        copy.say("three")
        await copy.held.settled()
        assert "written anew" not in caplog.text
        await redis_hosts.lose()
        copy.say("four")
        await copy.held.settled()
        assert (len(whole), copy.is_lost) == (1, False)
        copy.say("five")
        await copy.held.settled()
        assert [it.seq for it in await copy.held.frames(1, 9, max_bytes=1000)] == [1, 2, 3, 4, 5]


async def test_what_others_write_over_a_session_is_damage_of_that_session(redis_hosts):
    async with redis_hosts.one() as (_, copy):
        copy.say("one")
        await copy.held.settled()
        await copy.held.release()
    async with redis_hosts.open("inst_2") as journal, redis_hosts.redis() as connected:
        await connected.call("HSET", redis_hosts.keys.session("ses_1"), "last_seq", "x")
        with pytest.raises(Unreachable, match="damaged"):
            await journal.take_up("ses_1")
        assert journal.degraded is None
        with pytest.raises(StorageError, match="damaged"):
            await redis_hosts.archive.session([redis_hosts.service_id], "ses_1")
        await connected.call("HSET", redis_hosts.keys.meta, "version", "x")
        found = await redis_hosts.archive.figures([redis_hosts.service_id])
        assert "another program" in found.unreadable[redis_hosts.service_id]


async def test_away_for_longer_than_is_waited(caplog):
    with own_hosts(*LOGGED) as hosts:
        async with hosts.one() as (journal, copy):
            copy.say("one")
            await copy.held.settled()
            async with restarted(hosts.server):
                await degraded(journal, copy)
                assert "cannot be reached" in journal.degraded
                with pytest.raises(Unreachable):
                    await journal.take_up("ses_1")
                new = await hosts.create(journal, "ses_2", name="new")
                new.say("in memory")
                assert new.visible == 1
            await well_again(journal, copy)
            assert await journal.named(None, "new") == "ses_2"
        assert str(hosts.server.socket) in caplog.text


async def test_an_idle_host_says_that_it_is_away():
    with own_hosts(*LOGGED) as hosts:
        async with hosts.open("inst_1") as journal:
            async with restarted(hosts.server):
                await until(lambda: journal.degraded is not None)
            await until(lambda: journal.degraded is None)


async def test_suspended(monkeypatch):
    with own_hosts() as hosts:
        async with hosts.one() as (journal, copy):
            copy.say("one")
            await copy.held.settled()
            monkeypatch.setattr(redis_connection, "ANSWER_S", 0.3)
            journal._store._redis.disconnect()
            copy.say("two")
            await copy.held.settled()
            with hosts.server.suspended():
                await degraded(journal, copy)
                assert "does not answer" in journal.degraded
            await well_again(journal, copy)


async def test_a_host_ends_soon_while_it_is_suspended(monkeypatch):
    monkeypatch.setattr(redis, "CLOSING_S", 0.2)
    with own_hosts() as hosts, ExitStack() as after:
        async with hosts.one() as (_, copy):
            copy.say("one")
            await copy.held.settled()
            after.enter_context(hosts.server.suspended())
            began = trio.current_time()
        assert trio.current_time() - began < redis_connection.ANSWER_S - 1


async def times(connected, keys, *, pulse_s, lease_s):
    """When a lease was last renewed, and until when those of all holders are; both from now on."""
    now = time.time() * 1000
    await connected.call("HSET", keys.meta, "pulse", int(now + pulse_s * 1000))
    for holder in await connected.call("ZRANGE", keys.leases, 0, -1):
        await connected.call("ZADD", keys.leases, int(now + lease_s * 1000), holder)


@pytest.mark.parametrize(("pulse_s", "is_held"), [(-1, False), (-redis_keys.SILENCE_S - 1, True)])
async def test_a_lease_that_ran_out_while_redis_was_away_is_good_until_its_holder_can_renew_it(
    redis_server, pulse_s, is_held
):
    """It is the silence of all that tells: where others have renewed theirs, the holder is gone."""
    hosts = RedisHosts(redis_server, renew_s=600)
    async with hosts.one() as (_, copy), hosts.open("inst_2") as other, hosts.redis() as connected:
        copy.say("one")
        await copy.held.settled()
        await times(connected, hosts.keys, pulse_s=pulse_s, lease_s=-1)
        if is_held:
            with pytest.raises(HeldElsewhere):
                await other.take_up("ses_1")
            assert (
                float(await connected.call("HGET", hosts.keys.meta, "grace_until"))
                > time.time() * 1000 + 5000
            )
            await hosts.revoke("inst_1")  # a manager's word counts at once
        taken = await hosts.take_up(other)
        copy.say("stale")
        await copy.held.settled()
        assert (copy.is_lost, copy.visible, taken.last_seq) == (True, 1, 1)


async def test_an_agent_that_holds_up_the_event_loop_keeps_its_lease(redis_server):
    hosts = RedisHosts(redis_server, renew_s=0.05)
    async with hosts.open("inst_1") as journal, hosts.redis() as connected:
        holder = journal._store.holder

        async def until_ms():
            return float(await connected.call("ZSCORE", hosts.keys.leases, holder))

        before = await until_ms()
        time.sleep(0.5)  # noqa: ASYNC251 - as an author's code does
        assert await until_ms() - before > 250


async def test_with_its_memory_full_sessions_go_on_in_memory():
    with own_hosts() as hosts:
        async with hosts.one() as (journal, copy):
            copy.say("one")
            await copy.held.settled()
            hosts.server("CONFIG", "SET", "maxmemory", "1mb")
            await degraded(journal, copy)
            assert "memory is full" in journal.degraded
            hosts.server("CONFIG", "SET", "maxmemory", "0")
            await well_again(journal, copy)


async def test_one_that_erases_what_it_likes_gets_no_sessions():
    with own_hosts("--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru") as hosts:
        async with hosts.one() as (journal, copy):
            await degraded(journal, copy)
            assert "CONFIG SET maxmemory-policy noeviction" in journal.degraded
            async with hosts.redis() as connected:
                assert len(remarks := await look_at(connected)) == 2
                assert any("appendonly" in it for it in remarks)
                hosts.server("CONFIG", "SET", "maxmemory-policy", "noeviction")
                hosts.server("CONFIG", "SET", "appendonly", "yes")
                assert await look_at(connected) == []
            await well_again(journal, copy)


async def test_a_wrong_password_is_said_and_is_in_no_message(caplog):
    with own_hosts("--requirepass", "right") as hosts:
        path = hosts.server.socket
        for url, said in ((f"unix://{path}", "wants a password"), (f"unix://:wrong@{path}", "refuses")):
            hosts.server.url = url
            async with RedisHosts(hosts.server).open("inst_1") as journal:
                assert said in journal.degraded
        assert "wrong" not in caplog.text
        hosts.server.url = f"unix://:right@{path}"
        async with RedisHosts(hosts.server).one() as (journal, copy):
            await well_again(journal, copy)


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (("SET", "{meta}", "x"), "?prefix=WORD"),
        (("HSET", "{meta}", "a", "b"), "?prefix=WORD"),
        (("HSET", "{meta}", "version", "99"), "newer agentmgr"),
    ],
)
async def test_what_another_program_or_a_newer_one_has_there_is_left_alone(redis_hosts, command, said):
    redis_hosts.server(*(word.format(meta=redis_hosts.keys.meta) for word in command))
    async with redis_hosts.one() as (journal, copy):
        await degraded(journal, copy)
        assert said in journal.degraded
        async with redis_hosts.redis() as connected:
            assert await connected.call("KEYS", redis_hosts.keys.base.replace("{", "\\{") + "*") == [
                redis_hosts.keys.meta.encode()
            ]
            await connected.call("DEL", redis_hosts.keys.meta)
        await well_again(journal, copy)


async def test_half_of_a_character_keeps_one_session_in_memory_and_no_other(redis_hosts, caplog):
    async with redis_hosts.one() as (journal, copy):
        other = await redis_hosts.create(journal, "ses_2")
        other.say("one")
        bad = TurnRecord(1, "turn_1", "half of a character: \ud800", 2.0)
        copy.turns[1] = bad
        copy.held.write(Accepted(bad))
        copy.say("two")
        await copy.held.settled()
        await well_again(journal, other)
        copy.say("three")
        assert copy.visible == copy.last_seq
        assert "cannot be kept" in caplog.text


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://:p%23ss@db.example/2", "redis://db.example:6379/2"),
        ("rediss://ann:secret@[::1]:7000?prefix=other", "rediss://[::1]:7000"),
        ("unix://:secret@/run/redis.sock?db=3", "unix:///run/redis.sock?db=3"),
    ],
)
def test_an_address_is_shown_without_its_password(url, shown):
    address = RedisAddress.parse(url)
    assert address.shown == shown
    assert "secret" not in repr(address)
    assert address.password in ("p#ss", "secret")


@pytest.mark.parametrize(
    "url",
    [
        "redis://",
        "http://host",
        "redis://host/x",
        "redis://host:99999",
        "redis://host?unknown=1",
        "unix://host/path",
        "redis://secret#word@host",
        "redis://:secret/word@host",
        "redis://:a?secret@host",
        "redis://host?prefix=a{b",
        "redis://[::1",
    ],
)
def test_an_address_that_cannot_be_read_is_refused_without_being_shown(url):
    with pytest.raises(InvalidRequest, match="redis://HOST:PORT/DB") as caught:
        RedisAddress.parse(url)
    assert "secret" not in str(caught.value)
