"""Keeps agent services running and gives their clients one address.

    import trio
    from agentmgr import AgentManager

    async def main():
        async with AgentManager("my_manager.db") as manager, trio.open_nursery() as nursery:
            await manager.register_service("echo", "echo_agent.py", auto_start=True)
            await nursery.start(manager.serve_proxy, "localhost", 9090)
            await trio.sleep_forever()

    trio.run(main)

`Supervisor` keeps processes and async functions running without a database; `Gateway` routes clients to any
set of backends without a supervisor.

What is named here is the public interface, with `agentmgr.errors`, `agentmgr.agent` (what agent files use),
`agentmgr.client`, `agentmgr.api`, `agentmgr.supervisor`, `agentmgr.proxy` and `agentmgr.testing`.
"""

from __future__ import annotations

from .lazy import later
from .version import __version__ as __version__

TYPE_CHECKING = False  # as in typing: the command has to set PYTHONPATH aside before it imports that
if TYPE_CHECKING:
    from .core.request import ClientRequest as ClientRequest
    from .core.routing import Backend as Backend
    from .core.routing import RoutingTable as RoutingTable
    from .errors import AgentManagerError as AgentManagerError
    from .manager import AgentManager as AgentManager
    from .models import ConditionOperator as ConditionOperator
    from .models import Connection as Connection
    from .models import Event as Event
    from .models import HealthCheck as HealthCheck
    from .models import HealthStatus as HealthStatus
    from .models import Instance as Instance
    from .models import RestartMode as RestartMode
    from .models import RoutingCondition as RoutingCondition
    from .models import RoutingRule as RoutingRule
    from .models import RoutingStrategy as RoutingStrategy
    from .models import Service as Service
    from .models import ServiceConfig as ServiceConfig
    from .models import ServiceSpec as ServiceSpec
    from .models import ServiceStatus as ServiceStatus
    from .proxy import Gateway as Gateway
    from .settings import Settings as Settings
    from .supervisor import Supervisor as Supervisor
    from .supervisor.in_process import in_process as in_process

# Imported when first used: `agentmgr --version`, and an agent's process, need none of them.
_PLACES = {
    "AgentManager": "manager",
    "AgentManagerError": "errors",
    "Settings": "settings",
    "Supervisor": "supervisor",
    "in_process": "supervisor",
    "Gateway": "proxy",
    "Backend": "core.routing",
    "RoutingTable": "core.routing",
    "ClientRequest": "core.request",
    **dict.fromkeys(
        (
            "ConditionOperator",
            "Connection",
            "Event",
            "HealthCheck",
            "HealthStatus",
            "Instance",
            "RestartMode",
            "RoutingCondition",
            "RoutingRule",
            "RoutingStrategy",
            "Service",
            "ServiceConfig",
            "ServiceSpec",
            "ServiceStatus",
        ),
        "models",
    ),
}

__all__ = ["__version__", *sorted(_PLACES)]

__getattr__ = later(__name__, _PLACES)


def __dir__() -> list[str]:
    return list(__all__)
