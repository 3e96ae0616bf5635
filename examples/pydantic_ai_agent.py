"""A Pydantic AI agent, as it is: no code of ours in it.

pip install pydantic-ai-slim
agentmgr serve examples/pydantic_ai_agent.py --port 8081
agentmgr chat ws://localhost:8081

With MODEL=openai:gpt-5, or any other that Pydantic AI knows, a real model answers; without it, its test
model, which calls every tool once.
"""

import os

from pydantic_ai import Agent, DeferredToolRequests
from pydantic_ai.models.test import TestModel

agent = Agent(os.environ.get("MODEL") or TestModel(), output_type=[str, DeferredToolRequests])


@agent.tool_plain
def temperature(city: str) -> str:
    return f"21 °C in {city}"


@agent.tool_plain(requires_approval=True)  # the person at the other end is asked
def order_taxi(city: str) -> str:
    return f"a taxi is on its way through {city}"
