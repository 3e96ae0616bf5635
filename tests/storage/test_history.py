"""Ends of instances and figures by minute: bounded, kept over a reopening, erased with their service."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import timedelta

import pytest

from agentmgr.models import InstanceEnd, MinuteFigures
from agentmgr.storage import HistoryLimits, Store, open_store
from agentmgr.testing import MemoryStore

LIMITS = HistoryLimits(ends=10)
OpenStore = Callable[[], AbstractAsyncContextManager[Store]]


@pytest.fixture(params=["memory", "sqlite"])
def opened(request, tmp_path) -> OpenStore:
    kept = MemoryStore(limits=LIMITS)

    @asynccontextmanager
    async def memory() -> AsyncIterator[Store]:
        yield kept

    @asynccontextmanager
    async def sqlite() -> AsyncIterator[Store]:
        async with open_store(tmp_path / "a.db", limits=LIMITS) as store:
            yield store

    return {"memory": memory, "sqlite": sqlite}[request.param]


def end(make, service_id: str, number: int) -> InstanceEnd:
    at = make.noon + timedelta(seconds=number)
    output = f"line {number}\n\x1b[31m\0red\ufffd"
    return InstanceEnd(service_id, "ins_1", 0, at, False, "exit code 1", "exit code 1", 7, 1.5, output)


async def test_the_last_ends_are_kept_newest_first_and_go_with_their_service(opened, make):
    service, other = make.service(), make.service("other")
    async with opened() as store:
        await store.add_service(service)
        await store.add_service(other)
        for number in range(30):
            store.record(end(make, service.service_id, number))
        store.record(end(make, other.service_id, 1))
        store.record(end(make, "svc_none", 1))
    async with opened() as store:
        found = await store.ends(service.service_id, limit=3)
        assert found == tuple(end(make, service.service_id, number) for number in (29, 28, 27))
        assert 10 <= len(await store.ends(service.service_id, limit=100)) <= 11
        await store.delete_service(service.service_id)
        assert await store.ends(service.service_id) == ()
        assert len(await store.ends(other.service_id)) == 1
        assert await store.ends("svc_none") == ()


FIGURES = MinuteFigures(
    connections=3,
    sessions=2,
    cpu=0.25,
    memory_bytes=50 * 2**20,
    first_byte_p50_s=0.012,
    first_byte_p95_s=0.5,
    restarts=1,
)


async def test_a_day_of_minutes_is_kept_by_service(opened, make):
    service, other = make.service(), make.service("other")
    ids = (service.service_id, other.service_id)
    async with opened() as store:
        await store.add_service(service)
        await store.add_service(other)
        await store.add_minute(1000, {ids[0]: FIGURES, ids[1]: MinuteFigures(), "svc_none": FIGURES})
        await store.add_minute(1001, {ids[0]: MinuteFigures(cpu=0.0)})
    async with opened() as store:
        assert await store.minutes(ids, 990, 1100) == {
            ids[0]: {1000: FIGURES, 1001: MinuteFigures(cpu=0.0)},
            ids[1]: {1000: MinuteFigures()},
        }
        assert await store.minutes(ids[:1], 1001, 1001) == {ids[0]: {1001: MinuteFigures(cpu=0.0)}}
        assert await store.minutes(["svc_none"], 0, 2000) == {"svc_none": {}}
        await store.add_minute(1000 + 24 * 60, {ids[0]: FIGURES})
        assert (await store.minutes(ids, 0, 3000))[ids[0]].keys() == {1001, 2440}


async def test_a_new_service_has_nothing_of_one_that_is_gone(opened, make):
    first = make.service("first")
    async with opened() as store:
        await store.add_service(first)
        await store.add_minute(1000, {first.service_id: FIGURES})
        await store.delete_service(first.service_id)
        second = make.service("second")
        await store.add_service(second)
        await store.add_minute(1001, {second.service_id: FIGURES})
        found = await store.minutes([first.service_id, second.service_id], 0, 2000)
        assert found == {first.service_id: {}, second.service_id: {1001: FIGURES}}
