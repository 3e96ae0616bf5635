"""A smolagents agent, as it is: no code of ours in it. Each session has one, which remembers what was said.

pip install 'smolagents[openai]'
agentmgr serve examples/smolagents_agent.py --port 8081
agentmgr chat ws://localhost:8081

It talks to the model in MODEL at OPENAI_BASE_URL with OPENAI_API_KEY: to OpenAI, or to a model server on this
machine, most of which speak the same protocol.
"""

import os

from smolagents import OpenAIModel, ToolCallingAgent, tool


@tool
def multiply(a: float, b: float) -> float:
    """Multiplies two numbers.

    Args:
        a: the first
        b: the second
    """
    return a * b


def create_agent():
    model = OpenAIModel(
        os.environ.get("MODEL", "gpt-5"),
        api_base=os.environ.get("OPENAI_BASE_URL"),
        api_key=os.environ.get("OPENAI_API_KEY", "none"),
    )
    return ToolCallingAgent(tools=[multiply], model=model, verbosity_level=0)
