"""What every store does. A second implementation is added to `stores` and has to pass all of it.

1. What was written is there, equal in every field, in the order it was added.
2. Names are unique among services and among rules; the error says which name.
3. An update needs the version before it; a change in between is never overwritten.
4. A service takes what belongs to it along when it is deleted, but events stay.
5. Recording never blocks and never raises; ids of events rise; histories are newest first and bounded.
6. Totals count what was recorded, once.
"""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import timedelta

import pytest
from attrs import evolve

from agentmgr.core.moves import JournalMove, JournalPlace, MoveStep, Span
from agentmgr.errors import Conflict, NameTaken, RuleNotFound, ServiceNotFound, TokenNotFound, VersionMismatch
from agentmgr.models import (
    ConnectionPeak,
    Event,
    JobRun,
    JobState,
    JoinSecret,
    Latency,
    NodeRecord,
    RunResult,
    ServiceTotals,
    Token,
    TokenPolicy,
    utc_now,
)
from agentmgr.storage import HistoryLimits, Snapshot, Store, open_store
from agentmgr.testing import MemoryStore

LIMITS = HistoryLimits(health_checks=20, events=20, max_age_s=100 * 365 * 86400.0)

OpenStore = Callable[[], AbstractAsyncContextManager[Store]]


@pytest.fixture(params=["memory", "sqlite"])
def opened(request, tmp_path) -> OpenStore:
    @asynccontextmanager
    async def memory() -> AsyncIterator[Store]:
        yield MemoryStore(limits=LIMITS)

    @asynccontextmanager
    async def sqlite() -> AsyncIterator[Store]:
        async with open_store(tmp_path / "a.db", limits=LIMITS) as store:
            yield store

    return {"memory": memory, "sqlite": sqlite}[request.param]


async def test_a_new_store_is_empty(opened):
    async with opened() as store:
        assert await store.load() == Snapshot()
        assert await store.events() == ()
        assert store.degraded is None
        assert store.dropped == 0


async def test_what_is_added_is_loaded_in_order(opened, make):
    async with opened() as store:
        services = tuple(make.service(name) for name in ("b", "a", "c"))
        rules = tuple(make.rule(name) for name in ("z", "y"))
        for service in services:
            await store.add_service(service)
        for rule in rules:
            await store.add_rule(rule)
        await store.put_instance(make.instance(services[0].service_id))
        snapshot = await store.load()
        assert snapshot.services == services
        assert snapshot.rules == rules
        assert snapshot.instances == (make.instance(services[0].service_id),)
        assert snapshot.totals == {}


async def test_a_name_is_given_once(opened, make):
    async with opened() as store:
        await store.add_service(make.service("weather"))
        await store.add_rule(make.rule("weather"))  # a rule's name is another matter
        with pytest.raises(NameTaken, match="service named weather"):
            await store.add_service(make.service("weather"))
        with pytest.raises(NameTaken, match="routing rule named weather"):
            await store.add_rule(make.rule("weather"))
        snapshot = await store.load()
        assert len(snapshot.services) == len(snapshot.rules) == 1


async def test_renaming_to_a_taken_name_is_refused(opened, make):
    async with opened() as store:
        service, rule = make.service("one"), make.rule("one")
        await store.add_service(service)
        await store.add_service(make.service("two"))
        await store.add_rule(rule)
        await store.add_rule(make.rule("two"))
        with pytest.raises(NameTaken, match="two"):
            await store.update_service(service.changed(name="two"))
        with pytest.raises(NameTaken, match="two"):
            await store.update_rule(evolve(rule, name="two", version=2))
        snapshot = await store.load()
        assert (snapshot.services[0], snapshot.rules[0]) == (service, rule)


async def test_an_update_replaces_the_version_before_it(opened, make):
    async with opened() as store:
        service, rule = make.service(), make.rule()
        await store.add_service(service)
        await store.add_rule(rule)
        changed = service.changed(description="now with snow")
        changed_rule = evolve(rule, priority=1, version=2)
        await store.update_service(changed)
        await store.update_rule(changed_rule)
        snapshot = await store.load()
        assert snapshot.services == (changed,)
        assert snapshot.rules == (changed_rule,)


async def test_an_update_of_a_stale_version_changes_nothing(opened, make):
    async with opened() as store:
        service, rule = make.service(), make.rule()
        await store.add_service(service)
        await store.add_rule(rule)
        first = service.changed(description="first")
        await store.update_service(first)
        with pytest.raises(VersionMismatch, match="version 2"):
            await store.update_service(service.changed(description="second"))
        with pytest.raises(VersionMismatch):
            await store.update_rule(evolve(rule, version=7))
        snapshot = await store.load()
        assert snapshot.services == (first,)
        assert snapshot.rules == (rule,)


