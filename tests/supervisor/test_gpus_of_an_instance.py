"""Which GPUs a process is shown, and what of the manager's Ray it does not get."""

from pathlib import Path

import pytest
import trio

from agentmgr.models import ServiceConfig, ServiceSpec
from agentmgr.supervisor.environment import OF_RAY
from agentmgr.supervisor.local import LocalLauncher
from tests.conditions import until


@pytest.mark.parametrize(
    ("env", "gpus", "shown"),
    [
        ({}, ("0", "2"), "0,2"),
        ({}, (), ""),
        ({}, None, "7"),
        ({"CUDA_VISIBLE_DEVICES": "3", "RAY_OWN": "1"}, ("0",), "3"),
    ],
    ids=["its own", "none without a claim", "without an engine: as the manager", "as its env says"],
)
async def test_an_instance_sees_its_gpus_and_no_token(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    env: dict[str, str],
    gpus: tuple[str, ...] | None,
    shown: str,
) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "secret")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    launcher = LocalLauncher(tmp_path, withheld=OF_RAY)
    slot = launcher.slot(ServiceSpec("svc", ServiceConfig(command=("sleep", "1000"), env=env)), "ins_x", 0)
    child = await slot.launch(gpus)
    try:
        environ = Path(f"/proc/{child.record.pid}/environ")
        await until(lambda: b"CUDA_VISIBLE_DEVICES=" in environ.read_bytes())  # it has been executed by then
        words = environ.read_bytes().decode().split("\0")
    finally:
        with trio.CancelScope(shield=True):
            child.kill()
            await child.end(0)
            slot.close()
    found = dict(word.split("=", 1) for word in words if word)
    assert found["CUDA_VISIBLE_DEVICES"] == shown
    assert {name for name in found if name.startswith("RAY_")} == env.keys() & {"RAY_OWN"}
    assert child.record.gpus == (gpus or ())
