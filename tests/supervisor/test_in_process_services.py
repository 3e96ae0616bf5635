"""Async functions as services: same policies and states as processes."""

import asyncio
from itertools import pairwise

import pytest
import trio

from agentmgr.errors import ServiceFailedToStart, leaves
from agentmgr.models import ServiceStatus
from agentmgr.supervisor import in_process
from agentmgr.testing.fake_launcher import FakeLauncher


def even():
    return 0.5


async def test_ready_is_started_and_a_stop_is_a_cancellation(supervisor, recorder, autojump_clock):
    ended = []

    async def service(*, task_status):
        await trio.sleep(5)
        task_status.started()
        try:
            await trio.sleep_forever()
        finally:
            ended.append(trio.current_time())

    async with supervisor(launcher=FakeLauncher()) as s:
        begin = trio.current_time()
        function = in_process(service)
        await s.start(function)
        assert trio.current_time() == begin + 5
        assert s.instances()[0].status is ServiceStatus.RUNNING
        await s.stop(function.service_id)
        assert ended
        assert s.instances() == ()


class Mute(BaseException):
    def __str__(self):
        raise Mute


ERRORS = [
    KeyError("a bug"), SystemExit(3), KeyboardInterrupt("of the code"), asyncio.CancelledError("of its loop"),
    Mute(), BaseExceptionGroup("", [KeyError("a bug"), Mute()]),
]  # fmt: skip


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
async def test_an_exception_is_a_crash_that_reaches_no_sibling(supervisor, recorder, autojump_clock, error):
    runs = []

    async def fails(*, task_status):
        task_status.started()
        runs.append(trio.current_time())
        await trio.sleep(1)
        raise error

    async def lives(*, task_status):
        task_status.started()
        await trio.sleep_forever()

    async with supervisor(launcher=FakeLauncher(), random=even) as s:
        await s.start(in_process(lives))
        await s.start(in_process(fails))
        await recorder.until(lambda: s.instances()[1].status is ServiceStatus.ERROR, 3600)
        assert [b - a for a, b in pairwise(runs)] == [6, 11, 21]
        healthy, failed = s.instances()
        assert healthy.status is ServiceStatus.RUNNING
        assert type(next(leaves(error))).__name__ in failed.error_message


async def test_one_that_fails_while_it_is_cancelled_is_stopped_all_the_same(supervisor, autojump_clock):
    async def service(*, task_status):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            task_status.started()
            try:
                await trio.sleep_forever()
            finally:
                raise KeyError("in its clean-up")

    async with supervisor(launcher=FakeLauncher()) as s:
        function = in_process(service)
        await s.start(function)
        await s.stop(function.service_id)
        assert s.instances() == ()


async def test_returning_is_a_good_end(supervisor, recorder, autojump_clock):
    async def service(*, task_status):
        task_status.started()
        await trio.sleep(1)

    async with supervisor(launcher=FakeLauncher()) as s:
        await s.start(in_process(service))
        await recorder.until(lambda: s.instances()[0].status is ServiceStatus.STOPPED, 100)
        await trio.sleep(1000)
        assert s.instances()[0].restart_count == 0


async def test_returning_before_started_is_a_failure(supervisor, autojump_clock):
    async def service(*, task_status):
        await trio.sleep(1)

    async with supervisor(launcher=FakeLauncher()) as s:
        with pytest.raises(ServiceFailedToStart, match="before it was ready: exit code 0"):
            await s.start(in_process(service))
