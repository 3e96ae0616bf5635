"""When things happen, on trio's own clock: no process is started here, and an hour takes a millisecond."""

import math
from collections import Counter
from functools import partial
from itertools import pairwise
from random import Random

import pytest
import trio
import trio.testing
from attrs import evolve

from agentmgr.core.restart import Cause, Exit
from agentmgr.errors import InvalidRequest, ServiceFailedToStart, WrongState
from agentmgr.models import HealthStatus, ServiceConfig, ServiceSpec, ServiceStatus
from agentmgr.supervisor.launcher import CannotLaunch
from agentmgr.testing.fake_launcher import Behaviour, FakeLauncher

CRASH = Exit(code=1)


def spec(name="svc", **config):
    return ServiceSpec(name, ServiceConfig(agent_factory_path="agent.py", **config))


def even():
    """In place of randomness: no jitter."""
    return 0.5


async def test_restarts_come_after_5_10_and_20_seconds_and_then_it_is_given_up(
    supervisor, recorder, autojump_clock
):
    launcher = FakeLauncher(Behaviour(exits_after_s=1, exit=CRASH, last_words="out of luck"))
    async with supervisor(launcher=launcher, random=even) as s:
        await s.start(spec())
        await recorder.until(lambda: s.instances()[0].status is ServiceStatus.ERROR, 3600)
        begin = launcher.children[0].launched_at
        assert [child.launched_at - begin for child in launcher.children] == [0, 1 + 5, 7 + 10, 18 + 20]
        (instance,) = s.instances()
        assert instance.error_message == (
            "ended unasked after 1.0 s: exit code 1; its last output:\nout of luck"
            " (given up after 3 restarts within 300 s)"
        )
        assert instance.last_exit == "exit code 1"
        assert instance.restart_count == 3
        assert launcher.running == []


@pytest.mark.parametrize("policy", ["always", "on-failure"])
async def test_one_that_exits_with_0_at_once_is_not_started_hot(supervisor, recorder, autojump_clock, policy):
    launcher = FakeLauncher(Behaviour(ready_after_s=math.inf, exits_after_s=0, exit=Exit(code=0)))
    async with supervisor(launcher=launcher, random=even) as s:
        with pytest.raises(ServiceFailedToStart, match="before it was ready: exit code 0"):
            await s.start(spec(restart=policy))
        await recorder.until(lambda: s.instances()[0].status is ServiceStatus.ERROR, 3600)
        begin = launcher.children[0].launched_at
        assert [child.launched_at - begin for child in launcher.children] == [0, 5, 15, 35]


async def test_ready_for_a_minute_forgives_what_was_before(supervisor, recorder, autojump_clock):
    short, long = Behaviour(exits_after_s=1, exit=CRASH), Behaviour(exits_after_s=61, exit=CRASH)
    launcher = FakeLauncher(short, short, short, long, short, short, short, short)
    async with supervisor(launcher=launcher, random=even) as s:
        await s.start(spec())
        await recorder.until(lambda: s.instances()[0].status is ServiceStatus.ERROR, 3600)
        assert launcher.launches == 7


async def test_start_fails_with_the_reason_of_the_first_try_and_the_trying_goes_on(
    supervisor, recorder, autojump_clock
):
    launcher = FakeLauncher(
        Behaviour(ready_after_s=9, exits_after_s=1, exit=CRASH, last_words="no"), Behaviour()
    )
    async with supervisor(launcher=launcher, random=even) as s:
        with pytest.raises(ServiceFailedToStart, match=r"(?s)before it was ready: exit code 1.*no\n.*5\.0 s"):
            await s.start(spec())
        assert s.instances()[0].status is ServiceStatus.BACKOFF
        await recorder.until(lambda: s.instances()[0].status is ServiceStatus.RUNNING)


async def test_exit_code_78_is_final_and_its_last_words_are_the_message(supervisor, recorder, autojump_clock):
    launcher = FakeLauncher(Behaviour(math.inf, 1, Exit(code=78), last_words="SyntaxError: line 3"))
    async with supervisor(launcher=launcher) as s:
        with pytest.raises(ServiceFailedToStart, match="SyntaxError: line 3"):
            await s.start(spec(restart="always", restart_delay=0))
        (instance,) = s.instances()
        assert (instance.status, instance.error_message) == (ServiceStatus.ERROR, "SyntaxError: line 3")
        await trio.sleep(3600)
        assert launcher.launches == 1


