"""Talkative children, full disks and slow databases."""

import os
import select
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import trio

from agentmgr.errors import ServiceFailedToStart, StorageError
from agentmgr.models import ServiceStatus
from agentmgr.supervisor import log_window, logs, upkeep
from agentmgr.supervisor import recorder as recorder_module
from tests.faults.test_stubborn_processes import eventually, script
from tests.log_tail import tail


@pytest.fixture
def tmp_path(on_disk):
    return on_disk


def disk_use(directory: Path) -> int:
    return sum(file.stat().st_blocks * 512 for file in directory.rglob("*") if file.is_file())


async def test_a_flood_without_a_newline_is_bounded_and_blocks_nobody(supervisor, monkeypatch, tmp_path):
    monkeypatch.setattr(upkeep, "_LOGS_EVERY_S", (0.02, 0.1))
    # As fast as the rotation allows: how far it may lag behind is a matter of the machine.
    flood = """
        import os, pathlib, threading, time
        def pour():
            for _ in range(16 * 2**20 // 4096):
                while os.fstat(1).st_blocks * 512 > 2 * 2**20:
                    time.sleep(0.005)
                os.write(1, b"x" * 4096)
            pathlib.Path("poured").touch()
        threading.Thread(target=pour, daemon=True).start()
    """
    limit = 2**20
    async with supervisor(health_check_interval=0.1) as s:
        spec = script(flood, log_max_bytes=limit, log_files=3, cwd=str(tmp_path))
        await s.start(spec)
        live = s.log_path("svc")
        most = 0

        def over():
            nonlocal most
            most = max(most, disk_use(live.parent))
            return (tmp_path / "poured").exists()

        await eventually(over)
        await eventually(live.with_name("0.log.2").exists)
        assert not live.with_name("0.log.3").exists()
        assert most < 3 * 2 * limit + 2 * limit
        (check,) = await s.check(spec.service_id)
        assert check.ok
        assert s.instances()[0].restart_count == 0


async def test_of_what_it_says_in_one_breath_only_the_end_is_told(supervisor, command):
    async with supervisor() as s:
        with pytest.raises(ServiceFailedToStart) as caught:
            await s.start(command("--say", "x" * 100_000, "--never-listen", "--exit-after", "0"))
        assert 4000 < len(str(caught.value)) < 5000


async def test_a_flood_is_noticed_as_it_begins(supervisor, monkeypatch, tmp_path):
    """However long ago somebody looked at all logs: they take what they may, and what comes in 0.2 s."""
    monkeypatch.setattr(upkeep, "_LOGS_EVERY_S", (0.1, 3600))
    rate = 64 * 2**20  # bytes per second, at most: what it was too late for is not made up for
    flood = f"""
        import os, pathlib, threading, time
        def pour():
            while not pathlib.Path("pour").exists():
                time.sleep(0.01)
            for _ in range(256):
                os.write(1, bytes({rate} // 256))
                time.sleep(1 / 256)
            pathlib.Path("poured").touch()
        threading.Thread(target=pour, daemon=True).start()
    """
    limit, files = 2**20, 3
    async with supervisor() as s:
        await s.start(script(flood, log_max_bytes=limit, log_files=files, cwd=str(tmp_path)))
        (tmp_path / "pour").touch()
        most, longest, looked = 0, 0.0, trio.current_time()
        while not (tmp_path / "poured").exists():
            most = max(most, disk_use(s.log_path("svc").parent))
            await trio.sleep(0.005)
            # A busy machine keeps the supervisor waiting as long as it does this loop.
            looked, longest = trio.current_time(), max(longest, trio.current_time() - looked)
        assert most < limit * (2 * files - 1) + rate * (0.2 + 4 * longest)


