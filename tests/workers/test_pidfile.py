"""A worker belongs to the directory in which it keeps its file locked."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from agentmgr.process.paths import RuntimePaths
from agentmgr.worker.pidfile import living

WORKER = """
import os, sys
from agentmgr.process.paths import RuntimePaths
from agentmgr.worker.pidfile import PidFile, locked

with locked(RuntimePaths.of(sys.argv[1]).workers, PidFile("wrk_1", os.getpid(), guest=False)):
    print("locked", flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("copy", [shutil.copy2, os.link], ids=["copies", "hard links"])
def test_a_copy_of_the_directory_has_none_of_its_workers(tmp_path: Path, copy: Callable[..., object]) -> None:
    paths, elsewhere, moved = (RuntimePaths.of(tmp_path / name) for name in ("a.db", "b.db", "c.db"))
    paths.create()
    words = [sys.executable, "-c", WORKER, str(paths.database)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as worker:
        assert worker.stdout is not None
        worker.stdout.readline()
        shutil.copytree(paths.directory, elsewhere.directory, copy_function=copy)
        assert living(elsewhere.workers) == []
        assert [found.pid for found in living(paths.workers)] == [worker.pid]
        paths.directory.rename(moved.directory)
        assert [found.pid for found in living(moved.workers)] == [worker.pid]
