"""An agent of Google's ADK, as it is: no code of ours in it. It asks before it sends mail.

pip install google-adk
GOOGLE_API_KEY=... agentmgr serve examples/google_adk_agent.py --port 8081
agentmgr chat ws://localhost:8081

ADK's own name for it, `root_agent`, is known. With MODEL another Gemini answers.
"""

import os

from google.adk.agents import Agent
from google.adk.tools import FunctionTool


def weather(city: str) -> dict:
    """The weather in a city."""
    return {"weather": f"sunny in {city}"}


def send_mail(to: str, text: str) -> dict:
    """Sends a mail."""
    return {"sent": to}


root_agent = Agent(
    name="assistant",
    model=os.environ.get("MODEL", "gemini-2.5-flash"),
    instruction="Be brief.",
    tools=[weather, FunctionTool(send_mail, require_confirmation=True)],  # the person is asked
)
