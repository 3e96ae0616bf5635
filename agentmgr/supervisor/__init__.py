"""Does, to processes: starts them, watches them, restarts them, ends them."""

from .in_process import InProcessService, in_process
from .journal import Journal, Unrecorded
from .launcher import Launcher
from .supervisor import Supervisor

__all__ = ["InProcessService", "Journal", "Launcher", "Supervisor", "Unrecorded", "in_process"]
