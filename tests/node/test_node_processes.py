"""A node with real processes: what its daemon and its manager want of one child at once."""

from functools import partial

import trio

from agentmgr.client.session import open_session
from agentmgr.models import ServiceConfig, ServiceSpec
from agentmgr.node.protocol import AskTurns, Done, EndStray, TurnsNow
from agentmgr.supervisor.local import LocalLauncher
from tests.cluster.test_remote_instances import OneNode
from tests.processes import alive
from tests.supervisor.conftest import MemoryRecorder

AGENT = """
import trio
async def agent(message):
    await trio.sleep(0.5)
    return f"echo: {message}"
"""


async def test_a_child_is_drained_while_its_daemon_watches_it(tmp_path, nursery, caplog):
    (tmp_path / "agent.py").write_text(AGENT)
    config = ServiceConfig(agent_factory_path=str(tmp_path / "agent.py"), sessions="memory")
    b = OneNode(tmp_path, nursery, LocalLauncher(tmp_path / "logs"))
    await b.start_daemon()
    service = ServiceSpec("svc", config)
    async with b.supervisor(recorder := MemoryRecorder()) as supervisor, trio.open_nursery() as tasks:
        await supervisor.start(service)
        (record,) = recorder.records.values()
        ask = partial(b.handle.call, AskTurns(record.instance_id, record.token), TurnsNow)
        async with open_session(f"ws://{record.host}:{record.port}", reconnect_for_s=0) as session:
            turn = await session.send("hello")
            while not (await ask()).turns.at_work:  # it has not arrived yet
                pass
            for _ in range(2):
                tasks.start_soon(b.handle.call, EndStray(record.instance_id, record.token), Done)
            tasks.start_soon(supervisor.stop, service.service_id)
            assert await turn.answer() == "echo: hello"  # it was let end
    assert not alive(record.pid)
    assert not [it for it in caplog.messages if "failed" in it or "internal error" in it]
