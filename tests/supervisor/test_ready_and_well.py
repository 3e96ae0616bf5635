"""How commands are found ready and well: by what they show, or by what their owner says they show.

Real processes that answer, say or do nothing; the rules are those of `agentmgr.supervisor.child`.
"""

import errno
import os
import re
import signal
import sys
from pathlib import Path

import pytest
import trio

from agentmgr.errors import InvalidRequest, ServiceFailedToStart
from agentmgr.models import DesiredStatus, HealthStatus, ServiceConfig, ServiceSpec, ServiceStatus
from agentmgr.supervisor import listening_sockets
from agentmgr.supervisor.own_checks import wait_for_line
from tests.ports import own_port

PROGRAM = str(Path(__file__).with_name("program.py"))
# Patient, where nothing is to be found silent: this machine may be busy for a second.
QUICK = {"health_check_interval": 0.05, "health_check_timeout": 20.0, "restart_delay": 0.05}
SILENT_AFTER = {"health_check_timeout": 2, "unhealthy_threshold": 1, "recovery_threshold": 0}


def program(*options, name="svc", **config):
    words = (sys.executable, "-S", PROGRAM, *options)
    config = {**QUICK, "startup_timeout": 60, "stop_timeout": 1, **config}
    return ServiceSpec(name, ServiceConfig(command=words, **config), desired_status=DesiredStatus.RUNNING)


SERVER = ("--listen", "{port}")


async def stays_well(s, recorder, checks=8, service_id=None):
    """It is checked so often more, and is never anything but running and healthy."""

    def made():
        return [check for check in recorder.checks if service_id in (None, check.service_id)]

    begin = len(made())
    await recorder.until(lambda: len(made()) >= begin + checks)
    assert {check.ok for check in made()} == {True}
    (instance,) = s.instances(service_id)
    assert (instance.status, instance.health) == (ServiceStatus.RUNNING, HealthStatus.HEALTHY)
    assert instance.restart_count == 0


# Who is ready, and stays well.

PROGRAMS = {
    "refuses / and has its route elsewhere": (SERVER, {}),
    "wants a token": ((*SERVER, "--answer", "401"), {}),
    "speaks HTTP only": ((*SERVER, "--answer", "200"), {}),
    "speaks WebSocket": ((*SERVER, "--websocket", "/"), {}),
    "a route that is named": ((*SERVER, "--websocket", "/ws"), {"ready": "websocket:/ws"}),
    "a health page": ((*SERVER, "--answer", "204"), {"ready": "http:/healthz"}),
    "another protocol": ((*SERVER, "--mute"), {"ready": "tcp"}),
    "fails at / and is asked elsewhere": ((*SERVER, "--answer", "500", "--websocket", "/ws"),
                                          {"ready": "websocket:/ws"}),
    "a worker": ((), {}),
    "a worker by name": ((), {"ready": "started", "health": "none"}),
    "a worker that says so": (("--notify", "READY=1"), {}),
    "a worker with a watchdog": (("--notify", "READY=1", "--watchdog", "0.05"), {}),
    "an HTTP server that says so": ((*SERVER, "--answer", "200", "--notify", "READY=1"), {}),
    "a server that says so and fails at /": ((*SERVER, "--answer", "501", "--notify", "READY=1"), {}),
    "a mute server that says so": ((*SERVER, "--mute", "--notify", "READY=1"), {"health_check_timeout": 0.1}),
    "told to wait for its word": ((*SERVER, "--mute", "--notify", "READY=1"), {"ready": "notify"}),
    "not to be asked": ((*SERVER, "--answer", "200"), {"health": "none"}),
    "on the port of its environment": (("--listen", "env", "--answer", "200"), {}),
}  # fmt: skip


async def test_they_become_ready_and_stay_well(supervisor, recorder):
    async def check(what, options, config):
        spec = program(*options, name=re.sub(r"\W", "-", what), **config)
        await s.start(spec)
        if "--listen" in options:
            await recorder.until(lambda: s.instances(spec.service_id)[0].serves is True)
        await stays_well(s, recorder, service_id=spec.service_id)
        assert s.instances(spec.service_id)[0].serves is (True if "--listen" in options else None), what

    async with supervisor() as s, trio.open_nursery() as nursery:
        for what, (options, config) in PROGRAMS.items():
            nursery.start_soon(check, what, options, config)


# What is said of one that is not.

