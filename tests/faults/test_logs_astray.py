"""Logs whose file is removed or renamed while an instance writes to it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import trio

from agentmgr.supervisor import logs, upkeep
from tests.faults.test_stubborn_processes import eventually, script

LIMIT = 2**18

# Numbered lines, about a megabyte a second, until it is told to be quiet.
CHATTER = """
    import os, pathlib, threading, time
    def chatter():
        number = 0
        while not pathlib.Path("quiet").exists():
            os.write(1, b"%07d %s\\n" % (number, b"x" * 1000))
            number += 1
            time.sleep(0.001)
        os.write(1, b"%07d the end\\n" % number)
    threading.Thread(target=chatter, daemon=True).start()
"""


@pytest.fixture
def tmp_path(on_disk):
    return on_disk


def remove(log: Path) -> None:
    log.unlink()


def remove_the_directory(log: Path) -> None:
    for file in log.parent.iterdir():
        file.unlink()
    log.parent.rmdir()


def rename(log: Path) -> None:
    log.rename(log.with_name("archive"))


def rename_and_create(log: Path) -> None:
    """As logrotate's `create`."""
    rename(log)
    log.touch(0o600)


def replace(log: Path) -> None:
    log.with_name("another").write_text("")
    log.with_name("another").rename(log)


def numbers(*files: Path) -> list[int]:
    text = b"".join(file.read_bytes().replace(b"\0", b"") for file in files if file.exists())
    return [int(line[:7]) for line in text.splitlines() if line[:7].isdigit() and len(line) > 8]


def open_file_of(s: object) -> os.stat_result:
    return os.stat(f"/proc/{s.instances()[0].pid}/fd/1")  # type: ignore[attr-defined]


@pytest.mark.parametrize("act", [remove, remove_the_directory, rename, rename_and_create, replace])
async def test_it_is_made_again_nothing_is_lost_and_the_limit_holds(supervisor, monkeypatch, tmp_path, act):
    monkeypatch.setattr(upkeep, "_LOGS_EVERY_S", (0.02, 0.1))
    async with supervisor() as s:
        spec = script(CHATTER, log_max_bytes=LIMIT, log_files=100, cwd=str(tmp_path))
        await s.start(spec)
        log = s.log_path("svc")
        await eventually(lambda: numbers(log))
        act(log)
        before = open_file_of(s).st_size
        until_then = numbers(Path(f"/proc/{s.instances()[0].pid}/fd/1"))[-1]
        await eventually(lambda: s.troubles())
        (trouble,) = s.troubles()
        assert trouble.startswith(f"the log {log} was removed or renamed while its service writes to it")
        most = 0

        def five_files_are_full():
            nonlocal most
            most = max(most, open_file_of(s).st_blocks * 512 - before)
            return len(list(log.parent.glob("0.log.*"))) >= 5

        await eventually(five_files_are_full)
        assert most < 20 * LIMIT  # some 0.1 s of it, on a busy machine
        (tmp_path / "quiet").touch()
        await eventually(lambda: log.read_bytes().endswith(b" the end\n"))
        copies = sorted(log.parent.glob("0.log.*"), key=lambda copy: -int(copy.suffix[1:]))
        found = numbers(*copies, log)
        assert found[0] <= until_then + 1
        assert found[-1] - found[0] == len(found) - 1  # none is missing, and none is there twice
        archive = log.with_name("archive")
        if archive.exists():
            assert set(range(found[0])) <= set(numbers(archive))
        await s.restart(spec, rolling=False)
        await eventually(lambda: s.troubles() == ())
        assert logs.identity(log) == (open_file_of(s).st_dev, open_file_of(s).st_ino)


async def test_what_is_renamed_back_is_its_log_again(supervisor, command, monkeypatch):
    monkeypatch.setattr(upkeep, "_LOGS_EVERY_S", (0.02, 0.05))
    async with supervisor() as s:
        await s.start(command("--say", "x" * 1000))
        log = s.log_path("svc")
        rename(log)
        await eventually(lambda: s.troubles())
        log.with_name("archive").rename(log)
        await eventually(lambda: s.troubles() == ())
        assert log.stat().st_size < 10_000