async def test_a_program_that_cannot_be_executed_is_final(supervisor, autojump_clock):
    launcher = FakeLauncher(CannotLaunch(Cause.CANNOT_EXECUTE, "cannot execute 'x'"))
    async with supervisor(launcher=launcher) as s:
        with pytest.raises(ServiceFailedToStart, match="cannot execute 'x'"):
            await s.start(spec())
        await trio.sleep(3600)
        assert launcher.launches == 1


async def test_a_shortage_is_waited_out_however_long_it_takes(supervisor, autojump_clock):
    shortage = CannotLaunch(Cause.SHORTAGE, "no process to be had")
    launcher = FakeLauncher(*[shortage] * 50, Behaviour())
    async with supervisor(launcher=launcher) as s:
        with pytest.raises(ServiceFailedToStart):
            await s.start(spec())
        await trio.sleep(3600)
        (instance,) = s.instances()
        assert instance.status is ServiceStatus.RUNNING
        assert launcher.launches == 51


async def test_never_ready_ends_at_the_startup_deadline(supervisor, autojump_clock):
    launcher = FakeLauncher(Behaviour(ready_after_s=math.inf))
    async with supervisor(launcher=launcher) as s:
        begin = trio.current_time()
        with pytest.raises(ServiceFailedToStart, match="not ready within 30 s"):
            await s.start(spec())
        assert 30 <= trio.current_time() - begin <= 31


async def test_ready_and_then_hung_is_restarted_after_the_recovery_threshold(
    supervisor, recorder, autojump_clock
):
    launcher = FakeLauncher(Behaviour(unwell_between_s=(100, math.inf)), Behaviour())
    async with supervisor(launcher=launcher, random=even) as s:
        await s.start(spec())
        await recorder.until(lambda: len(launcher.children) == 2, 3600)
        first = launcher.children[0]
        # The third failed check comes after 120 s, the one after 30 s more is the first to find it overdue.
        assert 150 < first.ended_at - first.launched_at <= 170
        assert recorder.statuses()[:4] == ["starting", "running", "unhealthy", "backoff"]


async def test_flapping_at_the_threshold_restarts_nothing(supervisor, recorder, autojump_clock):
    launcher = FakeLauncher(Behaviour(unwell_between_s=(100, 119)))
    async with supervisor(launcher=launcher, random=even) as s:
        await s.start(spec(unhealthy_threshold=3, recovery_threshold=0))
        await trio.sleep(300)
        assert HealthStatus.DEGRADED in {view.health for view in recorder.history}
        assert recorder.statuses() == ["starting", "running"]
        assert launcher.launches == 1


async def test_unhealthy_is_never_latched(supervisor, recorder, autojump_clock):
    launcher = FakeLauncher(Behaviour(unwell_between_s=(100, 145)))
    async with supervisor(launcher=launcher, random=even) as s:
        await s.start(spec())
        await trio.sleep(300)
        assert recorder.statuses() == ["starting", "running", "unhealthy", "running"]
        assert s.instances()[0].health is HealthStatus.HEALTHY


async def test_without_auto_restart_an_unhealthy_instance_is_left_alone(supervisor, autojump_clock):
    launcher = FakeLauncher(Behaviour(unwell_between_s=(100, math.inf)))
    async with supervisor(launcher=launcher) as s:
        await s.start(spec(auto_restart=False))
        await trio.sleep(3600)
        assert s.instances()[0].status is ServiceStatus.UNHEALTHY
        assert launcher.launches == 1


async def test_checks_come_at_their_interval_jittered(supervisor, autojump_clock):
    launcher = FakeLauncher()
    async with supervisor(launcher=launcher, random=Random(1).random) as s:
        await s.start(spec())
        await trio.sleep(1000)
        times = launcher.children[0].probed_at
        pauses = [b - a for a, b in pairwise(times)]
        assert all(9 <= pause <= 11 for pause in pauses)
        assert len(set(pauses)) > 5


async def test_checks_of_many_are_made_a_few_at_a_time(supervisor, autojump_clock):
    launcher = FakeLauncher()
    async with supervisor(launcher=launcher) as s:
        await s.start(spec(instances=100))
        await trio.sleep(50)
        moments = Counter(at for child in launcher.children for at in child.probed_at)
        assert len(moments) <= 50 / 0.25
        assert max(moments.values()) < 50


