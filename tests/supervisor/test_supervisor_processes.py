"""The supervisor with real processes and real handshakes."""

import json
import os
import signal
import socket
import subprocess
import sys

import pytest
import trio
import trio.testing
from attrs import evolve

from agentmgr.errors import PortNotAvailable, ServiceFailedToStart
from agentmgr.models import HealthStatus, ServiceConfig, ServiceSpec, ServiceStatus
from agentmgr.supervisor.local import LocalLauncher
from tests.proxy.conftest import connected


async def test_started_means_that_a_client_is_served_and_stopped_that_nothing_is_left(
    supervisor, recorder, command, alive
):
    async with supervisor() as s:
        spec = command()
        await s.start(spec)
        (instance,) = s.instances()
        assert (instance.status, instance.health) == (ServiceStatus.RUNNING, HealthStatus.HEALTHY)
        assert recorder.records[instance.instance_id].pid == instance.pid
        async with connected(f"ws://127.0.0.1:{instance.port}/") as ws:
            await ws.send_message("hello")
            assert await ws.get_message() == "hello"
        await s.stop(spec.service_id)
        assert not alive(instance.pid)
        assert s.instances() == ()
        assert recorder.records == {}
    assert recorder.statuses() == ["starting", "running", "draining", "stopping", "stopped"]


async def test_a_hosted_agent_inherits_its_socket_and_proves_itself(supervisor, hosted):
    async with supervisor() as s:
        await s.start(hosted())
        assert s.instances()[0].status is ServiceStatus.RUNNING


async def test_a_hosted_agent_without_the_proof_is_never_ready(supervisor, hosted):
    async with supervisor() as s:
        with pytest.raises(
            ServiceFailedToStart, match=r"not ready within 0\.5 s: the answer comes from another process"
        ):
            await s.start(hosted("--wrong-proof", startup_timeout=0.5))


async def test_a_client_that_connects_during_a_restart_waits_instead_of_being_refused(
    supervisor, recorder, hosted
):
    async with supervisor() as s:
        await s.start(hosted(restart_delay=0.5))
        (first,) = s.instances()
        os.kill(first.pid, signal.SIGKILL)
        await recorder.until(lambda: s.instances()[0].status is ServiceStatus.BACKOFF)
        async with connected(f"ws://127.0.0.1:{first.port}/") as ws:
            await ws.send_message("still there?")
            assert await ws.get_message() == "still there?"


async def test_kill_9_is_followed_by_a_restart_at_the_same_address(supervisor, recorder, command):
    async with supervisor() as s:
        await s.start(command())
        (first,) = s.instances()
        os.kill(first.pid, signal.SIGKILL)
        await recorder.until(lambda: len(recorder.statuses()) == 5)
        (second,) = s.instances()
        assert (second.instance_id, second.port) == (first.instance_id, first.port)
        assert (second.restart_count, second.restarts_left, second.last_exit) == (1, 2, "SIGKILL")
        assert second.pid != first.pid
        assert recorder.records[second.instance_id].pid == second.pid
        assert recorder.statuses() == ["starting", "running", "backoff", "starting", "running"]


async def test_who_sent_the_signal_that_ended_it_is_told_as_far_as_it_is_known(supervisor, recorder, command):
    async with supervisor() as s:
        await s.start(command())
        os.kill(s.instances()[0].pid, signal.SIGKILL)
        await recorder.until(lambda: s.instances()[0].status is ServiceStatus.BACKOFF)
        assert "SIGKILL, which another program or the system sent" in s.instances()[0].error_message


async def test_what_a_child_gets(supervisor, hosted, tmp_path, monkeypatch):
    monkeypatch.setenv("API_KEY", "from the manager")
    monkeypatch.setenv("NOTIFY_SOCKET", "/run/systemd/notify")
    report, cwd = tmp_path / "report.json", tmp_path / "elsewhere"
    cwd.mkdir()
    spec = hosted("--report", str(report), env={"MODEL": "small"}, cwd=str(cwd), max_sessions=7)
    async with supervisor() as s:
        await s.start(spec)
        (instance,) = s.instances()
    given = json.loads(report.read_text())
    environ, argv = given["environ"], given["argv"]
    assert (environ["API_KEY"], environ["MODEL"]) == ("from the manager", "small")
    assert (environ["HOST"], environ["PORT"]) == ("127.0.0.1", str(instance.port))
    assert (environ["AGENTMGR_SERVICE"], environ["AGENTMGR_INSTANCE_ID"]) == ("svc", instance.instance_id)
    assert len(environ["AGENTMGR_INSTANCE_TOKEN"]) == 64
    assert "NOTIFY_SOCKET" not in environ
    assert given["cwd"] == str(cwd)
    assert given["sid"]
    assert given["pgrp"]
    assert argv[1] == "agent.py"
    options = dict(zip(argv[2::2], argv[3::2], strict=False))
    # Its three standard streams, the directory that the report was made from, the socket, and its lifeline.
    assert len(set(given["fds"]) - {0, 1, 2, 3, int(options["--fd"])}) <= 1
    assert json.loads(options["--options"]) == {"max_conversations": 7}, "what differs from the defaults"