async def test_what_is_not_there_is_said_to_be_so(opened, make):
    async with opened() as store:
        with pytest.raises(ServiceNotFound):
            await store.update_service(make.service().changed())
        with pytest.raises(ServiceNotFound):
            await store.delete_service("svc_none")
        with pytest.raises(RuleNotFound):
            await store.update_rule(evolve(make.rule(), version=2))
        with pytest.raises(RuleNotFound):
            await store.delete_rule("rule_none")
        with pytest.raises(ServiceNotFound):
            await store.put_instance(make.instance("svc_none"))
        await store.delete_instance("inst_none")


async def test_an_instance_is_put_again_and_deleted(opened, make):
    async with opened() as store:
        service = make.service()
        await store.add_service(service)
        await store.put_instance(make.instance(service.service_id, pid=1))
        await store.put_instance(make.instance(service.service_id, pid=2))
        assert [record.pid for record in (await store.load()).instances] == [2]
        await store.delete_instance("inst_1")
        assert (await store.load()).instances == ()


async def test_a_deleted_service_takes_everything_along_but_events(opened, make):
    async with opened() as store:
        gone, kept = make.service("gone"), make.service("kept")
        for service in (gone, kept):
            key = service.service_id
            await store.add_service(service)
            await store.put_instance(make.instance(key, f"inst_{service.name}"))
            store.record(make.check(key))
            store.record(make.session_end(key))
            store.record(Event("service.registered", service_id=key))
        await store.flush()
        await store.delete_service(gone.service_id)
        snapshot = await store.load()
        assert snapshot.services == (kept,)
        assert [record.service_id for record in snapshot.instances] == [kept.service_id]
        assert set(snapshot.totals) == {kept.service_id}
        assert await store.health_history(gone.service_id) == ()
        assert len(await store.health_history(kept.service_id)) == 1
        assert len(await store.events()) == 2
        await store.add_service(make.service("gone"))  # the name is free again


async def test_a_deleted_rule_is_gone_and_its_name_free(opened, make):
    async with opened() as store:
        rule = make.rule()
        await store.add_rule(rule)
        await store.delete_rule(rule.rule_id)
        await store.add_rule(make.rule())


async def test_history_is_newest_first_and_has_what_was_recorded_just_now(opened, make):
    async with opened() as store:
        service = make.service()
        await store.add_service(service)
        for second in range(5):
            store.record(make.check(service.service_id, second))
        checks = await store.health_history(service.service_id, limit=3)
        assert checks == tuple(make.check(service.service_id, second) for second in (4, 3, 2))


async def test_ids_of_events_rise_however_the_clock_goes(opened, make):
    async with opened() as store:
        times = [make.noon, make.noon, make.noon - timedelta(days=1), make.noon + timedelta(seconds=1)]
        recorded = tuple(store.record(Event("tick", at)) for at in times)
        ids = [event.event_id for event in recorded]
        assert ids == sorted(set(ids))
        assert ids[0] > 0
        assert await store.events() == recorded
        assert await store.events(after=ids[1]) == recorded[2:]
        assert await store.events(after=ids[0], limit=2) == recorded[1:3]
        assert await store.events(after=ids[-1]) == ()


async def test_an_event_keeps_its_details(opened):
    async with opened() as store:
        event = store.record(
            Event("x", service_id="s", instance_id="i", detail={"a": 1, "b": None, "c": "ü"})
        )
        assert await store.events() == (event,)


async def test_histories_are_bounded(opened, make):
    async with opened() as store:
        busy, quiet = make.service("busy"), make.service("quiet")
        await store.add_service(busy)
        await store.add_service(quiet)
        store.record(make.check(quiet.service_id))
        for second in range(200):
            store.record(make.check(busy.service_id, second))
            store.record(Event("tick"))
            if second % 7 == 0:
                await store.flush()
        checks = await store.health_history(busy.service_id, limit=1000)
        events = await store.events()
        for found in (checks, events):
            assert 20 <= len(found) <= 20 + 20 // 10 + 7
        assert checks[0].checked_at == make.noon + timedelta(seconds=199)
        assert len(await store.health_history(quiet.service_id)) == 1


async def test_totals_count_what_was_recorded(opened, make):
    async with opened() as store:
        service = make.service()
        await store.add_service(service)
        key = service.service_id
        store.record(
            make.session_end(
                key, lasted_s=1.5, bytes_from_client=1, bytes_to_client=2, handshake_s=0.02, first_byte_s=0.1
            )
        )
        store.record(make.session_end(key, lasted_s=2, ended_by="backend", code=1011, handshake_s=0.5))
        await store.flush()
        store.record(make.session_end(key, lasted_s=-3))  # the clock was set back
        store.record(Event("instance.backoff", service_id=key))
        store.record(Event("instance.error", service_id=key))
        store.record(Event("instance.running", service_id=key))
        store.record(make.check(key))
        store.record(ConnectionPeak(key, 4))
        store.record(ConnectionPeak(key, 3))
        await store.flush()
        assert (await store.load()).totals == {
            key: ServiceTotals(
                sessions_total=3,
                sessions_failed=1,
                session_seconds=3.5,
                bytes_from_client=21,
                bytes_to_client=42,
                restarts=1,
                errors=1,
                sessions_peak=4,
                handshake=Latency().with_value(0.02).with_value(0.5),
                first_byte=Latency().with_value(0.1),
            )
        }


