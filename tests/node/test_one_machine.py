"""Several daemons, or one and a manager, on one machine: an instance may be replaced among them."""

from pathlib import Path

from agentmgr.models import ServiceConfig, ServiceSpec
from agentmgr.supervisor.local import LocalLauncher
from tests.processes import alive

SPEC = ServiceSpec("svc", ServiceConfig(command=("sleep", "600")))


async def test_to_end_what_was_replaced_does_not_reach_what_has_replaced_it(tmp_path: Path) -> None:
    launchers = []
    for node_id in ("nod_b", "nod_c", ""):
        (directory := tmp_path / f"at{node_id}").mkdir()
        launchers.append(LocalLauncher(directory, node_id=node_id))
    slots = [launcher.slot(SPEC, "ins_0123456789abcdef", 0) for launcher in launchers]
    children = [await slot.launch() for slot in slots]
    for child in children:
        child._group.take_in(child.record.pid)  # as `wait_exit` has done soon after
    living = []
    for slot, child in zip(slots, children, strict=True):  # all are ended, whatever this shows
        living.append([alive(each.record.pid) for each in children])
        await child.end(0)
        slot.close()
    assert living == [[True, True, True], [False, True, True], [False, False, True]]
