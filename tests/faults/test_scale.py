"""Many at once, and again and again: everything is given back."""

import random

import trio
import trio.testing

from agentmgr.models import ServiceStatus
from tests.faults.__main__ import churn, footprint


async def test_200_instances_are_started_and_stopped(supervisor, command, descendants):
    async with supervisor() as s:
        await s.start(warm_up := command(name="warm-up"))
        await s.stop(warm_up.service_id)
        await trio.testing.wait_all_tasks_blocked()
        before = footprint()
        specs = [command(name=f"svc{i}", instances=20, startup_timeout=60) for i in range(10)]
        async with trio.open_nursery() as nursery:
            for spec in specs:
                nursery.start_soon(s.start, spec)
        assert [view.status for view in s.instances()] == [ServiceStatus.RUNNING] * 200
        assert len({view.port for view in s.instances()}) == 200
        assert len(descendants()) == 200
        async with trio.open_nursery() as nursery:
            for spec in specs:
                nursery.start_soon(s.stop, spec.service_id)
        assert descendants() == []
        await trio.testing.wait_all_tasks_blocked()
        after = footprint()
        assert after["descriptors"] == before["descriptors"]
        assert after["tasks"] <= before["tasks"]
        assert after["threads"] <= before["threads"] + 2


async def test_churn(supervisor, seed):
    """`python -m tests.faults --minutes 30` does this at length."""
    async with supervisor() as s:
        await churn(s, 1, random.Random(seed))
