"""Does, to processes: starts them, watches them, restarts them, ends them."""

from .in_process import InProcessService, in_process
from .launcher import Launcher
from .recorder import InstanceRecorder, NullRecorder
from .supervisor import Supervisor

__all__ = ["InProcessService", "InstanceRecorder", "Launcher", "NullRecorder", "Supervisor", "in_process"]
