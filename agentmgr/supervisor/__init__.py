"""Does, to processes: starts them, watches them, restarts them, ends them."""

from .journal import Journal
from .supervisor import Supervisor

__all__ = ["Journal", "Supervisor"]
