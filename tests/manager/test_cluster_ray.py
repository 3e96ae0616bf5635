"""What is said of a Ray that a manager is to use."""

from __future__ import annotations

import pytest

from agentmgr.manager.cluster_ray import exposure
from agentmgr.settings import Settings


@pytest.mark.parametrize(
    ("address", "mode", "is_said"),
    [
        ("auto", None, True),
        ("10.0.0.1:6379", "disabled", True),
        ("10.0.0.1:6379", "token", False),
        ("127.0.0.2:6379", None, False),
    ],
)
def test_a_ray_without_a_token_is_warned_of_unless_only_this_machine_reaches_it(
    address: str, mode: str | None, is_said: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    if mode is not None:
        monkeypatch.setenv("RAY_AUTH_MODE", mode)
    found = exposure(Settings(ray_address=address))
    assert (found is not None) is is_said
    if found is not None:
        assert "RAY_AUTH_MODE=token" in found.advice
