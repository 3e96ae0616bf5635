"""Jobs: what `completed` means, who may wait for it, and that a manager's restart runs nothing twice."""

import os
import signal
from pathlib import Path

import pytest
import trio

from agentmgr.errors import InvalidRequest, ServiceFailedToStart
from agentmgr.manager import AgentManager
from agentmgr.models import HealthStatus, RestartMode, Service, ServiceConfig, ServiceStatus

JOB = ServiceConfig(restart=RestartMode.NEVER, stop_timeout=5)


async def register(manager: AgentManager, name: str, script: str, **options: object) -> Service:
    config = options.pop("config", JOB)
    command = ("/bin/sh", "-c", script)
    return await manager.register_service(name, command=command, config=config, **options)  # type: ignore[arg-type]


async def become(manager: AgentManager, name: str, *statuses: ServiceStatus) -> Service:
    with trio.fail_after(60), manager.subscribe() as events:
        while (service := manager.get_service(name)).status not in statuses:
            await events.receive()
        return service


@pytest.mark.parametrize("script", ["exit 0", "sleep 1.5"], ids=["at once", "after it was ready"])
async def test_a_job_that_exits_with_0_has_completed(db: Path, script: str) -> None:
    async with AgentManager(db) as manager:
        await register(manager, "job", script, auto_start=True)
        job = await become(manager, "job", ServiceStatus.COMPLETED)
        assert (job.error_message, job.health, job.started_at) == (None, HealthStatus.UNKNOWN, None)
        assert job.instances[0].last_exit == "exit code 0"
        kinds = [event.kind for event in await manager.get_events()]
        assert kinds.count("instance.completed") == 1
        assert "instance.error" not in kinds
        assert manager.get_system_stats()["services"]["completed"] == 1


async def test_a_job_that_fails_is_in_error(db: Path) -> None:
    async with AgentManager(db) as manager:
        with pytest.raises(ServiceFailedToStart, match="exit code 3"):
            await register(manager, "job", "echo no such table; exit 3", auto_start=True)
        job = manager.get_service("job")
        assert job.status is ServiceStatus.ERROR
        assert "no such table" in str(job.error_message)


async def test_an_agents_end_is_not_a_jobs(db: Path, agent_file) -> None:
    """It never ends by itself: it got a signal from another program."""
    async with AgentManager(db) as manager:
        agent = await manager.register_service("agent", agent_file(), config=JOB, auto_start=True)
        assert agent.instances[0].pid is not None
        await trio.run_process(["kill", str(agent.instances[0].pid)])
        assert (await become(manager, "agent", ServiceStatus.ERROR)).error_message


async def test_what_comes_after_a_job_waits_until_that_has_completed(db: Path, tmp_path: Path) -> None:
    async with AgentManager(db) as manager:
        go = tmp_path / "go"
        await register(manager, "migrate", f"until [ -e {go} ]; do sleep 0.01; done", auto_start=True)
        follower = ServiceConfig(after=["migrate:completed"], restart=RestartMode.NEVER)
        await register(manager, "app", f"test -e {go}", config=follower)
        await manager.start_service("app", wait=False)
        await become(manager, "app", ServiceStatus.STARTING)
        assert manager.get_service("app").error_message == "waits for service 'migrate' to complete"
        go.touch()
        await become(manager, "app", ServiceStatus.COMPLETED)


async def test_what_comes_after_a_job_that_has_failed_says_so_and_starts_when_that_has_completed(
    db: Path, tmp_path: Path
) -> None:
    async with AgentManager(db) as manager:
        fixed = tmp_path / "fixed"
        with pytest.raises(ServiceFailedToStart):
            await register(manager, "migrate", f"test -e {fixed}", auto_start=True)
        follower = ServiceConfig(after=["migrate:completed"], restart=RestartMode.NEVER)
        with pytest.raises(ServiceFailedToStart, match="waits for service 'migrate' to complete, which has"):
            await register(manager, "app", "exit 0", config=follower, auto_start=True)
        fixed.touch()
        await manager.start_service("migrate")
        await become(manager, "app", ServiceStatus.COMPLETED)


async def test_a_completed_job_is_there_for_what_comes_after_it_without_more(db: Path) -> None:
    async with AgentManager(db) as manager:
        await register(manager, "job", "exit 0", auto_start=True)
        follower = ServiceConfig(after=["job"], restart=RestartMode.NEVER)
        app = await register(manager, "app", "exit 0", config=follower, auto_start=True)
        assert app.status is ServiceStatus.COMPLETED


async def test_only_completed_may_follow_the_colon(db: Path) -> None:
    async with AgentManager(db) as manager:
        with pytest.raises(InvalidRequest, match="a service's name, or NAME:completed, not 'a:ready'"):
            await register(manager, "job", "exit 0", config=ServiceConfig(after=["a:ready"]))
        await register(manager, "a", "exit 0", config=ServiceConfig(after=["b:completed"]))
        with pytest.raises(InvalidRequest, match="wait for each other"):
            await register(manager, "b", "exit 0", config=ServiceConfig(after=["a"]))


