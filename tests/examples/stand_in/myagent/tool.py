from dataclasses import dataclass


@dataclass
class ToolResult:
    success: bool
    content: str


class BaseTool:
    name: str
    description: str

    async def execute(self, **arguments: str) -> ToolResult:
        raise NotImplementedError