UNREADY = [
    ((*SERVER, "--answer", "503"), {}, "answered 503 to the WebSocket handshake at / (where another path"),
    (SERVER, {"ready": "websocket"}, "answered 403 to the WebSocket handshake at / (where another path"),
    (SERVER, {"ready": "websocket:/ws"}, "answered 403 to the WebSocket handshake at /ws ("),
    (SERVER, {"ready": "http:/healthz"}, "answered 403 to GET /healthz ("),
    ((*SERVER, "--mute"), {}, "accepted and said nothing for 0.2 s "
                              "(where it speaks another protocol: --ready tcp)"),
    (("{port}",), {}, "connection refused at 127.0.0.1:PORT, and no READY=1 came "
                      "(where it serves no connections: --ready started)"),
    (("{port}",), {"ready": "tcp"}, "connection refused at 127.0.0.1:PORT"),
    (SERVER, {"ready": "notify"}, "no READY=1 came by sd_notify"),
]  # fmt: skip


async def test_not_ready_says_what_was_seen(supervisor, recorder):
    async def check(number, options, config, seen):
        options = [*options, "unused"] if options == ("{port}",) else options
        config = {"startup_timeout": 1.5, "health_check_timeout": 0.2, "restart": "never", **config}
        spec = program(*options, name=f"svc-{number}", **config)
        with pytest.raises(ServiceFailedToStart) as caught:
            await s.start(spec)
        (instance,) = s.instances(spec.service_id)
        expected = "not ready within 1.5 s: " + seen.replace("PORT", str(instance.port))
        assert expected in str(caught.value)
        assert instance.error_message.startswith(expected)
        last = [view for view in recorder.history if view.service_id == spec.service_id][-1]
        assert expected in last.error_message

    async with supervisor() as s, trio.open_nursery() as nursery:
        for number, case in enumerate(UNREADY):
            nursery.start_soon(check, number, *case)


async def test_one_that_listens_elsewhere_is_told_so(supervisor):
    port = own_port()
    async with supervisor() as s:
        with pytest.raises(ServiceFailedToStart, match=rf"it listens on port {port}: .* --port {port}"):
            await s.start(
                program("--listen", str(port), "--port", "{port}", startup_timeout=1.5, restart="never")
            )


async def test_unhealthy_says_what_was_seen_to_its_history_too(supervisor, recorder):
    async with supervisor() as s:
        await s.start(program(*SERVER, health_check_timeout=0.2, recovery_threshold=0.1))
        os.kill(s.instances()[0].pid, signal.SIGUSR1)
        await recorder.until(lambda: "backoff" in recorder.statuses())
        said = "accepted and said nothing for 0.2 s"
        assert said in {check.reason for check in recorder.checks}
        assert any(
            said in (view.error_message or "") for view in recorder.history if view.status == "unhealthy"
        )


# What it has shown, it is held to.


async def test_a_watchdog_that_falls_silent_is_noticed(supervisor, recorder):
    async with supervisor() as s:
        await s.start(program("--notify", "READY=1", "--watchdog", "0.05", **SILENT_AFTER))
        await stays_well(s, recorder)
        os.kill(s.instances()[0].pid, signal.SIGUSR1)
        await recorder.until(lambda: s.instances()[0].restart_count == 1)
        (reason,) = {view.error_message for view in recorder.history if view.status == "backoff"}
        assert re.match(r"unhealthy: no WATCHDOG=1 for \d\.\d s", reason)


async def test_a_websocket_server_that_hangs_is_noticed_although_it_said_that_it_is_ready(
    supervisor, recorder
):
    async with supervisor() as s:
        await s.start(program(*SERVER, "--websocket", "/", "--notify", "READY=1", **SILENT_AFTER))
        await recorder.until(lambda: s.instances()[0].serves is True)
        await stays_well(s, recorder)
        os.kill(s.instances()[0].pid, signal.SIGUSR1)
        await recorder.until(lambda: s.instances()[0].restart_count == 1)


async def test_an_http_server_that_said_that_it_is_ready_may_be_too_busy_to_answer(supervisor, recorder):
    async with supervisor() as s:
        await s.start(program(*SERVER, "--answer", "200", "--notify", "READY=1", health_check_timeout=0.1))
        await recorder.until(lambda: s.instances()[0].serves is True)
        await stays_well(s, recorder)
        os.kill(s.instances()[0].pid, signal.SIGUSR1)
        await stays_well(s, recorder)


async def test_one_that_only_ever_answered_must_go_on_answering(supervisor, recorder):
    async with supervisor() as s:
        await s.start(program("--listen", "env", **SILENT_AFTER))
        await recorder.until(lambda: s.instances()[0].serves is True)
        await stays_well(s, recorder)
        os.kill(s.instances()[0].pid, signal.SIGUSR1)
        await recorder.until(lambda: s.instances()[0].restart_count == 1)