async def test_stop_during_backoff_is_prompt_and_nothing_is_launched_late(
    supervisor, recorder, autojump_clock
):
    launcher = FakeLauncher(Behaviour(exits_after_s=1, exit=CRASH))
    async with supervisor(launcher=launcher) as s:
        service = spec(restart_delay=60)
        await s.start(service)
        await recorder.until(lambda: s.instances()[0].status is ServiceStatus.BACKOFF, 100)
        begin = trio.current_time()
        await s.stop(service.service_id)
        assert trio.current_time() == begin
        await trio.sleep(3600)
        assert launcher.launches == 1
        assert s.instances() == ()


async def test_start_during_backoff_does_not_wait_and_forgives(supervisor, recorder, autojump_clock):
    launcher = FakeLauncher(Behaviour(exits_after_s=1, exit=CRASH), Behaviour())
    async with supervisor(launcher=launcher) as s:
        service = spec(restart_delay=3600, restart_delay_max=3600)
        await s.start(service)
        await recorder.until(lambda: s.instances()[0].status is ServiceStatus.BACKOFF, 100)
        begin = trio.current_time()
        await s.start(service)
        assert trio.current_time() == begin
        assert s.instances()[0].status is ServiceStatus.RUNNING


async def test_start_after_giving_up_starts_afresh(supervisor, recorder, autojump_clock):
    launcher = FakeLauncher(*[Behaviour(exits_after_s=1, exit=CRASH)] * 4, Behaviour())
    async with supervisor(launcher=launcher) as s:
        await s.start(spec_ := spec())
        await recorder.until(lambda: s.instances()[0].status is ServiceStatus.ERROR, 3600)
        await s.start(spec_)
        (instance,) = s.instances()
        assert (instance.status, instance.restart_count) == (ServiceStatus.RUNNING, 0)


async def test_a_stop_wins_over_a_start_that_waits(supervisor, autojump_clock):
    launcher = FakeLauncher(Behaviour(ready_after_s=20))
    async with supervisor(launcher=launcher) as s, trio.open_nursery() as nursery:
        service = spec()

        async def start():
            with pytest.raises(WrongState, match="was stopped"):
                await s.start(service)

        nursery.start_soon(start)
        await trio.sleep(1)
        begin = trio.current_time()
        await s.stop(service.service_id)
        assert trio.current_time() == begin
        assert launcher.running == []


async def test_stop_drains_first_and_force_skips_it(supervisor, recorder, autojump_clock):
    async def never(_instance_id):
        await trio.sleep_forever()

    recorder.draining = never
    launcher = FakeLauncher()
    async with supervisor(launcher=launcher) as s:
        # The drain timeout, and the time that the last sessions are given to be told.
        for force, expected in ((False, 30 + 15), (True, 0)):
            service = spec()
            await s.start(service)
            begin = trio.current_time()
            await s.stop(service.service_id, force=force)
            assert trio.current_time() - begin == expected


async def test_a_shutdown_that_kills_hurries_one_that_waits(supervisor, autojump_clock):
    launcher = FakeLauncher(Behaviour(stop_takes_s=500))
    async with supervisor(launcher=launcher) as s, trio.open_nursery() as nursery:
        first = spec(stop_timeout=1000)
        await s.start(first)
        await s.start(spec("after", after=(first.name,), stop_timeout=1000))
        begin = trio.current_time()
        nursery.start_soon(s.shutdown)
        await trio.sleep(7)
        await s.shutdown(kill=True)
        assert trio.current_time() - begin == 7
    assert [str(child._exit) for child in launcher.children] == ["SIGKILL", "SIGKILL"]


async def test_a_forced_stop_hurries_one_that_drains(supervisor, recorder, autojump_clock):
    async def never(_instance_id):
        await trio.sleep_forever()

    recorder.draining = never
    async with supervisor(launcher=FakeLauncher()) as s, trio.open_nursery() as nursery:
        service = spec(drain_timeout=1000)
        await s.start(service)
        nursery.start_soon(s.stop, service.service_id)
        await trio.sleep(5)
        begin = trio.current_time()
        await s.stop(service.service_id, force=True)
        assert trio.current_time() == begin


