"""The values that the layers hand each other.

All are frozen. Durations are seconds and sizes are bytes, also where the guide's name does not say so.
Times are aware datetimes in UTC. A value that is out of range raises `InvalidRequest` when it is made,
so nothing further in has to check it again.
"""

from typing import TYPE_CHECKING

from ..choices import OnDisconnect as OnDisconnect
from ..choices import Runtime as Runtime
from ..choices import WhenBusy as WhenBusy
from ..lazy import later
from .checks import CheckKind as CheckKind
from .checks import CheckMethod as CheckMethod
from .fields import Check as Check
from .fields import new_id as new_id
from .fields import utc_now as utc_now
from .services import DesiredStatus as DesiredStatus
from .services import HealthStatus as HealthStatus
from .services import Instance as Instance
from .services import OnManagerDeath as OnManagerDeath
from .services import RestartMode as RestartMode
from .services import Service as Service
from .services import ServiceConfig as ServiceConfig
from .services import ServiceSpec as ServiceSpec
from .services import ServiceStatus as ServiceStatus
from .services import Usage as Usage

if TYPE_CHECKING:
    from .latency import Latency as Latency
    from .records import Connection as Connection
    from .records import ConnectionEnd as ConnectionEnd
    from .records import ConnectionPeak as ConnectionPeak
    from .records import Event as Event
    from .records import Fact as Fact
    from .records import HealthCheck as HealthCheck
    from .records import InstanceRecord as InstanceRecord
    from .records import ServiceTotals as ServiceTotals
    from .routing import ConditionOperator as ConditionOperator
    from .routing import RoutingCondition as RoutingCondition
    from .routing import RoutingRule as RoutingRule
    from .routing import RoutingStrategy as RoutingStrategy
    from .tokens import Ticket as Ticket
    from .tokens import Token as Token
    from .tokens import TokenPolicy as TokenPolicy

# Most commands show services, and nothing else: these take 15 ms.
_PLACES = {
    "Latency": "latency",
    "Connection": "records",
    "Event": "records",
    "Fact": "records",
    "HealthCheck": "records",
    "InstanceRecord": "records",
    "ServiceTotals": "records",
    "ConnectionEnd": "records",
    "ConnectionPeak": "records",
    "ConditionOperator": "routing",
    "RoutingCondition": "routing",
    "RoutingRule": "routing",
    "RoutingStrategy": "routing",
    "Ticket": "tokens",
    "Token": "tokens",
    "TokenPolicy": "tokens",
}

__getattr__ = later(__name__, _PLACES)