async def test_a_watchdog_that_was_asked_for_must_come_and_its_time_is_told(supervisor, recorder, tmp_path):
    async with supervisor() as s:
        config = {"health_check_timeout": 0.2, "recovery_threshold": 0.1, "max_restart_count": 0}
        record = tmp_path / "record"
        await s.start(program("--record", str(record), health="watchdog", **config))
        await recorder.until(lambda: s.instances()[0].status is ServiceStatus.UNHEALTHY)
        assert "no WATCHDOG=1" in s.instances()[0].error_message
        assert record.read_text() == "WATCHDOG_USEC=200000\n"


async def test_without_that_no_watchdog_is_asked_for(supervisor, tmp_path):
    async with supervisor() as s:
        record = tmp_path / "record"
        await s.start(program("--record", str(record)))
        assert record.read_text() == "WATCHDOG_USEC=none\n"


# Without {port}: a worker, or a server that goes by PORT.


async def test_a_worker_that_ends_at_once_was_never_ready(supervisor):
    async with supervisor() as s:
        words = ("/bin/sh", "-c", "echo no such queue; exit 3")
        with pytest.raises(
            ServiceFailedToStart, match=r"(?s)before it was ready: exit code 3.*no such queue"
        ):
            await s.start(ServiceSpec("svc", ServiceConfig(command=words)))


async def test_a_worker_is_known_to_serve_nothing_when_its_start_is_over(supervisor, recorder):
    async with supervisor() as s:
        await s.start(program(startup_timeout=1))
        await recorder.until(lambda: s.instances()[0].serves is False)
        assert s.instances()[0].status is ServiceStatus.RUNNING


async def test_a_slow_server_that_goes_by_port_gets_clients_when_it_listens(supervisor, recorder):
    async with supervisor() as s:
        await s.start(program("--listen", "env", "--after", "2"))
        assert s.instances()[0].serves is None  # it is worth waiting for
        await recorder.until(lambda: s.instances()[0].serves is True)
        await stays_well(s, recorder)


async def test_one_that_opens_its_port_late_or_closes_it_is_noticed_by_its_checks(supervisor, recorder):
    async with supervisor() as s:
        await s.start(program("--listen", "env", "--after", "3", startup_timeout=1))
        await recorder.until(lambda: s.instances()[0].serves is False)
        await recorder.until(lambda: s.instances()[0].serves is True)


async def test_a_rolling_restart_of_such_a_server_waits_until_the_new_one_listens(supervisor, recorder):
    """That another instance of it serves tells the two kinds apart."""
    async with supervisor() as s:
        spec = program("--listen", "env", "--after", "2")
        await s.start(spec)
        (old,) = s.instances()
        await recorder.until(lambda: s.instances()[0].serves is True)
        await s.restart(spec)
        (new,) = s.instances()
        assert new.instance_id != old.instance_id
        assert new.serves is True
        ready = next(
            v for v in recorder.history if v.instance_id == new.instance_id and v.status == "running"
        )
        assert ready.serves is True


# Adoption: READY=1 is said once, to a manager that may be gone.


@pytest.mark.parametrize(
    "options", [("--notify", "READY=1"), (), (*SERVER, "--answer", "503", "--notify", "READY=1")]
)
async def test_what_was_ready_by_its_own_word_is_ready_for_the_next_manager(supervisor, recorder, options):
    spec = program(*options, startup_timeout=2)
    async with supervisor(leave_running=True) as s:
        await s.start(spec)
        (before,) = s.instances()
    async with supervisor(adopt=[(spec, list(recorder.records.values()))]) as s:
        await recorder.until(lambda: s.instances()[0].status is ServiceStatus.RUNNING, timeout_s=1.5)
        await stays_well(s, recorder)
        assert s.instances()[0].pid == before.pid


# What a server sees of it.


async def test_a_server_sees_one_connection_a_check_and_no_more(supervisor, recorder, tmp_path):
    record = tmp_path / "record"
    async with supervisor(health_check_interval=3600) as s:
        spec = program(*SERVER, "--after", "1", "--record", str(record), health_check_interval=3600)
        await s.start(spec)
        for _ in range(3):
            await s.check(spec.service_id)
        with trio.fail_after(20):
            while len(record.read_text().splitlines()) < 5:  # noqa: ASYNC110
                await trio.sleep(0.02)
    lines = record.read_text().splitlines()[1:]
    assert len(lines) == 4  # ready at the first, and three checks
    assert all(re.fullmatch(r"agentmgr-probe/[\d.]+ end", line) for line in lines)


