"""A service that gets another name keeps its logs, and whoever takes the old one has its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import trio

from agentmgr import AgentManager
from agentmgr.client import open_session

TALKATIVE = """
def create_agent():
    async def answer(message):
        print("was told", message, flush=True)
        return "yes"
    return answer
"""


async def tell(manager: AgentManager, name: str, text: str) -> None:
    async with open_session(manager.get_service(name).endpoint) as session:
        await session.ask(text)


def said(manager: AgentManager, name: str) -> list[str]:
    lines = manager.log_path(name).read_text().splitlines()
    return [line.removeprefix("was told ") for line in lines if line.startswith("was told ")]


async def test_logs_go_with_the_service_and_not_with_the_name(
    db: Path, agent_file: Callable[..., str]
) -> None:
    file = agent_file(TALKATIVE)
    with trio.fail_after(120):
        async with AgentManager(db) as manager:
            await manager.register_service("old", file, auto_start=True)
            await tell(manager, "old", "one")
            await manager.update_service("old", {"name": "new"})
            assert said(manager, "new") == ["one"]
            await tell(manager, "new", "two")  # the instance is the one that was started under the old name
            assert said(manager, "new") == ["one", "two"]
            assert (manager.paths.logs / "old" / "0.log").exists(), "which it knows its log by"

            await manager.register_service("old", file, auto_start=True)
            await tell(manager, "old", "another")
            await tell(manager, "new", "three")
            assert said(manager, "old") == ["another"]
            assert said(manager, "new") == ["one", "two", "three"]

            await manager.restart_service("new")
            await tell(manager, "new", "four")
            assert said(manager, "new") == ["one", "two", "three", "four"]

            await manager.unregister_service("old", force=True)
            await manager.update_service("new", {"name": "old"})
            assert said(manager, "old") == ["one", "two", "three", "four"], (
                "and not those of the one that is gone"
            )
