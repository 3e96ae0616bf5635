"""Durable sessions when processes die: `sessions.py` for some seconds; it runs at any length by itself."""

from __future__ import annotations

from random import Random

import pytest

from agentmgr.models import OnCrash
from tests.faults.sessions import converse_under_faults


@pytest.mark.parametrize("on_crash", list(OnCrash))
async def test_each_event_arrives_once_and_each_message_is_answered_whatever_dies(tmp_path, seed, on_crash):
    count, faults = await converse_under_faults(
        tmp_path, Random(seed), seconds=4, clients=8, on_crash=on_crash
    )
    assert not faults
    assert count["turns"] > 0