async def test_output_goes_to_the_log_file_of_its_slot(supervisor, command, tmp_path):
    async with supervisor() as s:
        await s.start(command("--say", "good morning"))
        assert s.log_path("svc").read_text() == "good morning\n"
        assert s.log_path("svc") == tmp_path / "logs" / "svc" / "0.log"
        assert s.log_path("svc").stat().st_mode & 0o777 == 0o600


async def test_exit_78_puts_the_last_words_into_the_error_at_once(supervisor, command):
    async with supervisor() as s:
        spec = command(
            "--never-listen", "--say", "SyntaxError: line 3", "--exit-after", "0", "--exit-code", "78"
        )
        with pytest.raises(ServiceFailedToStart, match="SyntaxError: line 3"):
            await s.start(spec)
        (instance,) = s.instances()
        assert (instance.status, instance.error_message) == (ServiceStatus.ERROR, "SyntaxError: line 3")
        assert instance.last_exit == "exit code 78"


async def test_last_words_are_those_of_this_launch(supervisor, recorder, command):
    async with supervisor() as s:
        spec = command("--say", "first words")
        await s.start(spec)
        await s.stop(spec.service_id)
        with pytest.raises(ServiceFailedToStart) as caught:
            await s.start(command("--never-listen", "--exit-after", "0", "--exit-code", "1"))
        assert "first words" not in str(caught.value)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("/no/such/program",), "cannot execute '/no/such/program': No such file or directory"),
        (("/etc/passwd",), "cannot execute '/etc/passwd': Permission denied"),
    ],
)
async def test_a_program_that_cannot_be_executed_is_an_error_at_once(supervisor, words, reason):
    async with supervisor() as s:
        with pytest.raises(ServiceFailedToStart, match=reason):
            await s.start(ServiceSpec("svc", ServiceConfig(command=words)))
        (instance,) = s.instances()
        assert (instance.status, instance.restart_count) == (ServiceStatus.ERROR, 0)


async def test_a_program_that_exits_with_127_is_not_taken_for_one_that_cannot_be_executed(supervisor):
    async with supervisor() as s:
        with pytest.raises(ServiceFailedToStart, match="before it was ready: exit code 127"):
            await s.start(ServiceSpec("svc", ServiceConfig(command=("/bin/sh", "-c", "exit 127"))))
        assert s.instances()[0].status is ServiceStatus.BACKOFF


async def test_a_missing_working_directory_is_named(supervisor, command):
    async with supervisor() as s:
        with pytest.raises(ServiceFailedToStart, match="cannot work in directory '/no/such'"):
            await s.start(command(cwd="/no/such"))


async def test_a_fixed_port_that_is_taken_is_refused_and_its_holder_named(supervisor, command, hosted):
    async with supervisor() as s:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            for spec in (command(port=port), hosted(port=port)):
                with pytest.raises(PortNotAvailable, match=rf"port {port} .* \(pid {os.getpid()}\)"):
                    await s.start(spec)
                assert s.instances(spec.service_id)[0].status is ServiceStatus.ERROR


async def test_fifty_services_at_once_get_fifty_ports(supervisor, command, hosted):
    async with supervisor() as s:
        make = [command, hosted]
        async with trio.open_nursery() as nursery:
            for i in range(50):
                # On a busy machine fifty interpreters take longer than one is given.
                nursery.start_soon(s.start, make[i % 2](name=f"svc{i}", startup_timeout=150))
        ports = {instance.port for instance in s.instances()}
        assert len(ports) == 50
        assert {instance.status for instance in s.instances()} == {ServiceStatus.RUNNING}