@pytest.mark.parametrize("where", ["/dev/shm", None])
def test_a_rotation_loses_nothing_while_the_writer_writes(tmp_path, where):
    """On a file system that can cut off a file's front, and on one that can only make holes (tmpfs)."""
    if where is not None and not os.path.isdir(where):
        pytest.skip("no /dev/shm on this machine")
    directory = tmp_path if where is None else Path(where, tmp_path.name + str(os.getpid()))
    directory.mkdir(exist_ok=True)
    try:
        file = directory / "0.log"
        # Pours as much as it is told to, no more: of a flood that outruns its rotation only the end is kept.
        code = (
            "import os, sys, time\n"
            "for i in range(0, 60000, 100):\n"
            "    if i % 5000 == 0: os.write(2, b'?'), os.read(0, 1)\n"
            "    os.write(1, b''.join(b'%09d\\n' % n for n in range(i, i + 100)))\n"
            "    time.sleep(0.001)\n"
        )
        output = logs.open_for_append(file)
        pipe = subprocess.PIPE
        with subprocess.Popen([sys.executable, "-c", code], stdin=pipe, stdout=output, stderr=pipe) as writer:
            os.close(output)
            assert writer.stdin is not None
            assert writer.stderr is not None
            rotations = 0
            asks, give_up_at = False, time.monotonic() + 20
            while writer.poll() is None:
                assert time.monotonic() < give_up_at
                asks = asks or bool(
                    select.select([writer.stderr], [], [], 0)[0] and os.read(writer.stderr.fileno(), 1)
                )
                if asks and file.stat().st_blocks * 512 < 2**16:
                    os.write(writer.stdin.fileno(), b".")
                    asks = False
                rotations += logs.rotate(file, 2**16, 1000)
        assert rotations > 3
        copies = sorted(directory.glob("0.log.*"), key=lambda copy: -int(copy.suffix[1:]))
        lines = b"".join(copy.read_bytes() for copy in copies) + file.read_bytes().lstrip(b"\0")
        # Not one long comparison: the difference between two long texts takes minutes to be worked out.
        for number, line in enumerate(lines.splitlines()):
            assert int(line) == number
        assert lines.count(b"\n") == 60000
        assert file.stat().st_blocks * 512 < 2 * 2**16
    finally:
        for left in directory.iterdir():
            left.unlink()
        if where is not None:
            directory.rmdir()


@pytest.fixture
def small_disk(tmp_path):
    """A file system of one megabyte where the logs go."""
    target = tmp_path / "logs"
    target.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m,nr_inodes=64", "tmpfs", str(target)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("this user may not mount a file system")
    yield target
    subprocess.run(["umount", "-l", str(target)], check=True)


async def test_with_a_full_disk_services_run_on_and_are_restarted(
    supervisor, recorder, command, small_disk, monkeypatch
):
    monkeypatch.setattr(upkeep, "_LOGS_EVERY_S", (0.02, 0.05))
    async with supervisor() as s:
        await s.start(spec := command("--say", "x" * 100_000, log_max_bytes=2**16))
        filler = small_disk / "filler"
        with filler.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space"):
            while True:
                file.write(bytes(4096))
        with pytest.raises(OSError, match="No space"):  # not even for the names of new files
            for number in range(64):
                (small_disk / f"{number}").touch()
        s.log_path("svc").open("ab").close()
        os.kill(s.instances()[0].pid, signal.SIGKILL)
        await recorder.until(lambda: recorder.statuses().count(ServiceStatus.BACKOFF) == 1)
        await s.start(command(name="another"))
        assert s.instances()[1].status is ServiceStatus.RUNNING
        assert not s.log_path("another").exists()
        filler.unlink()
        await s.start(spec)
        assert s.instances()[0].status is ServiceStatus.RUNNING


async def test_a_full_disk_costs_old_logs_before_a_service_cannot_write(
    supervisor, command, small_disk, monkeypatch
):
    monkeypatch.setattr(upkeep, "_LOGS_EVERY_S", (0.02, 0.05))
    async with supervisor() as s:
        await s.start(spec := command(log_max_bytes=2**16, log_files=6))
        log = s.log_path("svc")
        output = logs.open_for_append(log)  # as the service has it
        try:
            for number in range(1, 4):
                os.write(output, b"x" * 2**16)
                await eventually(log.with_name(f"0.log.{number}").exists)
            with (small_disk / "filler").open("wb") as filler:
                os.posix_fallocate(filler.fileno(), 0, os.statvfs(small_disk).f_bfree * 4096)
            await eventually(lambda: s.troubles() == ("the disk is full: the oldest logs are removed",))
            assert not log.with_name("0.log.3").exists()
            assert os.write(output, b"y" * 4096) == 4096
            (small_disk / "filler").unlink()
            await eventually(lambda: s.troubles() == ())
            assert s.instances(spec.service_id)[0].restart_count == 0
        finally:
            os.close(output)