async def test_a_log_that_is_removed_while_it_is_looked_at_is_no_trouble(
    supervisor, command, monkeypatch, caplog
):
    monkeypatch.setattr(upkeep, "_LOGS_EVERY_S", (0.02, 0.05))
    identity, looks = logs.identity, []

    def removed_after_the_second_look(file):
        found = identity(file)
        looks.append(file)
        if len(looks) == 2:
            Path(file).unlink()
        return found

    async with supervisor() as s:
        await s.start(command())
        monkeypatch.setattr(logs, "identity", removed_after_the_second_look)
        await eventually(lambda: len(looks) > 3)
    assert "cannot rotate" not in caplog.text


async def test_output_that_a_service_sends_elsewhere_is_none_of_ours(supervisor, monkeypatch, tmp_path):
    monkeypatch.setattr(upkeep, "_LOGS_EVERY_S", (0.02, 0.05))
    code = """
        import os
        os.dup2(os.open("mine", os.O_WRONLY | os.O_CREAT), 1)
        os.write(1, b"x" * 100_000)
    """
    async with supervisor() as s:
        await s.start(script(code, cwd=str(tmp_path)))
        log = s.log_path("svc")
        log.unlink()
        await trio.sleep(0.3)  # several looks
        assert s.troubles() == ()
        assert (tmp_path / "mine").read_bytes() == b"x" * 100_000


@pytest.mark.parametrize("where", ["/dev/shm", None])
def test_what_is_moved_on_is_cut_out_of_the_file_and_what_came_before_stays(tmp_path, where):
    """On a file system that can cut out a part, and on one that can only make holes (tmpfs)."""
    if where is not None and not os.path.isdir(where):
        pytest.skip("no /dev/shm on this machine")
    directory = tmp_path if where is None else Path(where, tmp_path.name + str(os.getpid()))
    directory.mkdir(exist_ok=True)
    log, archive = directory / "0.log", directory / "archive"
    output = logs.open_for_append(log)
    try:
        with subprocess.Popen(
            [sys.executable, "-c", "input()"], stdin=subprocess.PIPE, stdout=output
        ) as writer:
            which = logs.written_by(writer.pid, log)
            assert which == logs.identity(log)
            assert which is not None
            os.write(output, b"before\n")
            log.rename(archive)
            assert logs.written_by(writer.pid, log) == which  # as the next manager finds it
            astray = logs.Astray(writer.pid, which, log, len(b"before\n"))
            for number in range(100):
                os.write(output, b"%05d" % number + b"y" * 10_000 + b"\n")
                astray.move_on(10**6)
            os.write(output, b"the end\n")
            astray.move_on(10**6)
            astray.close()
            writer.communicate(b"\n")
        lines = log.read_bytes().splitlines()
        assert [line[:5] for line in lines[:-1]] == [b"%05d" % number for number in range(100)]
        assert lines[-1] == b"the end"
        assert archive.read_bytes().startswith(b"before\n")
        assert archive.stat().st_blocks * 512 < 50_000
    finally:
        os.close(output)
        for left in directory.iterdir():
            left.unlink()
        if where is not None:
            directory.rmdir()


@pytest.mark.parametrize("act", [remove, rename])
async def test_the_next_manager_notices_what_happened_while_none_ran(
    supervisor, recorder, monkeypatch, tmp_path, act
):
    monkeypatch.setattr(upkeep, "_LOGS_EVERY_S", (0.02, 0.05))
    spec = script(CHATTER, cwd=str(tmp_path), log_max_bytes=LIMIT, log_files=100)
    async with supervisor(leave_running=True) as s:
        await s.start(spec)
        log = s.log_path("svc")
    act(log)
    async with supervisor(adopt=[(spec, list(recorder.records.values()))]) as s:
        await eventually(lambda: s.troubles())
        await eventually(lambda: numbers(log))
        (tmp_path / "quiet").touch()
        await eventually(lambda: log.read_bytes().endswith(b" the end\n"))