async def test_a_command_whose_port_was_snatched_gets_another(supervisor, command, monkeypatch):
    from agentmgr.supervisor import addresses

    with socket.create_server(("127.0.0.1", 0)) as stranger:
        snatched = stranger.getsockname()[1]
        lend = addresses.Ports.lend
        tries = []

        def lend_the_snatched_one_first(self, host, port):
            tries.append(port)
            return snatched if len(tries) == 1 else lend(self, host, port)

        monkeypatch.setattr(addresses.Ports, "lend", lend_the_snatched_one_first)
        async with supervisor() as s:
            await s.start(command())  # it is the same try to whoever waits
            (instance,) = s.instances()
            assert instance.status is ServiceStatus.RUNNING
            assert instance.port != snatched
            assert (instance.restart_count, instance.restarts_left) == (1, 3)


async def test_a_worker_in_the_group_and_a_daemon_that_left_it_are_gone_after_a_stop(
    supervisor, command, descendants
):
    async with supervisor() as s:
        spec = command("--worker", "--escapee")
        await s.start(spec)
        assert len(descendants()) == 3
        await s.stop(spec.service_id)
        assert descendants() == []


async def test_they_are_gone_before_a_crashed_leader_is_started_again(
    supervisor, recorder, command, descendants
):
    async with supervisor() as s:
        await s.start(command("--worker", "--escapee"))
        before = set(descendants())
        os.kill(s.instances()[0].pid, signal.SIGKILL)
        await recorder.until(lambda: len(recorder.statuses()) == 5)
        assert len(descendants()) == 3
        assert not before & set(descendants())


async def test_one_that_ignores_term_is_killed_at_the_deadline(supervisor, command, alive):
    async with supervisor() as s:
        spec = command("--ignore-term", stop_timeout=0.3)
        await s.start(spec)
        (instance,) = s.instances()
        begin = trio.current_time()
        await s.stop(spec.service_id)
        assert trio.current_time() - begin >= 0.3
        assert not alive(instance.pid)


async def test_one_that_is_suspended_hears_the_term(supervisor, recorder, command):
    async with supervisor() as s:
        spec = command(stop_timeout=15)  # then it is killed
        await s.start(spec)
        (instance,) = s.instances()
        os.kill(instance.pid, signal.SIGSTOP)
        await s.stop(spec.service_id)
        assert recorder.history[-1].last_exit == "exit code 0"


async def test_workers_have_the_same_time_to_end_as_their_leader(supervisor, tmp_path):
    # The shell ends at once; the worker takes a moment, and must be allowed to.
    done = tmp_path / "done"
    worker = f"trap 'sleep 0.3; touch {done}; exit' TERM; while :; do sleep 0.05; done"
    script = f'trap "exit 0" TERM; sh -c "$WORKER" & {sys.executable} -S "$@" & wait'
    async with supervisor() as s:
        child = os.path.join(os.path.dirname(__file__), "child.py")
        words = ("/bin/sh", "-c", script, "sh", child, "--port", "{port}")
        spec = ServiceSpec("svc", ServiceConfig(command=words, env={"WORKER": worker}))
        await s.start(spec)
        await s.stop(spec.service_id)
        assert done.exists()


async def test_the_whole_group_hears_the_term(supervisor):
    # The shell is deaf to it and ends only after what it has started.
    child = os.path.join(os.path.dirname(__file__), "child.py")
    script = f'trap "" TERM; (trap - TERM; exec {sys.executable} -S "$@") & wait'
    async with supervisor() as s:
        words = ("/bin/sh", "-c", script, "sh", child, "--port", "{port}")
        spec = ServiceSpec("svc", ServiceConfig(command=words, stop_timeout=600))
        await s.start(spec)
        with trio.fail_after(60):
            await s.stop(spec.service_id)


async def test_without_a_place_for_its_log_a_service_runs_all_the_same(supervisor, command, caplog):
    async with supervisor() as s:
        s.log_path("svc").parent.write_text("in the way")
        await s.start(command("--say", "unheard"))
        assert s.instances()[0].status is ServiceStatus.RUNNING
    assert "output is lost" in caplog.text


