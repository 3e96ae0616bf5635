"""The command line as a user types it: each command a process of its own, in a directory of its own."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from tests.processes import working_in

TIMEOUT_S = 120.0
AGENT = Path(__file__).parents[1] / "examples" / "echo_agent.py"


class Foreground:
    """A command that stays, such as `agentmgr proxy`, in "another terminal"."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.seen = ""

    def wait_for(self, pattern: str) -> str:
        """What it printed that matches; fails the test when it ends without, or does not come to it."""
        assert self._process.stdout is not None
        watchdog = threading.Timer(TIMEOUT_S, self._process.kill)
        watchdog.start()
        try:
            while not (found := re.search(pattern, self.seen)):
                line = self._process.stdout.readline()
                assert line, f"ended without {pattern!r}: {self.seen}"
                self.seen += line
            return found[0]
        finally:
            watchdog.cancel()

    def line(self) -> str:
        """The next line that it prints; empty when it has ended."""
        assert self._process.stdout is not None
        return self._process.stdout.readline()

    def interrupt(self) -> int:
        """Ctrl-C; its exit code."""
        self._process.send_signal(signal.SIGINT)
        return self.wait()

    def wait(self) -> int:
        rest, _ = self._process.communicate(timeout=TIMEOUT_S)
        self.seen += rest
        return self._process.returncode


class Terminal:
    """Runs commands in one directory, where `my_agent.py` is."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        (directory / "my_agent.py").write_text(AGENT.read_text())
        self._environment = {k: v for k, v in os.environ.items() if not k.startswith("AGENTMGR_")}
        self._foreground: list[subprocess.Popen[str]] = []

    def run(self, *words: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        """Runs it to its end, and insists on its exit code."""
        done = subprocess.run(
            [sys.executable, "-m", "agentmgr", *words],
            cwd=self.directory,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
        assert done.returncode == code, f"{words}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    def json(self, *words: str) -> Any:
        return json.loads(self.run(*words, "--format", "json").stdout)

    def refused(self, *words: str) -> str:
        """It fails with exit code 1 and one line, which is returned."""
        (line,) = self.run(*words, code=1).stderr.splitlines()
        return line

    def start(self, *words: str) -> Foreground:
        process = subprocess.Popen(
            [sys.executable, "-m", "agentmgr", *words],
            cwd=self.directory,
            env=self._environment | {"PYTHONUNBUFFERED": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._foreground.append(process)
        return Foreground(process)

    def processes(self) -> list[int]:
        """Everything that was started here and still runs."""
        return working_in(self.directory)

    def close(self) -> None:
        for process in self._foreground:
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
                process.communicate(timeout=TIMEOUT_S)
            elif process.stdout is not None:
                process.stdout.close()
