"""Records of instances that are written at the same time:

* share transactions, and each is durable when its own write returns;
* one that is refused is refused alone;
* one whose wait is cancelled is written or not, and holds up nobody.
"""

from functools import partial

import pytest
import trio

from agentmgr.errors import ServiceNotFound, StorageError
from agentmgr.storage import open_store
from tests.storage.test_sqlite_faults import locked_by_another


async def test_many_at_once_share_transactions(tmp_path, make):
    async with open_store(tmp_path / "a.db") as store:
        service = make.service()
        await store.add_service(service)
        commits = []
        store._db.set_trace_callback(lambda sql: commits.append(sql) if sql == "COMMIT" else None)
        async with trio.open_nursery() as nursery:
            for number in range(100):
                nursery.start_soon(store.put_instance, make.instance(service.service_id, f"ins_{number}"))
        assert len(commits) <= 3
        async with trio.open_nursery() as nursery:
            for number in range(60):
                nursery.start_soon(store.delete_instance, f"ins_{number}")
        left = {record.instance_id for record in (await store.load()).instances}
        assert left == {f"ins_{number}" for number in range(60, 100)}


async def test_all_of_a_transaction_go_on_at_once_also_where_the_loop_is_busy(tmp_path, make):
    turn, went_on_in = 0, set()

    async with open_store(tmp_path / "a.db") as store:
        service = make.service()
        await store.add_service(service)

        async def put(number: int) -> None:
            await store.put_instance(make.instance(service.service_id, f"ins_{number}"))
            went_on_in.add(turn)

        async def count_turns() -> None:
            """Of the loop. Where in a turn this is called, is by chance."""
            nonlocal turn
            while True:
                await trio.lowlevel.checkpoint()
                turn += 1

        async with trio.open_nursery() as counting:
            counting.start_soon(count_turns)
            async with trio.open_nursery() as nursery:
                for number in range(100):
                    nursery.start_soon(put, number)
            counting.cancel_scope.cancel()
        assert len(went_on_in) <= 4  # the first, which is alone; who wrote for the others; these, in one turn


async def test_one_that_is_refused_is_refused_alone(tmp_path, make):
    refused = []

    async with open_store(tmp_path / "a.db") as store:
        service = make.service()
        await store.add_service(service)

        async def put(number: int) -> None:
            known = number % 7 != 3
            try:
                await store.put_instance(make.instance(service.service_id if known else "x", f"ins_{number}"))
            except ServiceNotFound:
                refused.append(number)

        async with trio.open_nursery() as nursery:
            for number in range(20):
                nursery.start_soon(put, number)
        assert sorted(refused) == [3, 10, 17]
        assert len((await store.load()).instances) == 17


async def test_cancelled_ones_are_whole_or_not_there_and_the_others_are_written(tmp_path, make):
    returned = set()

    async with open_store(tmp_path / "a.db") as store:
        service = make.service()
        await store.add_service(service)

        async def put(number: int) -> None:
            with trio.move_on_after(number * 0.0001 if number % 2 else 60):
                await store.put_instance(make.instance(service.service_id, f"ins_{number}"))
                returned.add(f"ins_{number}")

        async with trio.open_nursery() as nursery:
            for number in range(100):
                nursery.start_soon(put, number)
        found = {record.instance_id for record in (await store.load()).instances}
        assert {f"ins_{number}" for number in range(0, 100, 2)} <= returned <= found


async def test_while_another_program_has_the_lock_each_hears_it(tmp_path, make):
    path = tmp_path / "a.db"
    async with open_store(path, lock_patience_s=0.05) as store:
        service = make.service()
        await store.add_service(service)
        with locked_by_another(path):
            async with trio.open_nursery() as nursery:
                for number in range(5):
                    nursery.start_soon(
                        partial(refused, store, make.instance(service.service_id, f"ins_{number}"))
                    )
        assert (await store.load()).instances == ()


async def refused(store, record) -> None:
    with pytest.raises(StorageError, match="lock"):
        await store.put_instance(record)