async def test_a_hung_instance_is_noticed_by_its_checks_and_replaced(supervisor, recorder, command):
    async with supervisor(health_check_interval=0.1) as s:
        await s.start(command(health_check_timeout=0.1, recovery_threshold=0.2, stop_timeout=0.1))
        os.kill(s.instances()[0].pid, signal.SIGUSR2)
        await recorder.until(lambda: "backoff" in recorder.statuses())
        before = recorder.statuses()[: recorder.statuses().index("backoff")]
        assert before[:2] == ["starting", "running"]
        assert before[-1] == "unhealthy"
        assert "unhealthy: accepted and said nothing for 0.1 s" in recorder.history[-1].error_message


async def test_check_asks_now(supervisor, recorder, command, hosted):
    async with supervisor(health_check_interval=3600) as s:
        for spec in (command(name="a", instances=2), hosted("--status", "healthy", name="b")):
            await s.start(spec)
            checks = await s.check(spec.service_id)
            assert len(checks) == spec.config.instances
            assert all(check.ok and check.latency_s < 5 for check in checks)
        assert len(recorder.checks) == 3
        assert await s.check("nothing of that id") == ()


async def test_a_hosted_agent_that_calls_itself_degraded_stays_routable(supervisor, recorder, hosted):
    async with supervisor(health_check_interval=0.05) as s:
        await s.start(hosted("--status", "degraded"))
        await recorder.until(lambda: s.instances()[0].health is HealthStatus.DEGRADED)
        assert s.instances()[0].status is ServiceStatus.RUNNING
        assert s.instances()[0].error_message  # says why


async def test_the_next_supervisor_adopts_what_was_left_running(supervisor, recorder, command, hosted, alive):
    specs = [command("--worker", name="a"), hosted(name="b")]
    async with supervisor(leave_running=True) as s:
        for spec in specs:
            await s.start(spec)
        before = {view.instance_id: (view.pid, view.port) for view in s.instances()}
    assert all(alive(pid) for pid, _ in before.values())
    records = list(recorder.records.values())
    adopt = [(spec, [r for r in records if r.service_id == spec.service_id]) for spec in specs]
    async with supervisor(adopt=adopt) as s:
        for spec in specs:
            await s.start(spec)  # a no-op once they have answered
        assert {view.instance_id: (view.pid, view.port) for view in s.instances()} == before
        # And an adopted one is supervised like any other.
        victim = s.instances(specs[1].service_id)[0]
        os.kill(victim.pid, signal.SIGKILL)
        await recorder.until(lambda: s.instances(specs[1].service_id)[0].restart_count == 1)
        await recorder.until(lambda: s.instances(specs[1].service_id)[0].status is ServiceStatus.RUNNING)
        (instance,) = s.instances(specs[1].service_id)
        assert (instance.port, instance.last_exit) == (victim.port, "SIGKILL")


@pytest.mark.parametrize(
    "forgery",
    [{"process_start": 1}, {"token": "0" * 64}, {"boot_id": "another boot"}, {"pid": 2**22 - 1}],
    ids=lambda forgery: next(iter(forgery)),
)
async def test_only_what_matches_in_every_point_is_adopted(supervisor, recorder, command, forgery):
    spec = command()
    async with supervisor(leave_running=True) as s:
        await s.start(spec)
    (record,) = recorder.records.values()
    slot = LocalLauncher(s.log_path("svc").parents[1]).slot(spec, record.instance_id, 0)
    assert slot.adopt(evolve(record, **forgery)) is None
    child = slot.adopt(record)
    assert child is not None
    await child.end(5)
    assert slot.adopt(record) is None
    slot.close()


async def test_what_no_record_tells_of_is_swept_and_a_forged_record_touches_nobody(
    supervisor, recorder, command, descendants, alive
):
    spec = command()
    async with supervisor(leave_running=True) as s:
        await s.start(spec)
    (record,) = recorder.records.values()
    with subprocess.Popen(["sleep", "600"]) as stranger:
        try:
            forged = evolve(record, pid=stranger.pid)
            async with supervisor(adopt=[(spec, [forged])]) as s:
                assert descendants() == []
                assert s.instances() == ()
                assert recorder.records == {}
            assert stranger.poll() is None
        finally:
            stranger.kill()


async def test_descriptors_are_back_to_where_they_were(supervisor, command, hosted, descriptors):
    async with supervisor() as s:
        await s.start(command(name="warm-up"))
        before = descriptors()
        for spec in (command(name="a", instances=5), hosted(name="b", instances=5)):
            await s.start(spec)
            await s.restart(spec)
            await s.stop(spec.service_id)
        assert descriptors() <= before  # less, where one was about to be closed
