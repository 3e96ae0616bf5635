"""Each end of an instance is reported once: planned or not, why, and the last lines before it."""

from __future__ import annotations

import math
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from attrs import evolve

from agentmgr.core.restart import Exit
from agentmgr.errors import AgentManagerError
from agentmgr.models import DesiredStatus, InstanceRecord, RestartMode, ServiceConfig, ServiceSpec, utc_now
from agentmgr.supervisor import Supervisor
from agentmgr.supervisor.child import LocalChild
from agentmgr.supervisor.limits import Limits
from agentmgr.supervisor.logs import last_output, last_words
from agentmgr.testing import Behaviour, FakeLauncher
from agentmgr.testing.fake_launcher import FakeChild


def program(text: str, **config: object) -> ServiceSpec:
    words = (sys.executable, "-S", "-c", text)
    options = {"command": words, "ready": "started", "restart": "never", "startup_timeout": 2.0, **config}
    return ServiceSpec("svc", ServiceConfig(**options), desired_status=DesiredStatus.RUNNING)


async def test_a_crash_has_its_reason_and_the_last_twenty_lines_as_they_were(supervisor, recorder) -> None:
    text = (
        "import sys, time\n"
        "for n in range(30): print('line', n)\n"
        "sys.stdout.flush(); sys.stdout.buffer.write(b'\\x1b[31m\\xff end'); sys.stdout.flush()\n"
        "time.sleep(1.5); sys.exit(3)"
    )
    async with supervisor() as s:
        await s.start(program(text))
        await recorder.until(lambda: len(recorder.ends) == 1)
    (end,) = recorder.ends
    assert (end.planned, end.exit, end.slot) == (False, "exit code 3", 0)
    assert end.reason.startswith("ended unasked after")
    assert "line" not in end.reason
    assert end.output.splitlines() == [*(f"line {n}" for n in range(11, 30)), "\x1b[31m\ufffd end"]
    assert end.ran_s is not None
    assert end.ran_s > 1
    assert end.pid


async def test_a_stop_and_a_replacement_are_planned(supervisor, recorder, command) -> None:
    async with supervisor() as s:
        spec = command("--say", "hello")
        await s.start(spec)
        await s.restart(evolve(spec, version=2))
        assert [(end.planned, end.reason.partition(":")[0]) for end in recorder.ends] == [(True, "stopped")]
        assert "another instance" in recorder.ends[0].reason
        await s.stop(spec.service_id)
    assert [end.planned for end in recorder.ends] == [True, True]
    assert recorder.ends[1].reason == "stopped"
    assert "hello" in recorder.ends[1].output


async def test_a_crash_loop_has_an_end_for_each_run(supervisor, recorder) -> None:
    spec = program(
        "print('no'); raise SystemExit(1)", restart="always", max_restart_count=2, restart_delay=0.05
    )
    async with supervisor() as s:
        with pytest.raises(AgentManagerError):
            await s.start(spec)
        await recorder.until(lambda: len(recorder.ends) == 3)
    assert {(end.reason.partition(":")[0], end.exit, end.output) for end in recorder.ends} == {
        ("ended before it was ready", "exit code 1", "no\n")
    }


async def test_what_cannot_be_started_is_an_end_too(supervisor, recorder) -> None:
    spec = evolve(program(""), config=ServiceConfig(command=("/no/such/program",), restart="never"))
    async with supervisor() as s:
        with pytest.raises(AgentManagerError):
            await s.start(spec)
    (end,) = recorder.ends
    assert (end.planned, end.exit, end.pid) == (False, None, None)
    assert "/no/such/program" in end.reason


