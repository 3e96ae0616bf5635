"""Why the bridge to Ray has ended: what it wrote last, in words for the user."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from agentmgr.cluster.ray_engine import NoObserver, RayEngine
from agentmgr.generation import Generation


async def invite() -> str:
    raise AssertionError("no machine is to join")


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("ModuleNotFoundError: No module named 'attrs'", "lacks what the bridge needs (attrs): `{} -m pip"),
        (
            "[2026-11-30 13:25:09,059 C 1 2] (python-core-driver) status.h:1: An unexpected system state has "
            f"occurred. {'Please report this. ' * 15} Check failed: status Status not OK: Unauthenticated: "
            "RPC error: WrongClusterID: Perhaps the client is accessing GCS after it has restarted.",
            "its head (GCS) was started anew",
        ),
        ("ValueError: x", "its bridge has ended: ValueError: x"),
    ],
)
async def test_why_the_bridge_has_ended_is_said_in_our_words(written: str, said: str, tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\ncat >&2 <<'END'\n{written}\nEND\n")
    python.chmod(0o755)
    engine = RayEngine(
        "c",
        invite,
        manager_port=1,
        generation=Generation(0, 1, "man_x"),
        obeys=lambda node_id, newer: None,
        python=str(python),
    )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(engine.run, NoObserver())
        with trio.fail_after(10):
            while not (troubles := engine.troubles()):  # noqa: ASYNC110 (it tells nobody)
                await trio.sleep(0.01)
        nursery.cancel_scope.cancel()
    assert said.format(python) in troubles[0]
