"""Shipped fakes for people who embed or extend agentmgr."""

from .memory_store import MemoryStore

__all__ = ["MemoryStore"]