async def test_a_log_that_cannot_be_rotated_is_a_trouble_that_passes(
    supervisor, recorder, command, monkeypatch
):
    monkeypatch.setattr(upkeep, "_LOGS_EVERY_S", (0.02, 0.05))
    rotate, full = logs.rotate, True

    def rotate_if_there_is_room(*args):
        if full:
            raise OSError(28, "No space left on device")
        return rotate(*args)

    monkeypatch.setattr(logs, "rotate", rotate_if_there_is_room)
    async with supervisor() as s:
        await s.start(command())
        await eventually(lambda: s.troubles() == ("logs cannot be kept within their bounds",))
        assert s.instances()[0].status is ServiceStatus.RUNNING
        full = False
        await eventually(lambda: s.troubles() == ())


async def test_a_database_that_is_locked_or_full_stops_nothing(supervisor, recorder, command, monkeypatch):
    monkeypatch.setattr(recorder_module, "PATIENCE_S", 0.2)
    write, broken = recorder.instance_spawned, True

    async def locked_or_full(record):
        if broken == "locked":
            await trio.sleep_forever()
        if broken:
            raise OSError("disk full")
        await write(record)

    recorder.instance_spawned = locked_or_full
    async with supervisor(health_check_interval=0.05) as s:
        for broken in (True, "locked"):
            spec = command(name=f"svc-{broken}")
            with trio.fail_after(20):
                await s.start(spec)
            (instance,) = s.instances(spec.service_id)
            os.kill(instance.pid, signal.SIGKILL)
            with trio.fail_after(20):
                await recorder.until(lambda: s.instances(spec.service_id)[0].restart_count == 1)  # noqa: B023
                await recorder.until(lambda: s.instances(spec.service_id)[0].status == "running")  # noqa: B023
            if broken is True:
                assert s.troubles() == ("1 instance could not be written down",)
                assert recorder.records == {}
                broken = False
                await eventually(lambda: len(recorder.records) == 1)  # it recovers by itself
                assert s.troubles() == ()
                assert next(iter(recorder.records.values())).pid == s.instances()[0].pid
            with trio.fail_after(20):
                await s.stop(spec.service_id)


@pytest.mark.parametrize(
    ("error", "traced"), [(StorageError("the disk is full"), False), (ValueError(), True)]
)
async def test_a_full_disk_is_told_in_one_line_and_an_owners_mistake_with_its_traceback(
    caplog, error, traced
):
    class Failing(recorder_module.NullRecorder):
        async def instance_gone(self, instance_id):
            raise error

    await recorder_module.RetryingRecorder(Failing()).instance_gone("ins_1")
    (record,) = caplog.records
    assert bool(record.exc_info) is traced


async def test_what_an_instance_uses_is_measured(supervisor, monkeypatch):
    monkeypatch.setattr(upkeep, "_USAGE_EVERY_S", 0.1)
    monkeypatch.setattr(upkeep, "_LOGS_EVERY_S", (0.05, 0.05))
    busy = """
        import os, threading
        memory = bytearray(30 << 20)
        threading.Thread(target=lambda: [None for _ in iter(int, 1)], daemon=True).start()
        os.fork() or time.sleep(600) if (time := __import__("time")) else None
    """
    async with supervisor() as s:
        await s.start(script(busy))
        (instance,) = s.instances()
        await eventually(lambda: len(s.usage(instance.instance_id)) > 5)
        last = s.usage(instance.instance_id)[-1]
        assert last.processes == 2
        assert last.threads >= 3
        assert last.memory_bytes > 30 << 20
        # In a tenth of a second a busy thread may get nothing on a machine that has other work.
        await eventually(lambda: any(each.cpu_percent > 0 for each in s.usage(instance.instance_id)))
        assert last.open_files >= 4


async def test_an_instance_that_puts_a_pipe_where_its_log_was_holds_nothing_up(supervisor):
    """Whoever opens a pipe waits for its other end: the manager's loop did when the instance had ended."""
    pipe = """
        import os
        log = os.readlink("/proc/self/fd/1")
        os.unlink(log)
        os.mkfifo(log)
        os.mkfifo(log + ".1")
        os._exit(1)
    """
    async with supervisor() as s:
        with trio.fail_after(60):
            with pytest.raises(ServiceFailedToStart):
                await s.start(script(pipe, auto_restart=False))
            log = s.log_path("svc")
            assert log.is_fifo()
            for look in (partial(log_window.window, log, 10), partial(log_window.search, log, "x", 10)):
                await trio.to_thread.run_sync(look, abandon_on_cancel=True)
            assert await tail(log, 10) == (b"", 0)