async def test_the_next_manager_does_not_run_it_again_and_knows_that_it_has_completed(
    db: Path, tmp_path: Path
) -> None:
    runs = tmp_path / "runs"
    async with AgentManager(db) as manager:
        await register(manager, "job", f"echo run >> {runs}", auto_start=True)
        follower = ServiceConfig(after=["job:completed"], restart=RestartMode.NEVER)
        await register(manager, "app", "exit 0", config=follower)
    async with AgentManager(db) as manager:
        assert manager.get_service("job").status is ServiceStatus.COMPLETED
        assert (await manager.start_service("app")).status is ServiceStatus.COMPLETED
        assert runs.read_text() == "run\n"
        (end,) = await manager.get_ends("job")
        assert (end.planned, end.reason, end.exit) == (True, "completed", "exit code 0")
        assert (await manager.start_service("job")).status is ServiceStatus.COMPLETED
        assert runs.read_text() == "run\nrun\n"
        assert (await manager.stop_service("job")).status is ServiceStatus.STOPPED
    async with AgentManager(db) as manager:
        assert manager.get_service("job").status is ServiceStatus.STOPPED


async def test_a_job_that_the_managers_end_has_cut_short_is_run_again(db: Path, tmp_path: Path) -> None:
    begun, again = tmp_path / "begun", tmp_path / "again"
    async with AgentManager(db) as manager:
        script = f"test -e {begun} && echo > {again} && exit 0; echo > {begun}; sleep 1000"
        await register(manager, "job", script, auto_start=True)
    async with AgentManager(db) as manager:
        await become(manager, "job", ServiceStatus.COMPLETED)
        assert again.exists()


EACH_SECOND = ServiceConfig(schedule="* * * * * *", stop_timeout=5)


async def test_a_schedule_runs_a_process_again_and_again_until_it_is_stopped(
    db: Path, tmp_path: Path
) -> None:
    runs = tmp_path / "runs"
    async with AgentManager(db) as manager:
        await register(manager, "job", f"echo run >> {runs}", config=EACH_SECOND)
        assert (await manager.start_service("job")).status is ServiceStatus.SCHEDULED
        with trio.fail_after(60), manager.subscribe() as events:
            done = 0
            while done < 3:
                done += (await events.receive()).kind == "instance.completed"
        job = manager.get_service("job")
        assert job.last_run is not None
        assert job.next_run_at is not None
        rows = await manager.service_rows()
        assert rows[job.service_id]["next_run_at"] is not None
        await manager.stop_service("job")
        assert manager.get_service("job").status is ServiceStatus.STOPPED
        assert manager.get_service("job").next_run_at is None
        count = len(runs.read_text().split())
    assert count >= 3
    assert len(runs.read_text().split()) == count


async def test_what_a_schedule_must_be(db: Path, agent_file) -> None:
    async with AgentManager(db) as manager:
        for said, config in (
            ("five fields of cron", {"schedule": "at noon"}),
            ("bad day-of-month", {"schedule": "0 0 31 2 *"}),
            ("timezone is not known on this machine: 'Mars/Olympus'",
             {"schedule": "0 3 * * *", "timezone": "Mars/Olympus"}),
            ("instances must be 1", {"schedule": "0 3 * * *", "instances": 2}),
            ("restart cannot be always", {"schedule": "0 3 * * *", "restart": RestartMode.ALWAYS}),
        ):  # fmt: skip
            with pytest.raises(InvalidRequest, match=said):
                await register(manager, "job", "exit 0", config=ServiceConfig(**config))
        with pytest.raises(InvalidRequest, match="a schedule is for a command"):
            await manager.register_service(
                "agent", agent_file(), config=ServiceConfig(schedule="0 3 * * *"), auto_start=True
            )


async def test_a_schedule_is_taken_away_and_then_it_always_runs(db: Path) -> None:
    config = ServiceConfig(schedule="0 3 1 1 *", stop_timeout=5)
    async with AgentManager(db) as manager:
        await register(manager, "job", "sleep 1000", config=config)
        assert (await manager.start_service("job")).next_run_at is not None
        changed = await manager.update_service("job", {"schedule": None})
        assert (changed.config.schedule, changed.next_run_at) == (None, None)
        await become(manager, "job", ServiceStatus.RUNNING)
        await manager.stop_service("job")


async def test_a_job_that_ended_while_no_manager_ran_is_not_run_again_by_itself(
    db: Path, tmp_path: Path
) -> None:
    runs = tmp_path / "runs"
    async with AgentManager(db) as manager:
        await register(manager, "job", f"echo run >> {runs}; exec sleep 1000", auto_start=True)
        pid = manager.get_service("job").instances[0].pid
        assert pid is not None
        manager.request_shutdown(leave_running=True)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)  # noqa: ASYNC222  # it was killed
    for _ in range(2):
        async with AgentManager(db) as manager:
            job = manager.get_service("job")
            assert job.status is ServiceStatus.STOPPED
            assert "not known how it ended" in str(job.error_message)
            assert "`agentmgr start job` runs it again" in str(job.error_message)
            assert runs.read_text() == "run\n"
    async with AgentManager(db) as manager:
        await manager.start_service("job")
        assert manager.get_service("job").error_message is None
        assert runs.read_text() == "run\nrun\n"


async def test_a_completed_job_is_completed_also_where_nothing_is_supervised(db: Path) -> None:
    async with AgentManager(db) as manager:
        await register(manager, "job", "exit 0", auto_start=True)
    async with AgentManager(db, supervise=False) as manager:
        assert manager.get_service("job").status is ServiceStatus.COMPLETED
