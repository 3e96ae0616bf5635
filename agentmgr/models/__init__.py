"""The values that the layers pass to each other.

All are frozen. Durations are seconds and sizes are bytes, also where a name does not say so. Times are aware
datetimes in UTC. A value that is out of range raises `InvalidRequest` when it is made, so that no later code
has to check it again. Parts, in reading order:

- `services`: what is registered (`ServiceSpec`, `ServiceConfig`)
- `views`: what runs (`Instance`), and both as they are shown (`Service`)
- `routing`: rules by which the gateway chooses among services
- `tokens`: keys to the API and the gateway, tickets, and whether a token is needed
- `records`: what happened: `Event`, `HealthCheck`, `ConnectionEnd`, `InstanceEnd`; `Connection`,
  `ServiceTotals`, `Latency`, `MinuteFigures`
- `jobs`: commands that end by themselves: by which schedule (`JobConfig`), and their runs
- `sessions`: conversations as their journals have them, and open questions
- `host_config`: what the host of an agent is configured with (`HostConfig`, a part of `ServiceConfig`)
- `instance_range`: how many instances are to run, a number or a range (`InstanceRange`)
- `network_journal`: the addresses of journals that are in a Redis, and what may be shown of them
- `nodes`: machines of a cluster: their labels, selectors of labels, `NodeState`
- `members`: nodes as the database has them and as they are shown (`Node`), and secrets to join
- `checks`: how a service's readiness and health are checked (`CheckMethod`)
- `fields`: options and validators. An option of a service is one field with its help and bounds
  (`fields.option`): the command line, the API's schema and the host are made of the fields

Words:

- service: what is registered. Instance: one running copy of it. Slot: which of its instances, from 0.
- connection: one client's WebSocket through the gateway. Session: one conversation in an agent's host. Fields
  and metrics named `sessions` before this was settled count connections, and keep their public names.
- `max_sessions`: the most connections of one instance at the gateway. `max_conversations`: the most sessions
  that its host keeps. `idle_timeout`: silence after which the gateway ends a connection. `session_timeout`:
  how long the host keeps a session without a connection.

A new field of a stored value needs a default, which says what databases and files of older versions mean.

It must not import trio, and nothing of agentmgr but `errors` and `lazy`: every command of the CLI loads it at
its start. Each part is loaded when it is first used.
"""

from typing import TYPE_CHECKING

from ..lazy import later

if TYPE_CHECKING:
    from .checks import CheckKind as CheckKind
    from .checks import CheckMethod as CheckMethod
    from .fields import Check as Check
    from .fields import new_id as new_id
    from .fields import utc_now as utc_now
    from .host_config import HostConfig as HostConfig
    from .host_config import OnCrash as OnCrash
    from .host_config import OnDisconnect as OnDisconnect
    from .host_config import Runtime as Runtime
    from .host_config import Sessions as Sessions
    from .host_config import WhenBusy as WhenBusy
    from .jobs import JobConfig as JobConfig
    from .jobs import JobRun as JobRun
    from .jobs import JobState as JobState
    from .jobs import Overlap as Overlap
    from .jobs import RunResult as RunResult
    from .members import DrainedNode as DrainedNode
    from .members import Invitation as Invitation
    from .members import JoinSecret as JoinSecret
    from .members import Node as Node
    from .members import NodeRecord as NodeRecord
    from .nodes import NodeState as NodeState
    from .nodes import Selector as Selector
    from .records import Connection as Connection
    from .records import ConnectionEnd as ConnectionEnd
    from .records import ConnectionPeak as ConnectionPeak
    from .records import Event as Event
    from .records import Fact as Fact
    from .records import HealthCheck as HealthCheck
    from .records import InstanceEnd as InstanceEnd
    from .records import InstanceRecord as InstanceRecord
    from .records import Latency as Latency
    from .records import MinuteFigures as MinuteFigures
    from .records import ServiceTotals as ServiceTotals
    from .routing import ConditionOperator as ConditionOperator
    from .routing import RoutingCondition as RoutingCondition
    from .routing import RoutingRule as RoutingRule
    from .routing import RoutingStrategy as RoutingStrategy
    from .services import SERVING as SERVING
    from .services import DesiredStatus as DesiredStatus
    from .services import HealthStatus as HealthStatus
    from .services import OnManagerDeath as OnManagerDeath
    from .services import RestartMode as RestartMode
    from .services import ServiceConfig as ServiceConfig
    from .services import ServiceSpec as ServiceSpec
    from .services import ServiceStatus as ServiceStatus
    from .services import StartMode as StartMode
    from .services import StopSignal as StopSignal
    from .sessions import SessionDetail as SessionDetail
    from .sessions import SessionInfo as SessionInfo
    from .sessions import SessionPage as SessionPage
    from .sessions import SessionQuestion as SessionQuestion
    from .sessions import SessionState as SessionState
    from .sessions import SessionTurn as SessionTurn
    from .tokens import Ticket as Ticket
    from .tokens import Token as Token
    from .tokens import TokenPolicy as TokenPolicy
    from .views import ForkServerState as ForkServerState
    from .views import Instance as Instance
    from .views import Service as Service
    from .views import Usage as Usage

# Most commands show services, and nothing else: these take 15 ms. A host takes `host_config` alone.
_NAMES = {
    "checks": "CheckKind CheckMethod",
    "host_config": "HostConfig OnCrash OnDisconnect Runtime Sessions WhenBusy",
    "fields": "Check new_id utc_now",
    "jobs": "JobConfig JobRun JobState Overlap RunResult",
    "members": "DrainedNode Invitation JoinSecret Node NodeRecord StaysThere",
    "nodes": "NodeState Selector",
    "records": """Connection ConnectionEnd ConnectionPeak Event Fact HealthCheck InstanceEnd InstanceRecord
        Latency MinuteFigures ServiceTotals""",
    "routing": "ConditionOperator RoutingCondition RoutingRule RoutingStrategy",
    "services": """SERVING DesiredStatus HealthStatus OnManagerDeath RestartMode ServiceConfig ServiceSpec
        ServiceStatus StartMode StopSignal""",
    "sessions": "SessionDetail SessionInfo SessionPage SessionQuestion SessionState SessionTurn",
    "tokens": "Ticket Token TokenPolicy",
    "views": "ForkServerState Instance Service Usage",
}

__getattr__ = later(__name__, {name: place for place, names in _NAMES.items() for name in names.split()})
