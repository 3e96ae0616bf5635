"""Wires storage, supervisor and gateway into one `AgentManager`."""

from .manager import AgentManager

__all__ = ["AgentManager"]