async def test_one_that_answers_wrongly_is_asked_ever_more_rarely(supervisor, tmp_path):
    record = tmp_path / "record"
    async with supervisor() as s:
        spec = program(
            *SERVER, "--answer", "503", "--record", str(record), startup_timeout=4, restart="never"
        )
        with pytest.raises(ServiceFailedToStart, match="answered 503"):
            await s.start(spec)
    assert 3 <= len(record.read_text().splitlines()) - 1 <= 7


async def test_without_a_descriptor_to_look_with_a_worker_stays_as_it_was(supervisor, recorder, monkeypatch):
    def none_left(port):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    async with supervisor() as s:
        await s.start(program("--listen", "env", "--notify", "READY=1"))
        await recorder.until(lambda: s.instances()[0].serves is True)
        monkeypatch.setattr(listening_sockets, "on_port", none_left)
        await stays_well(s, recorder)
        assert s.instances()[0].serves is True


async def test_it_is_ready_when_it_writes_the_line(supervisor, recorder, tmp_path):
    go = tmp_path / "go"
    script = f"echo loading; until [ -e {go} ]; do sleep 0.01; done; printf 'model loaded in 3 s'; sleep 1000"
    config = ServiceConfig(command=("/bin/sh", "-c", script), ready="log:loaded in [0-9]+ s$")
    spec = ServiceSpec("svc", config)
    async with supervisor() as s:
        for _ in range(2):  # the line of the first process does not count for the second
            go.unlink(missing_ok=True)
            await s.start(spec, wait=False)
            await recorder.until(lambda: any(i.pid is not None for i in s.instances()))
            assert s.instances()[0].status is ServiceStatus.STARTING
            go.touch()
            await recorder.until(lambda: s.instances()[0].status is ServiceStatus.RUNNING)
            await s.stop(spec.service_id)


async def test_a_flood_of_lines_holds_up_nothing_else(tmp_path):
    log, turns = tmp_path / "log", 0
    log.write_text(60_000 * "\n" + "loaded\n")

    async def other() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(other)
        await wait_for_line(log, 0, "loaded")
        nursery.cancel_scope.cancel()
    assert turns >= 100


async def test_without_the_line_it_says_which(supervisor):
    config = ServiceConfig(
        command=("sleep", "1000"), ready="log:loaded", startup_timeout=0.5, restart="never"
    )
    async with supervisor() as s:
        with pytest.raises(ServiceFailedToStart, match="no line of its output matches 'loaded'"):
            await s.start(ServiceSpec("svc", config))


async def test_a_command_says_whether_it_is_well(supervisor, recorder, tmp_path):
    sick = tmp_path / "sick"
    check = f'command:/bin/sh -c "test $AGENTMGR_SERVICE = svc && test $PORT -gt 0 && ! cat {sick}"'
    config = ServiceConfig(
        command=("sleep", "1000"), health=check, ready="started", health_check_interval=0.05,
        unhealthy_threshold=1, recovery_threshold=1000,
    )  # fmt: skip
    async with supervisor() as s:
        await s.start(ServiceSpec("svc", config))
        await recorder.until(lambda: bool(recorder.checks))
        assert recorder.checks[0].ok
        sick.write_text("the index is stale")
        await recorder.until(lambda: s.instances()[0].status is ServiceStatus.UNHEALTHY)
        assert "/bin/sh ended with 1: the index is stale" in s.instances()[0].error_message
        sick.unlink()
        await recorder.until(lambda: s.instances()[0].status is ServiceStatus.RUNNING)


async def test_a_check_that_hangs_is_ended_with_what_it_has_started(supervisor, recorder, tmp_path):
    marker = tmp_path / "marker"
    config = ServiceConfig(
        command=("sleep", "1000"), health=f"command:/bin/sh -c 'sleep 30 & echo $! > {marker}; wait'",
        ready="started", health_check_interval=0.05, health_check_timeout=0.5,
    )  # fmt: skip
    async with supervisor() as s:
        await s.start(ServiceSpec("svc", config))
        await recorder.until(lambda: any(not check.ok for check in recorder.checks))
        assert "/bin/sh gave no answer for 0.5 s" in next(c for c in recorder.checks if not c.ok).reason


@pytest.mark.parametrize("how", ["log", "log:", "log:(", "log:a\nb", r"log:(a)\1", "log:(?=a)"])
def test_what_a_pattern_must_be(how):
    with pytest.raises(InvalidRequest, match="ready"):
        ServiceConfig(command=("x",), ready=how)


@pytest.mark.parametrize("how", ["command", "command:", "command:'x"])
def test_what_a_checks_command_must_be(how):
    with pytest.raises(InvalidRequest, match="health"):
        ServiceConfig(command=("x",), health=how)
