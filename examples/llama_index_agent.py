"""A LlamaIndex agent, as it is: no code of ours in it. Workflows of your own are served in the same way.

pip install llama-index-llms-openai-like
agentmgr serve examples/llama_index_agent.py --port 8081
agentmgr chat ws://localhost:8081

It talks to the model in MODEL at OPENAI_BASE_URL with OPENAI_API_KEY: to OpenAI, or to a model server on this
machine, most of which speak the same protocol.
"""

import os

from llama_index.core.agent.workflow import FunctionAgent
from llama_index.llms.openai_like import OpenAILike


def multiply(a: float, b: float) -> float:
    """Multiplies two numbers."""
    return a * b


def create_agent():
    model = OpenAILike(
        model=os.environ.get("MODEL", "gpt-5"),
        api_base=os.environ.get("OPENAI_BASE_URL"),
        api_key=os.environ.get("OPENAI_API_KEY", "none"),
        is_chat_model=True,
        is_function_calling_model=True,
    )
    return FunctionAgent(tools=[multiply], llm=model)
