"""Runs inside a service's process: loads an agent file and serves it to clients.

An agent file needs nothing from here; an author who wants more imports these.
"""

from .events import Event, final_answer, partial_answer, thinking, tool_call, tool_result
from .message import Client, Decision, Message
from .session import Session

__all__ = [
    "Client",
    "Decision",
    "Event",
    "Message",
    "Session",
    "final_answer",
    "partial_answer",
    "thinking",
    "tool_call",
    "tool_result",
]
