"""Clusters under random faults, in memory and of real processes; `tests.faults` has commands for more."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import trio

from tests.faults.cluster import run_faults
from tests.faults.memory_cluster import run_seeded


@pytest.mark.parametrize("seed", range(24))
def test_random_faults_in_memory(seed: int) -> None:
    done, wrongs = run_seeded(seed, most_faults=15)
    assert wrongs == []
    assert done


def test_random_kills_of_real_processes(tmp_path: Path) -> None:
    async def run() -> tuple[list[str], int]:
        done, talkers, visitors = await run_faults(
            tmp_path, random.Random(1), seconds=3, clients=3, nodes=2, gateways="head"
        )
        return done.faults, min(len(talkers), *(it.answered for it in visitors), done.count["turns"])

    faults, least = trio.run(run)
    assert faults == []
    assert least > 0