async def test_rolling_restart_starts_the_new_one_before_the_old_one_goes(
    supervisor, recorder, autojump_clock
):
    launcher = FakeLauncher(Behaviour(ready_after_s=3))
    async with supervisor(launcher=launcher) as s:
        service = spec(instances=3)
        await s.start(service)
        old = {view.instance_id for view in s.instances()}
        await s.restart(service.changed())
        assert len(launcher.children) == 6
        by_slot = sorted(launcher.children, key=lambda child: (child.record.slot, child.launched_at))
        for before, after in zip(by_slot[::2], by_slot[1::2], strict=True):
            assert before.ended_at >= after.launched_at + 3
        new = s.instances()
        assert [view.slot for view in new] == [0, 1, 2]
        assert not old & {view.instance_id for view in new}
        assert {view.spec_version for view in new} == {2}


async def test_a_stop_in_the_middle_of_a_rolling_restart_launches_nothing_more(supervisor, autojump_clock):
    launcher = FakeLauncher(Behaviour(stop_takes_s=5))
    async with supervisor(launcher=launcher) as s, trio.open_nursery() as nursery:
        service = spec(instances=3)
        await s.start(service)

        async def restart():
            with pytest.raises(WrongState, match="stopped meanwhile"):
                await s.restart(service)

        nursery.start_soon(restart)
        await trio.sleep(2)  # the first of the old ones is ending, its successor is ready
        assert launcher.launches == 4
        await s.stop(service.service_id)
        await trio.sleep(100)
        assert launcher.launches == 4
        assert launcher.running == []


async def test_two_restarts_at_once_take_turns(supervisor, autojump_clock):
    launcher = FakeLauncher(Behaviour(ready_after_s=3, stop_takes_s=2))
    async with supervisor(launcher=launcher) as s:
        service = spec()
        await s.start(service)
        most = 0
        async with trio.open_nursery() as nursery:
            nursery.start_soon(s.restart, service)
            nursery.start_soon(s.restart, service)
            for _ in range(20):
                await trio.sleep(0.5)
                most = max(most, len(launcher.running))
        assert most == 2
        assert len(launcher.running) == 1
        assert len(s.instances()) == 1


async def test_a_rolling_restart_that_fails_leaves_the_old_one(supervisor, recorder, autojump_clock):
    launcher = FakeLauncher(Behaviour(), Behaviour(exits_after_s=0, ready_after_s=9, exit=Exit(code=3)))
    async with supervisor(launcher=launcher) as s:
        service = spec()
        await s.start(service)
        (old,) = s.instances()
        with pytest.raises(ServiceFailedToStart, match="exit code 3"):
            await s.restart(service)
        assert s.instances() == (old,)
        assert len(launcher.running) == 1


async def test_a_restart_that_is_not_rolling_never_has_two(supervisor, autojump_clock):
    launcher = FakeLauncher(Behaviour(ready_after_s=3, stop_takes_s=2))
    async with supervisor(launcher=launcher) as s:
        service = spec()
        await s.start(service)
        await s.restart(service, rolling=False)
        first, second = launcher.children
        assert first.ended_at <= second.launched_at


async def test_start_scales_up_and_down(supervisor, autojump_clock):
    launcher = FakeLauncher()
    async with supervisor(launcher=launcher) as s:
        service = spec()
        for instances in (1, 4, 2, 3):
            scaled = service.changed(config=ServiceConfig(agent_factory_path="agent.py", instances=instances))
            await s.start(scaled)
            await trio.sleep(1)
            assert [view.slot for view in s.instances()] == list(range(instances))
            assert len(launcher.running) == instances


async def test_shutdown_ends_everything_and_refuses_what_comes_later(supervisor, autojump_clock):
    launcher = FakeLauncher()
    async with supervisor(launcher=launcher) as s:
        for i in range(20):
            await s.start(spec(f"svc{i}", instances=2))
        await s.shutdown()
        assert launcher.running == []
        with pytest.raises(WrongState, match="shutting down"):
            await s.start(spec())


async def test_shutdown_may_leave_them_running(supervisor, recorder, autojump_clock):
    launcher = FakeLauncher()
    async with supervisor(launcher=launcher) as s:
        await s.start(spec())
        await s.shutdown(leave_running=True)
        assert launcher.children[0].released
        assert launcher.children[0].ended_at is None
        assert len(recorder.records) == 1