async def test_facts_about_an_unknown_service_are_forgotten_but_events_are_not(opened, make):
    async with opened() as store:
        store.record(make.check("svc_none"))
        store.record(make.session_end("svc_none"))
        event = store.record(Event("instance.error", service_id="svc_none"))
        assert await store.health_history("svc_none") == ()
        assert await store.events() == (event,)
        assert (await store.load()).totals == {}
        assert store.degraded is None


async def test_what_is_known_of_a_job_is_replaced_as_a_whole(opened, make):
    run = JobRun(utc_now(), utc_now(), RunResult.COMPLETED)
    async with opened() as store:
        service = make.service("job")
        with pytest.raises(ServiceNotFound):
            await store.put_job(service.service_id, JobState())
        await store.add_service(service)
        for state in (JobState(), JobState(run)):
            await store.put_job(service.service_id, state)
            assert (await store.load()).jobs == {service.service_id: state}
        await store.delete_service(service.service_id)
        assert (await store.load()).jobs == {}


async def test_a_backup_does_not_overwrite(opened, tmp_path):
    destination = tmp_path / "copy.db"
    destination.write_bytes(b"precious")
    async with opened() as store:
        with pytest.raises(Conflict, match=r"copy\.db is there already"):
            await store.backup(destination)
    assert destination.read_bytes() == b"precious"


async def test_tokens_are_kept_by_unique_names(opened):
    async with opened() as store:
        assert await store.tokens() == ()
        one = Token("one", {"read"}, "0" * 64)
        two = Token("two", {"connect:x", "admin"}, "1" * 64)
        await store.add_token(one)
        await store.add_token(two)
        with pytest.raises(NameTaken, match="one"):
            await store.add_token(evolve(one, token_id="tok_other"))
        assert await store.tokens() == (one, two)
        await store.delete_token(one.token_id)
        with pytest.raises(TokenNotFound):
            await store.delete_token(one.token_id)
        assert await store.tokens() == (two,)


async def test_whether_tokens_are_asked_for_does_not_follow_from_the_tokens(opened):
    async with opened() as store:
        assert await store.token_policy() == TokenPolicy()
        token = Token("one", {"connect"}, "0" * 64)
        await store.add_token(token, TokenPolicy(api=True, gateway=True))
        with pytest.raises(NameTaken):
            await store.add_token(evolve(token, token_id="tok_other"), TokenPolicy())
        await store.delete_token(token.token_id)
        assert await store.token_policy() == TokenPolicy(api=True, gateway=True)
        await store.set_token_policy(TokenPolicy(gateway=True))
        assert await store.token_policy() == TokenPolicy(gateway=True)


async def test_nodes_and_secrets_to_join_are_kept(opened):
    async with opened() as store:
        here = NodeRecord("", "vm", labels={"zone": "a"})
        b = NodeRecord("nod_00112233aabbccdd", "b", "10.0.0.2", {"zone": "b"}, {"licence": 1.0}, "0" * 64)
        secret = JoinSecret("1" * 64, utc_now(), uses=2)
        await store.put_node(here)
        await store.put_join_secret(secret)
        await store.put_join_secret(secret.used("b"), with_node=b)
        b = evolve(b, name="bb", cordoned=True)
        await store.put_node(b)
        assert (await store.load()).nodes == (here, b)
        assert await store.join_secrets() == (secret.used("b"),)
        for _ in range(2):
            await store.delete_node(here.node_id)
            await store.delete_join_secret(secret.digest)
        assert (await store.load()).nodes == (b,)
        assert await store.join_secrets() == ()


async def test_places_of_journals_are_kept_and_go_with_their_service(opened, make):
    async with opened() as store:
        service = make.service("svc")
        b = JournalPlace(service.service_id, "nod_b", 2, (Span(1, ""), Span(2, "nod_c")))
        here = JournalPlace(service.service_id, "", move=JournalMove("mov_1", "nod_c", MoveStep.ARRIVING))
        await store.put_journal_places([b])  # of a service that is not there
        assert (await store.load()).journal_places == ()
        await store.add_service(service)
        await store.put_journal_places([evolve(b, generation=1, spans=()), here])
        await store.put_journal_places([b])
        assert set((await store.load()).journal_places) == {b, here}
        await store.delete_service(service.service_id)
        assert (await store.load()).journal_places == ()
