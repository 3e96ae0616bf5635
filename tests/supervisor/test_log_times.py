"""When lines were written is known beside the log: it survives rotation, truncation and a clock set back."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import pytest

from agentmgr.supervisor import log_times, logs
from agentmgr.supervisor.log_file import LogFile
from agentmgr.supervisor.log_source import Selection
from agentmgr.supervisor.tail import show


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "0.log"


def write(log: Path, text: str, at: float) -> None:
    """As an instance does at that time, and `Upkeep` after it."""
    descriptor = logs.open_for_append(log)
    os.write(descriptor, text.encode())
    os.close(descriptor)
    os.utime(log, (at, at))
    log_times.note(log, log.stat())


async def shown(files: dict[str, Path], **wanted: object) -> list[str]:
    pieces: list[bytes] = []

    async def take(piece: bytes) -> None:
        pieces.append(piece)

    await show(
        {key: LogFile(path) for key, path in files.items()}, take, Selection(**wanted), following=False
    )  # type: ignore[arg-type]
    return b"".join(pieces).decode().splitlines()


def seconds(at: float) -> datetime:
    return datetime.fromtimestamp(at, UTC)


async def test_lines_of_several_logs_come_in_the_order_of_time(tmp_path: Path) -> None:
    one, two = tmp_path / "1.log", tmp_path / "2.log"
    for number in range(6):
        write((one, two)[number % 2], f"line {number}\n", 100 + number)
    files = {"a": one, "b": two}
    assert await shown(files) == [f"[{'ab'[n % 2]}] line {n}" for n in range(6)]
    assert await shown(files, lines=1) == ["[a] line 4", "[b] line 5"]
    assert await shown(files, lines=None, since=seconds(103)) == [
        f"[{'ab'[n % 2]}] line {n}" for n in (3, 4, 5)
    ]
    assert await shown(files, lines=1, grep="^line [01]$") == [
        "[a] line 0",
        "[b] line 1",
    ]


async def test_a_line_that_is_not_finished_ends_before_that_of_another_log(tmp_path: Path) -> None:
    write(tmp_path / "1.log", "no end", 1)
    write(tmp_path / "2.log", "line\n", 2)
    assert await shown({"a": tmp_path / "1.log", "b": tmp_path / "2.log"}) == ["[a] no end", "[b] line"]


async def test_each_line_shows_its_time(log: Path) -> None:
    write(log, "one\ntwo\n", 0.25)
    write(log, "three\n", 60)
    assert await shown({"0": log}, timestamps=True) == [
        "1970-01-01T00:00:00.250Z one",
        "1970-01-01T00:00:00.250Z two",
        "1970-01-01T00:01:00.000Z three",
    ]


async def test_what_was_not_noted_yet_has_the_time_of_the_last_write(log: Path) -> None:
    write(log, "noted\n", 10)
    with log.open("a") as file:
        file.write("new\n")
    os.utime(log, (20, 20))
    assert await shown({"0": log}, lines=None, since=seconds(15)) == ["new"]


async def test_a_log_of_before_is_readable_and_its_times_are_not_known(log: Path) -> None:
    log.write_text("old\n")
    assert await shown({"0": log}, timestamps=True) == [f"{'-':25}old"]
    log_times.note(log, log.stat())
    write(log, "new\n", 5)
    assert await shown({"0": log}, timestamps=True) == [f"{'-':25}old", "1970-01-01T00:00:05.000Z new"]
    assert await shown({"0": log}, lines=None, since=seconds(0.1)) == ["new"]


@pytest.mark.parametrize("directory", ["tmp_path", "on_disk"])
async def test_rotated_lines_keep_their_times(request: pytest.FixtureRequest, directory: str) -> None:
    """On a file system that can cut off a file's front, and on one that can only make holes (tmpfs)."""
    log = request.getfixturevalue(directory) / "0.log"
    width, count = 128, 4096
    stamped = partial(_numbered, width)
    for number in range(count):
        write(log, stamped(number), 1000 + number)
        if number % 256 == 255:
            logs.rotate(log, 2**16, 3)
    lines = await shown({"0": log}, lines=None, timestamps=True)
    assert log.with_name("0.log.2").exists()
    assert len(lines) > 2**17 // width
    for line, number in zip(lines, range(count - len(lines), count), strict=True):
        time, text = line.split(" ", 1)
        assert int(text) == number
        assert datetime.fromisoformat(time).timestamp() == 1000 + number
    assert log.with_suffix(".times").stat().st_size <= 16 * (len(lines) + 512), (
        "of what is gone no time is kept"
    )


def _numbered(width: int, number: int) -> str:
    return f"{number:0{width - 1}}\n"


@pytest.mark.parametrize("empty", [partial(os.truncate, length=0), os.remove])
async def test_a_log_that_is_emptied_or_removed_begins_anew(log: Path, empty: Callable[[Path], None]) -> None:
    write(log, "a long line that is gone then\n", 1)
    empty(log)
    write(log, "new\n", 2)
    assert await shown({"0": log}, timestamps=True) == ["1970-01-01T00:00:02.000Z new"]


async def test_a_full_index_is_thinned(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_times, "_MOST", 16)
    for number in range(100):
        write(log, f"{number}\n", number + 1)
    assert log.with_suffix(".times").stat().st_size <= 16 * 17
    times = [line.split(" ")[0] for line in await shown({"0": log}, timestamps=True)]
    assert times == sorted(times)
    assert times[-1] == "1970-01-01T00:01:40.000Z"


async def test_a_clock_that_is_set_back_turns_no_lines_round(log: Path) -> None:
    write(log, "first\n", 100)
    write(log, "second\n", 50)
    write(log, "third\n", 101)
    assert await shown({"0": log, "1": log.with_name("1.log")}) == ["[0] first", "[0] second", "[0] third"]