async def test_a_bug_in_one_task_is_told_and_leaves_the_others(supervisor, recorder, autojump_clock, caplog):
    launcher = FakeLauncher()
    async with supervisor(launcher=launcher) as s:
        await s.start(spec("well"))
        await s.start(spec("ill"))
        ill = launcher.children[1]

        async def explode(_timeout_s, **_):
            raise KeyError("a bug")

        ill.probe = explode
        await recorder.until(lambda: s.instances()[-1].status is ServiceStatus.ERROR, 100)
        well, broken = s.instances()
        assert well.status is ServiceStatus.RUNNING
        assert "KeyError('a bug')" in broken.error_message
        assert ill.ended_at is not None
    assert "the task of ill/0 failed" in caplog.text


async def test_a_service_is_launched_when_what_it_needs_is_ready(supervisor, autojump_clock):
    launcher = FakeLauncher(Behaviour(ready_after_s=20), Behaviour())
    async with supervisor(launcher=launcher) as s:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(s.start, spec("database"))
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(s.start, spec("app", after=["database"]))
        database, app = launcher.children
        assert app.launched_at == database.launched_at + 20


async def test_one_that_needs_what_does_not_run_says_so_and_starts_when_that_does(supervisor, autojump_clock):
    launcher = FakeLauncher()
    async with supervisor(launcher=launcher) as s:
        app = spec("app", after=["database"])
        for _ in range(2):  # the second start meets one that waits already
            with pytest.raises(ServiceFailedToStart, match="app waits for service 'database', which is not"):
                with trio.fail_after(1):
                    await s.start(app)
            await trio.sleep(1000)
        assert launcher.launches == 0
        await s.start(spec("database"))
        await s.start(app)
        assert [view.status for view in s.instances()] == [ServiceStatus.RUNNING] * 2


async def test_services_that_wait_for_each_other_are_refused(supervisor, autojump_clock):
    async with supervisor(launcher=FakeLauncher()) as s:
        await s.start(spec("a", after=["b"]), wait=False)
        with pytest.raises(InvalidRequest, match="a → b → a"):
            await s.start(spec("b", after=["a"]))


async def test_what_others_need_is_stopped_after_them(supervisor, autojump_clock):
    launcher = FakeLauncher(Behaviour(stop_takes_s=2))
    async with supervisor(launcher=launcher) as s:
        await s.start(spec("database"))
        await s.start(spec("cache"))
        await s.start(spec("app", after=["database"]))
        begin = trio.current_time()
        await s.shutdown()
        assert [child.ended_at - begin for child in launcher.children] == [4, 2, 2]


async def test_only_so_many_start_at_once(supervisor, autojump_clock):
    launcher = FakeLauncher(Behaviour(ready_after_s=4))
    launcher.starts = trio.Semaphore(5)
    async with supervisor(launcher=launcher) as s:
        begin = trio.current_time()
        await s.start(spec(instances=20))
        assert trio.current_time() - begin == 16
        launched = sorted(child.launched_at - begin for child in launcher.children)
        assert launched == [0] * 5 + [4] * 5 + [8] * 5 + [12] * 5


async def test_what_hangs_while_it_starts_keeps_nobody_else_from_it(supervisor, autojump_clock):
    launcher = FakeLauncher(Behaviour(ready_after_s=25))
    launcher.starts = trio.Semaphore(1)
    async with supervisor(launcher=launcher) as s:
        begin = trio.current_time()
        await s.start(spec("hangs"), wait=False)
        await s.start(spec("next"))
        assert trio.current_time() - begin == 5 + 25


async def test_a_restart_replaces_every_instance_also_those_that_wait_to_be_tried_again(
    supervisor, autojump_clock
):
    crashes = Behaviour(exits_after_s=1, exit=CRASH)
    async with supervisor(launcher=FakeLauncher(*[crashes] * 3, Behaviour())) as s:
        old = spec(instances=3, restart_delay=1000, restart_delay_max=1000)
        await s.start(old)
        await trio.sleep(2)  # now all three are in backoff
        await s.restart(old.changed())
        assert [i.spec_version for i in s.instances(old.service_id)] == [2, 2, 2]