async def test_a_restart_for_its_health_is_not_planned(recorder, autojump_clock) -> None:
    launcher = FakeLauncher(Behaviour(unwell_between_s=(5, math.inf), last_words="stuck"), Behaviour())
    config = ServiceConfig(command=("x",), restart_delay=1, recovery_threshold=10, health_check_interval=1)
    async with Supervisor(recorder, launcher=launcher) as supervisor:
        await supervisor.start(ServiceSpec("svc", config))
        await recorder.until(lambda: len(recorder.ends) == 1)
    assert not recorder.ends[0].planned
    assert recorder.ends[0].reason == "unhealthy: the test makes it unwell"
    assert recorder.ends[0].output == "stuck"


async def test_a_failure_inside_the_supervisor_is_no_plan(recorder, autojump_clock, monkeypatch) -> None:
    launcher = FakeLauncher(Behaviour(ready_after_s=1))
    async with Supervisor(recorder, launcher=launcher) as supervisor:
        monkeypatch.setattr(FakeChild, "wait_ready", lambda self: 1 / 0)
        with pytest.raises(AgentManagerError):
            await supervisor.start(ServiceSpec("svc", ServiceConfig(command=("x",))))
    assert [(end.planned, "failed inside" in end.reason) for end in recorder.ends] == [(False, True)]


@pytest.mark.parametrize(
    ("written", "since", "seen"),
    [
        (b"", 0, ""),
        (b"one\ntwo\n", 4, "two\n"),
        (b"one\n", 100, "one\n"),  # it was rotated since
        (b"x" * 20_000 + b"\nlast\n", 0, "last\n"),
        (b"x" * 20_000, 0, "x" * 16_384),
    ],
)
def test_the_last_output_is_bounded(tmp_path: Path, written: bytes, since: int, seen: str) -> None:
    log = tmp_path / "0.log"
    log.write_bytes(written)
    assert last_output(log, since) == seen
    assert last_output(tmp_path / "none", 0) == ""


def test_last_words_are_without_colours(tmp_path: Path) -> None:
    log = tmp_path / "0.log"
    link = "\x1b]8;;http://localhost/\x1b\\the key\x1b]8;;\x1b\\"
    log.write_text(f"\x1b]0;title\x07\x1b[1;31merror\x1b[0m: {link} is not set\x1b[K\x1b[\n")
    assert last_words(log, 0) == "error: the key is not set["


async def test_a_process_that_its_memory_limit_has_ended_says_so(supervisor, recorder):
    script = "import time; time.sleep(1.5); x = bytearray(1 << 30)"
    async with supervisor() as s:
        config = ServiceConfig(
            command=(sys.executable, "-S", "-c", script), memory_limit_mb=200, restart=RestartMode.NEVER
        )
        await s.start(ServiceSpec("svc", config))
        await recorder.until(lambda: bool(recorder.ends))
        assert "memory limit" in recorder.ends[0].reason
        assert "200 MB" in recorder.ends[0].reason


def test_a_kill_by_the_kernel_is_told_from_another_by_what_the_group_counts(tmp_path):
    config = ServiceConfig(command=("x",), memory_limit_mb=64)
    limits, group = Limits(config, "name"), tmp_path / "group"
    group.mkdir()
    (group / "memory.max").write_text("67108864")
    limits._groups = [group]
    killed, other = Exit(signal=signal.SIGKILL), Exit(signal=signal.SIGTERM)
    process = SimpleNamespace(pid=1)
    record = InstanceRecord(
        "ins_1", "svc_1", 0, 1, 0, "boot", "token", "127.0.0.1", 1, 1, started_at=utc_now()
    )
    child = LocalChild(ServiceSpec("svc", config), record, process, tmp_path / "log", 0, limits=limits)
    assert child.out_of_memory(killed) is None, "another program did it"
    (group / "memory.events").write_text("low 0\nhigh 0\nmax 12\noom 1\noom_kill 1\n")
    assert child.out_of_memory(killed) == "killed by its memory limit (64 MB)"
    assert child.out_of_memory(other) is None
    again = LocalChild(ServiceSpec("svc", config), record, process, tmp_path / "log", 0, limits=limits)
    assert again.out_of_memory(killed) is None, "that was the process before"
