"""The state table of an instance: the one place that defines its transitions.

The rules:

* Only `running` takes new sessions. It is entered from `starting`, when a handshake has proved that our own
  process answers, and from `unhealthy`, when a check succeeds again.
* When a process ends unasked, exactly one of these follows: `backoff` (it will be started again at a known
  time), `error` (given up, with the reason), `completed` (a job has done its work) or `stopped` (its policy
  lets it end). That is reported at once; the descendants of the process are ended afterwards, and before the
  next launch.
* A stop goes through `draining` only when there may be sessions, and through `stopping` only when there is
  a process. It is allowed everywhere, and wins: only `gone` follows it.
* `stopped`, `completed` and `error` are the only states without a task; a start leaves them.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType

from ..errors import IllegalTransition
from ..models import ServiceStatus


class InstanceEvent(StrEnum):
    LAUNCH = "launch"  #: a process is about to be started, or adopted
    READY = "ready"  #: it has answered its first handshake
    FAILING = "failing"  #: too many checks in a row have failed
    WELL = "well"  #: a check has succeeded again
    DRAIN = "drain"  #: a planned stop: no new sessions, the open ones may end
    STOP = "stop"  #: the process is asked to end
    RETRY = "retry"  #: it ended unasked, and will be started again
    GIVE_UP = "give_up"  #: it ended unasked, and will not be started again
    COMPLETE = "complete"  #: a job ended unasked, and has done its work
    GONE = "gone"  #: it has ended, as it was asked to or as its policy allows
    CRASH = "crash"  #: our own code has failed; allowed everywhere, so that it can be reported


_S, _E = ServiceStatus, InstanceEvent

TRANSITIONS: Mapping[ServiceStatus, Mapping[InstanceEvent, ServiceStatus]] = MappingProxyType(
    {
        _S.STOPPED: {_E.LAUNCH: _S.STARTING},
        _S.STARTING: {
            _E.READY: _S.RUNNING,
            _E.DRAIN: _S.DRAINING,  # one that an earlier manager has started
            _E.STOP: _S.STOPPING,
            _E.RETRY: _S.BACKOFF,
            _E.GIVE_UP: _S.ERROR,
            _E.COMPLETE: _S.COMPLETED,
            _E.GONE: _S.STOPPED,
        },
        _S.RUNNING: {
            _E.FAILING: _S.UNHEALTHY,
            _E.DRAIN: _S.DRAINING,
            _E.STOP: _S.STOPPING,
            _E.RETRY: _S.BACKOFF,
            _E.GIVE_UP: _S.ERROR,
            _E.COMPLETE: _S.COMPLETED,
            _E.GONE: _S.STOPPED,
        },
        _S.UNHEALTHY: {
            _E.WELL: _S.RUNNING,
            _E.DRAIN: _S.DRAINING,
            _E.STOP: _S.STOPPING,
            _E.RETRY: _S.BACKOFF,
            _E.GIVE_UP: _S.ERROR,
            _E.COMPLETE: _S.COMPLETED,
            _E.GONE: _S.STOPPED,
        },
        _S.DRAINING: {_E.STOP: _S.STOPPING, _E.GONE: _S.STOPPED},
        _S.STOPPING: {_E.GONE: _S.STOPPED},
        _S.BACKOFF: {_E.LAUNCH: _S.STARTING, _E.GIVE_UP: _S.ERROR, _E.GONE: _S.STOPPED},
        _S.SCHEDULED: {_E.LAUNCH: _S.STARTING, _E.GONE: _S.STOPPED},  # no instance is ever in it
        _S.ASLEEP: {_E.LAUNCH: _S.STARTING, _E.GONE: _S.STOPPED},  # nor in this one
        _S.COMPLETED: {_E.LAUNCH: _S.STARTING, _E.GONE: _S.STOPPED},
        _S.ERROR: {_E.LAUNCH: _S.STARTING, _E.GONE: _S.STOPPED},
    }
)


def after(status: ServiceStatus, event: InstanceEvent) -> ServiceStatus:
    """The status that follows. Raises `IllegalTransition` when the table has none."""
    if event is InstanceEvent.CRASH:
        return ServiceStatus.ERROR
    try:
        return TRANSITIONS[status][event]
    except KeyError:
        raise IllegalTransition(f"an instance that is {status} cannot {event}") from None