async def test_a_start_after_a_change_runs_what_is_registered_now(supervisor, autojump_clock):
    crashes = Behaviour(exits_after_s=1, exit=CRASH)
    async with supervisor(launcher=FakeLauncher(crashes, Behaviour())) as s:
        old = spec(restart_delay=1000, restart_delay_max=1000)
        await s.start(old)
        await trio.sleep(2)
        await s.start(old.changed(config=evolve(old.config, max_sessions=7)))
        assert [i.spec_version for i in s.instances(old.service_id)] == [2]


async def test_a_rolling_restart_that_nobody_waits_for_goes_on(supervisor, autojump_clock):
    async with supervisor(launcher=FakeLauncher(Behaviour(ready_after_s=3))) as s:
        service = spec()
        await s.start(service)
        with trio.move_on_after(1):
            await s.restart(service.changed())
        await trio.sleep(10)
        assert [i.spec_version for i in s.instances(service.service_id)] == [2]


async def test_a_stop_wins_over_a_restart_that_was_asked_for_before(supervisor, autojump_clock):
    async with supervisor(launcher=FakeLauncher()) as s:
        service = spec()
        await s.start(service)
        await s.restart(service, wait=False)
        await s.stop(service.service_id)
        await trio.sleep(10)
        assert s.instances(service.service_id) == ()


@pytest.mark.parametrize("under_way", ["a rolling restart", "a stop"])
async def test_a_start_that_nobody_waits_for_is_not_held_up_by_what_drains(
    supervisor, autojump_clock, under_way
):
    launcher = FakeLauncher(Behaviour(conversation_takes_s=20))
    async with supervisor(launcher=launcher) as s, trio.open_nursery() as nursery:
        service = spec()
        await s.start(service)
        if under_way == "a stop":
            nursery.start_soon(partial(s.stop, service.service_id, wait=False))
        else:
            nursery.start_soon(partial(s.restart, service, wait=False))
        await trio.sleep(1)
        begin = trio.current_time()
        await s.start(service, wait=False)
        assert trio.current_time() == begin
        await trio.sleep(30)
        assert [view.status for view in s.instances()] == [ServiceStatus.RUNNING]


async def test_a_drain_lasts_as_long_as_the_conversation_and_not_longer_than_it_may(
    supervisor, autojump_clock
):
    async with supervisor(launcher=FakeLauncher(Behaviour(conversation_takes_s=12))) as s:
        for limit_s, expected_s in ((30, 12), (5, 5)):
            service = spec(drain_timeout=limit_s)
            await s.start(service)
            begin = trio.current_time()
            await s.stop(service.service_id)
            assert trio.current_time() - begin == expected_s


async def test_host_and_gateway_both_hear_whether_something_takes_the_place_of_what_drains(
    supervisor, recorder, autojump_clock
):
    launcher = FakeLauncher(Behaviour(conversation_takes_s=1))

    def codes():
        return [child.drained_with for child in launcher.children]

    async with supervisor(launcher=launcher) as s:
        service = spec(instances=2)
        await s.start(service)
        await s.restart(service.changed())
        assert codes() == [1012, 1012, None, None]
        await s.start(evolve(service, config=evolve(service.config, instances=1)))
        await trio.sleep(2)
        assert codes() == [1012, 1012, None, 1012]
        await s.stop(service.service_id)
        assert codes() == [1012, 1012, 1001, 1012]
        assert [for_good for _, for_good in recorder.drained] == [False, False, False, True]


async def test_force_asks_for_no_conversation_to_be_finished(supervisor, autojump_clock):
    launcher = FakeLauncher(Behaviour(conversation_takes_s=12))
    async with supervisor(launcher=launcher) as s:
        service = spec()
        await s.start(service)
        begin = trio.current_time()
        await s.stop(service.service_id, force=True)
        assert trio.current_time() == begin


@pytest.mark.parametrize(("takes_s", "idle_s"), [(None, 7.0), (3.0, None)])
async def test_silence_says_that_a_session_is_idle_only_where_the_agent_cannot(
    supervisor, recorder, autojump_clock, takes_s, idle_s
):
    found = []

    async def ask(instance_id):
        found.append((await s.drain_terms(instance_id, 30))[0])

    recorder.draining = ask
    async with supervisor(launcher=FakeLauncher(Behaviour(conversation_takes_s=takes_s))) as s:
        service = spec(drain_idle=7)
        await s.start(service)
        await s.stop(service.service_id)
    assert found == [idle_s]
