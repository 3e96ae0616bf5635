"""Log records: pretty on a terminal, JSON lines elsewhere, under the standard library's names."""

import io
import json
import logging
import os
import subprocess
import sys

import pytest

from agentmgr.logging_setup import configure_logging, logging_to
from agentmgr.settings import LogFormat, LogLevel

log = logging.getLogger("agentmgr.some.module")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _logging_as_before():
    root, ours = logging.getLogger(), logging.getLogger("agentmgr")
    before = root.handlers[:], root.level, ours.level
    root.handlers.clear()
    yield
    for handler in root.handlers:
        handler.close()
    root.handlers[:], level, our_level = before
    root.setLevel(level)
    ours.setLevel(our_level)


def test_a_stream_that_is_no_terminal_gets_a_json_object_a_line():
    stream = io.StringIO()
    configure_logging(stream=stream)
    log.info("session %s\nended", 7, extra={"session_id": "s7"})
    log.warning("again")
    first, second = map(json.loads, stream.getvalue().splitlines())
    assert first["event"] == "session 7\nended"
    assert first["session_id"] == "s7"
    assert (first["level"], first["logger"]) == ("info", "agentmgr.some.module")
    assert first["timestamp"].endswith("Z")
    assert second["event"] == "again"


def test_a_traceback_is_one_line_of_json_too():
    stream = io.StringIO()
    configure_logging(stream=stream)
    try:
        raise ValueError("boom")
    except ValueError:
        log.exception("failed")
    (line,) = stream.getvalue().splitlines()
    assert "ValueError: boom" in json.loads(line)["exception"]


def test_a_terminal_gets_coloured_lines(monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    stream = Terminal()
    configure_logging(stream=stream)
    log.info("hello", extra={"service": "weather"})
    assert "hello" in stream.getvalue()
    assert "\x1b[" in stream.getvalue()


def test_no_color_is_heeded(monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    stream = Terminal()
    configure_logging(stream=stream)
    log.info("hello", extra={"service": "weather"})
    assert "service=weather" in stream.getvalue()
    assert "\x1b" not in stream.getvalue()


def test_a_clients_words_cannot_forge_a_line_or_move_the_cursor():
    stream = io.StringIO()
    configure_logging(format=LogFormat.PRETTY, stream=stream)
    log.info("refused %s", "a\nFAKE \x1b[2J", extra={"path": "/\r\n"})
    assert len(stream.getvalue().splitlines()) == 1
    assert r"a\nFAKE \x1b[2J" in stream.getvalue()
    assert "\x1b" not in stream.getvalue()


def test_the_level_is_for_our_records_and_others_warn(tmp_path):
    stream = io.StringIO()
    configure_logging(LogLevel.INFO, stream=stream)
    log.debug("quiet")
    logging.getLogger("hypercorn").info("quiet")
    logging.getLogger("hypercorn").warning("loud")
    logging.getLogger("agentmgr").setLevel(logging.DEBUG)  # as the guide says
    log.debug("loud")
    assert [json.loads(line)["event"] for line in stream.getvalue().splitlines()] == ["loud", "loud"]


def test_the_file_gets_json_beside_the_terminal_and_does_not_grow_for_ever(tmp_path, monkeypatch):
    monkeypatch.setattr("agentmgr.logging_setup.FILE_BYTES", 2000)
    file = tmp_path / "daemon.log"
    terminal = Terminal()
    configure_logging(stream=terminal)
    with logging_to(file):
        for number in range(200):
            log.info("line %d", number)
    log.info("not in the file")
    assert terminal.getvalue().count("line ") == 200
    *_, last = file.read_text().splitlines()
    assert json.loads(last)["event"] == "line 199"
    assert len(os.listdir(tmp_path)) == 6
    assert all(kept.stat().st_size <= 2000 for kept in tmp_path.iterdir())
    assert {kept.stat().st_mode & 0o777 for kept in tmp_path.iterdir()} == {0o600}


def test_the_file_alone_gets_what_nobody_sees(tmp_path):
    stream, file = io.StringIO(), tmp_path / "daemon.log"
    configure_logging(stream=stream)
    with logging_to(file, alone=True):
        log.info("to the file")
    log.info("to the stream")
    assert [json.loads(line)["event"] for line in file.read_text().splitlines()] == ["to the file"]
    assert [json.loads(line)["event"] for line in stream.getvalue().splitlines()] == ["to the stream"]


def test_a_second_call_replaces_the_first():
    one, two = io.StringIO(), io.StringIO()
    configure_logging(stream=one)
    configure_logging(stream=two)
    log.info("once")
    assert one.getvalue() == ""
    assert len(two.getvalue().splitlines()) == 1


def test_structlog_is_imported_only_for_a_terminal():
    """It takes a tenth of a second, which a manager in the background and its workers start without."""
    script = """
import logging, sys
from agentmgr.logging_setup import configure_logging
configure_logging()
logging.getLogger("agentmgr").warning("a record")
sys.exit("structlog" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True, text=True)
    assert (done.returncode, json.loads(done.stderr)["event"]) == (0, "a record")


def test_whatever_a_record_carries_is_a_line_of_json():
    stream = io.StringIO()
    configure_logging(stream=stream)
    log.info("%s", "\ud800\n天", extra={"thing": object, "message_bytes": 7}, stack_info=True)
    log.info("no exception", exc_info=True)
    first, second = map(json.loads, stream.getvalue().splitlines())
    assert (first["event"], first["thing"], first["message_bytes"]) == ("\ud800\n天", repr(object), 7)
    assert first["stack_info"].startswith("Stack")
    assert set(second) == {"event", "logger", "level", "timestamp", "exception"}


@pytest.mark.parametrize("act", ["removed", "renamed", "replaced", "with its directory"])
def test_a_file_that_loses_its_name_is_made_again(tmp_path, act):
    directory = tmp_path / "logs"
    directory.mkdir()
    file = directory / "m.log"
    with logging_to(file, alone=True):
        log.warning("first")
        if act == "renamed":
            file.rename(directory / "archive")
        else:
            file.unlink()
        if act == "replaced":
            file.touch()
        if act == "with its directory":
            directory.rmdir()
            log.warning("lost, and raises nothing")
            directory.mkdir()
        log.warning("second")
        log.warning("third")
    assert [json.loads(line)["event"] for line in file.read_text().splitlines()] == ["second", "third"]
    assert file.stat().st_mode & 0o777 == 0o600 or act == "replaced"
    if act == "renamed":
        assert json.loads((directory / "archive").read_text())["event"] == "first"
