"""Stands in for the package of the guide's own example, which is on no index: as much of it as that uses.

Like the original it is asyncio code, remembers its conversation, and answers `await agent.run(text)`.
"""

import asyncio

from .tool import BaseTool


class ReactAgent:
    def __init__(self, name: str, tools: list[BaseTool], system_prompt: str) -> None:
        self.name, self.tools, self.system_prompt = name, tools, system_prompt
        self.messages: list[str] = []

    async def run(self, request: str) -> str:
        self.messages.append(request)
        async with asyncio.timeout(10):
            result = await self.tools[0].execute(message=request)
        return f"{result.content} ({len(self.messages)})"


def create_react_agent(name: str, tools: list[BaseTool], system_prompt: str = "") -> ReactAgent:
    return ReactAgent(name, [tool() if isinstance(tool, type) else tool for tool in tools], system_prompt)
