"""The same conditions on every machine: a laptop, a CI runner, and one that is busy with other work."""

import gc
import os

import pytest
from hypothesis import HealthCheck, settings

# Where pytest sees these it shows differences whole: those of two long texts take it an hour to work out.
for name in ("CI", "BUILD_NUMBER"):
    os.environ.pop(name, None)
# Users' commands write their output at the end; nor do they compile what they import each time.
for name in ("PYTHONUNBUFFERED", "PYTHONDONTWRITEBYTECODE"):
    os.environ.pop(name, None)

# No verdict depends on the machine's speed or on chance. `--hypothesis-profile=search` draws anew each time.
patient = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True)
settings.register_profile("search", patient)
settings.register_profile("suite", patient, derandomize=True, database=None)
settings.load_profile("suite")


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """One more than there are processors for the whole suite, none for tests that were named."""
    if config.args != config.getini("testpaths"):
        return 0
    return min(len(os.sched_getaffinity(0)), 7) + 1


# What was collected stays: to look for garbage in it, then and in each test, takes a tenth of their CPU time.
gc.disable()


@pytest.hookimpl(trylast=True)
def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()
