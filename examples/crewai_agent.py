"""A CrewAI crew, as it is: no code of ours in it. Flows are served in the same way.

pip install crewai
agentmgr serve examples/crewai_agent.py --port 8081
agentmgr chat ws://localhost:8081

{message} in a task is what the person said last, {history} what was said before, {session_id} the session.

It talks to the model in MODEL at OPENAI_BASE_URL with OPENAI_API_KEY: to OpenAI, or to a model server on this
machine, most of which speak the same protocol.
"""

import os

from crewai import LLM, Agent, Crew, Task
from crewai.tools import tool


@tool
def multiply(a: float, b: float) -> float:
    """Multiplies two numbers."""
    return a * b


def create_agent():
    model = LLM(
        model=f"openai/{os.environ.get('MODEL', 'gpt-5')}",
        base_url=os.environ.get("OPENAI_BASE_URL"),
        api_key=os.environ.get("OPENAI_API_KEY", "none"),
    )
    helper = Agent(role="helper", goal="help", backstory="You are brief.", llm=model, tools=[multiply])
    answer = Task(
        description="Before:\n{history}\n\nAnswer: {message}", expected_output="an answer", agent=helper
    )
    return Crew(agents=[helper], tasks=[answer])
