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
`agentmgr.client`, `agentmgr.api`, `agentmgr.supervisor`, `agentmgr.proxy`, `agentmgr.protocol` and
`agentmgr.testing`.

The words, which mean the same in code, commands, API and logs:

    service     what is registered: an agent file or a command, with its configuration and a name
    instance    one running copy of a service: a child process, or an async function (`in_process`)
    slot        where an instance runs: its position among the instances of its service, address, environment
    host        the process of an agent file: it loads the file and speaks the wire protocol
                (`agentmgr.agent`)
    fork server a process that has imported the host, and forks instead of starting Python again; a second
                stage has also imported an agent's packages
    agent       what the file defines: it answers messages
    supervisor  starts instances, checks them, restarts and ends them
    probe       one check of an instance: is it ready, is it healthy
    backoff     the pause before a restart; it grows with each failure
    drain       before an instance ends: no new clients, and time for its turns to end. Of a node: it
                gets no new instances, and those that it has move to others, with their sessions
    asleep      of a service that starts on demand: nothing of it runs until something wakes it
    range       how many instances a service may have, `2..8`: its load decides how many run
    manager     the one process that holds a database and runs its supervisor (`AgentManager`)
    adoption    the next manager takes over instances and workers that outlived the one before

    cluster     a manager and its nodes, which trust the same certificate authority (`agentmgr.ca`)
    node        a machine that services run on; its daemon is `agentmgr node`. The manager's own is one too
    generation  of a manager: which of two that have the same nodes is the newer one, and obeyed
                Of the journal of a service on a node: how often one has moved away from there
    engine      what knows the machines of a cluster, and reserves parts of them: Ray
    machine     of an engine: what it has in place of a node, under an id that a restart of it changes
    claim       what an engine has reserved for one instance
    link        the connection of a node's daemon to the manager
    gate        where the gateway of a node lets those of other nodes reach its instances

    client      a program that talks to an agent
    gateway     the address that clients connect to; it picks an instance for each, by rules
    rule        conditions on a client's request, and the services that clients which meet them go to
    backend     an instance as the gateway sees it
    connection  one client's WebSocket through the gateway; `con_…`
    link        of a host: its side of a socket; `lnk_…` where no gateway is before it
    refusal     an HTTP status and a code in place of a WebSocket
    worker      a process that serves the gateway for a manager

    session     one conversation between a client and an agent; it outlives connections; `ses_…`
    turn        one message and the work on its answer
    journal     where sessions are kept, so that they outlive their instance: a file, or a Redis
    event       in a session: one JSON object of the wire protocol. Of a manager: one entry of its event log
                (`agentmgr events`)

    token       what a client of the gateway or the API shows: scopes `connect`, `read`, `sessions`, `admin`
    ticket      a key to the gateway for one connection, for browsers
    proof       how a gateway and a host show each other that they know the instance's own token
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
_MODULES = {
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

__all__ = ["__version__", *sorted(_MODULES)]

__getattr__ = later(__name__, _MODULES)


def __dir__() -> list[str]:
    return list(__all__)
