"""The command as users type it, on a database of its own; what it starts is ended with the test."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from agentmgr.cli.entry import run
from agentmgr.process import detached
from agentmgr.process.paths import RuntimePaths
from tests.processes import alive, end_all_in, reap

ECHO = """
def create_agent():
    async def answer(message):
        print("got", message, flush=True)
        return f"echo: {message}"
    return answer
"""

TIMEOUT_S = 120


class Shell:
    """A directory to run `agentmgr` in.

    Commands run in this process, which is twenty times as fast; `background` and the managers that commands
    start are forks, except in tests that ask for `anew`; services, and what `process` runs, are processes as
    ever.
    """

    popen: type[subprocess.Popen[Any]] = subprocess.Popen

    def __init__(
        self, directory: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        self.directory = directory
        self.environment = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith("AGENTMGR_") and name != "NO_COLOR"
        }
        self.paths = RuntimePaths.of(directory / "agent_manager.db")
        self._monkeypatch = monkeypatch
        self._capsys = capsys
        monkeypatch.chdir(directory)

    def __call__(self, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Runs the command, however it ends."""
        self._capsys.readouterr()
        with self._monkeypatch.context() as patch:
            for name in os.environ.keys() - self.environment.keys():
                patch.delenv(name)
            for name, value in {**self.environment, **environment}.items():
                patch.setenv(name, value)
            with open(os.devnull) as nothing:
                patch.setattr(sys, "stdin", nothing)
                patch.setattr(detached, "subprocess", SimpleNamespace(Popen=self.popen))
                patch.setattr(logging.getLogger(), "handlers", [])  # as its stderr, for this call
                levels = {logger: logger.level for logger in map(logging.getLogger, ("", "agentmgr"))}
                try:
                    code = run(words)
                except SystemExit as end:  # after completion
                    code = end.code  # type: ignore[assignment]
                finally:
                    for logger, level in levels.items():  # what others see in the log is theirs to choose
                        logger.setLevel(level)
        said = self._capsys.readouterr()
        return subprocess.CompletedProcess(words, code, said.out, said.err)

    def process(self, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """The same in a process of its own."""
        return subprocess.run(
            [sys.executable, "-m", "agentmgr", *words],
            cwd=self.directory,
            env={**self.environment, **environment},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
        )

    def ok(self, *words: str, **environment: str) -> str:
        """What the command prints; it must succeed."""
        done = self(*words, **environment)
        assert done.returncode == 0, f"{words}: {done.stderr}"
        assert "Traceback" not in done.stderr
        return done.stdout

    def fails(self, *words: str, code: int = 1) -> str:
        """What the command says on stderr; it must fail with that code, and without a traceback."""
        done = self(*words)
        assert done.returncode == code, f"{words}: {done.returncode} {done.stdout} {done.stderr}"
        assert "Traceback" not in done.stderr
        return done.stderr

    @contextmanager
    def background(self, *words: str) -> Iterator[Foreground]:
        """The command in a terminal of its own, ended by the block's end if it has not ended before."""
        process = self.popen(
            [sys.executable, "-m", "agentmgr", *words],
            cwd=self.directory,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        with process:
            try:
                yield Foreground(process)
            finally:
                if process.poll() is None:
                    process.terminate()
                    try:
                        process.communicate(timeout=TIMEOUT_S)
                    except subprocess.TimeoutExpired:
                        process.kill()
                        raise

    def lives(self, pid: int) -> bool:
        return alive(pid)

    def kill_manager(self) -> int:
        """The pid of the one that was started in the background, which is gone with all its threads."""
        pid = self.manager_pid()
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        return pid

    def manager_pid(self) -> int | None:
        """Who holds the database."""
        try:
            return int(self.paths.lock.read_text())
        except (OSError, ValueError):
            return None


class Foreground:
    """A command that goes on."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def until(self, *wanted: str) -> str:
        """Reads its output to the line that has all these words, and returns that line."""
        assert self.process.stdout is not None
        seen = []
        watchdog = threading.Timer(TIMEOUT_S, self.process.kill)
        watchdog.start()
        try:
            for line in self.process.stdout:
                seen.append(line)
                if all(word in line for word in wanted):
                    return line
        finally:
            watchdog.cancel()
        raise AssertionError(f"{wanted} never came: {''.join(seen)}")

    def interrupt(self, number: int = signal.SIGINT) -> tuple[int, str]:
        """Ends it with a signal; its exit code, and what it still said."""
        self.process.send_signal(number)
        rest, _ = self.process.communicate(timeout=TIMEOUT_S)
        return self.process.returncode, rest


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Shell:
    """For all that needs no manager."""
    (tmp_path / "my_agent.py").write_text(ECHO)
    return Shell(tmp_path, monkeypatch, capsys)


@pytest.fixture
def shell(here: Shell, forks: type[subprocess.Popen[Any]]) -> Iterator[Shell]:
    """With managers, which end with the test."""
    here.popen = forks
    yield here
    end_all_in(here.directory)
    reap()


@pytest.fixture
def anew(shell: Shell) -> None:
    """Managers, and what `background` runs, start as users' do: for tests of how they start."""
    shell.popen = subprocess.Popen


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, str], str]:
    def write(name: str, text: str) -> str:
        (tmp_path / name).write_text(text)
        return name

    return write
