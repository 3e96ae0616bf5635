"""An agent of a framework that is killed comes back without importing it again, and with its conversation."""

import os
import signal

import trio

from agentmgr.client.session import open_session
from agentmgr.models import DesiredStatus, ServiceConfig, ServiceSpec
from agentmgr.supervisor import Supervisor
from tests.conditions import until

AGENT = """
from langchain_core.messages import AIMessage
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, MessagesState, StateGraph


async def count(state: MessagesState):
    return {"messages": [AIMessage(f"{len(state['messages'])} messages")]}


def create_agent():
    graph = StateGraph(MessagesState)
    graph.add_node(count)
    graph.add_edge(START, "count")
    return graph.compile(checkpointer=InMemorySaver())
"""


async def test_langgraph(tmp_path):
    (tmp_path / "agent.py").write_text(AGENT)
    config = ServiceConfig(str(tmp_path / "agent.py"), restart_delay=0, startup_timeout=120)
    spec = ServiceSpec("graph", config, desired_status=DesiredStatus.RUNNING)
    sessions = tmp_path / "sessions"
    sessions.mkdir()
    async with Supervisor(log_dir=tmp_path / "logs", sessions_dir=sessions) as supervisor:
        await supervisor.start(spec)
        await until(lambda: supervisor.preloaded(spec.service_id) is not None)
        assert " modules preloaded, in process " in supervisor.preloaded(spec.service_id)
        (instance,) = supervisor.instances()
        with trio.fail_after(60):
            async with open_session(f"ws://127.0.0.1:{instance.port}") as session:
                assert (await session.ask("one")) == "1 messages"
                os.kill(instance.pid, signal.SIGKILL)
                assert (await session.ask("two")) == "3 messages"
        assert supervisor.instances()[0].pid != instance.pid
        (second_stage,) = [server for server in supervisor.fork_servers() if server.imported]
        assert second_stage.forks == 1
