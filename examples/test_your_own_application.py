"""How do I test what embeds a supervisor or a gateway? With processes and a network that break when told to.

pip install pytest pytest-trio
pytest -o trio_mode=true test_your_own_application.py           # in a directory of yours
"""

import trio

from agentmgr import Backend, Gateway, RoutingTable, ServiceConfig, ServiceSpec, Supervisor
from agentmgr.client import open_session
from agentmgr.testing import FakeLauncher, hosted, memory_network

SERVICE = ServiceSpec("worker", ServiceConfig(command=["worker", "--port", "{port}"], restart_delay=60))


async def test_a_crash_and_a_full_machine_are_outlived(autojump_clock):
    launcher = FakeLauncher()
    async with Supervisor(launcher=launcher) as supervisor:
        await supervisor.start(SERVICE)
        launcher.refuse_next(2)
        launcher.crash("worker")
        await trio.sleep(600)  # on the mock clock: no time at all
        (instance,) = supervisor.instances()
        assert instance.status == "running"
        assert len(launcher.children) == 2


async def test_a_session_moves_on_when_its_instance_is_cut_off(autojump_clock):
    async def agent(message):
        return message.upper()

    async with memory_network() as network, trio.open_nursery() as nursery:
        instance, front = network.listen("instance", 1), network.listen("gateway", 9090)
        gateway = Gateway(RoutingTable((Backend.at("instance", 1),)), dial=network.dial)
        await nursery.start(gateway.serve, [front])
        async with hosted(agent, listener=instance), open_session(front.url, dial=network.dial) as session:
            assert await session.ask("hello") == "HELLO"
            instance.cut()
            assert await session.ask("still there?") == "STILL THERE?"
        nursery.cancel_scope.cancel()
