"""The fault matrix: what can go wrong, one file per theme; `test_matrix.py` says which tests hold each row.

What depends on timing is drawn at random from a printed seed; `python -m tests.faults --rounds N` runs
these at length and counts.
"""

import random

import pytest

from tests.supervisor.conftest import (  # noqa: F401  (fixtures)
    alive,
    command,
    descendants,
    descriptors,
    hosted,
    recorder,
    supervisor,
)

# So that what fails in them says how, as it does in a test's own file.
pytest.register_assert_rewrite(
    *(f"tests.faults.{name}" for name in ("__main__", "conversations", "managers", "scenarios", "sessions"))
)


@pytest.fixture
def seed() -> int:
    """A fresh one for each run; pytest shows what a failing test has printed."""
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed={seed}")
    return seed
