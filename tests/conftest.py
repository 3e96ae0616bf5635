"""The same conditions on every machine: a laptop, a CI runner, and one that is busy with other work."""

import gc
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from agentmgr.supervisor import fork_server
from tests.forks import background, forking

# Where pytest sees these it shows differences whole: those of two long texts take it an hour to work out.
for name in ("CI", "BUILD_NUMBER"):
    os.environ.pop(name, None)
# Users' commands write their output at the end; nor do they compile what they import each time.
for name in ("PYTHONUNBUFFERED", "PYTHONDONTWRITEBYTECODE"):
    os.environ.pop(name, None)

# In the background of a script SIGINT is ignored, and would be by all that tests start and interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Each commit is forced to the disk, and waits for it: a third of the time of a test that has a database. In
# memory it need not. Tests of file systems ask for `tmp_path` from `on_disk`.
_MEMORY, _ENOUGH_BYTES = Path("/dev/shm"), 2**31
if _MEMORY.is_dir() and os.access(_MEMORY, os.W_OK) and shutil.disk_usage(_MEMORY).free > _ENOUGH_BYTES:
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(_MEMORY))

# No verdict depends on the machine's speed or on chance. `--hypothesis-profile=search` draws anew each time,
# and more.
patient = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True)
settings.register_profile("search", patient)
settings.register_profile("suite", patient, derandomize=True, database=None, max_examples=60)
settings.load_profile("suite")


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """One more than there are processors for the whole suite, none for tests that were named."""
    if config.args != config.getini("testpaths"):
        return 0
    return min(len(os.sched_getaffinity(0)) + 1, 8)


# What was collected stays: to look for garbage in it, then and in each test, takes a tenth of their CPU time.
gc.disable()


@pytest.hookimpl(trylast=True)
def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


@pytest.fixture
def on_disk() -> Iterator[Path]:
    """A directory that is not in memory."""
    with tempfile.TemporaryDirectory(prefix="agentmgr-test-") as directory:
        yield Path(directory)


@pytest.fixture(scope="session")
def forks() -> Iterator[type[subprocess.Popen[Any]]]:
    with forking() as popen:
        yield popen


@pytest.fixture
def commands_fork(forks: type[subprocess.Popen[Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    """What is started as `PYTHON -m agentmgr …` are forks: for tests of what commands do once they run."""
    monkeypatch.setattr(subprocess, "Popen", forks)


@pytest.fixture
def fork_servers_fork(forks: type[subprocess.Popen[Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of managers in this process: for tests of what hosted agents do once they run."""
    monkeypatch.setattr(fork_server, "subprocess", background(forks))
