"""An agent of Semantic Kernel, as it is: no code of ours in it.

pip install semantic-kernel
agentmgr serve examples/semantic_kernel_agent.py --port 8081
agentmgr chat ws://localhost:8081

It talks to the model in MODEL at OPENAI_BASE_URL with OPENAI_API_KEY: to OpenAI, or to a model server on this
machine, most of which speak the same protocol.
"""

import os

from openai import AsyncOpenAI
from semantic_kernel.agents import ChatCompletionAgent
from semantic_kernel.connectors.ai.open_ai import OpenAIChatCompletion
from semantic_kernel.functions import kernel_function


class Calculator:
    @kernel_function
    def multiply(self, a: float, b: float) -> float:
        """Multiplies two numbers."""
        return a * b


def create_agent():
    client = AsyncOpenAI(api_key=os.environ.get("OPENAI_API_KEY", "none"))
    service = OpenAIChatCompletion(ai_model_id=os.environ.get("MODEL", "gpt-5"), async_client=client)
    return ChatCompletionAgent(service=service, name="helper", plugins=[Calculator()])
