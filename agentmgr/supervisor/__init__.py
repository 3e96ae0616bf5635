"""Does, to processes: starts them, watches them, restarts them, ends them."""

from .in_process import in_process
from .journal import Journal
from .supervisor import Supervisor

__all__ = ["Journal", "Supervisor", "in_process"]
