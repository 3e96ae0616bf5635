"""For programs that talk to a manager or to an agent, rather than being one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..lazy import later

if TYPE_CHECKING:
    from .api import ManagerClient as ManagerClient
    from .session import AgentSession as AgentSession
    from .session import open_session as open_session

__all__ = ["AgentSession", "ManagerClient", "open_session"]

# Each brings libraries that the other has no need of.
__getattr__ = later(__name__, {"ManagerClient": "api", "AgentSession": "session", "open_session": "session"})
