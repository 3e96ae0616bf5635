"""Every error that `agentmgr` raises on purpose.

The message is for the user: one sentence on what is wrong, and what to do about it. The `code` is for
programs: it is the same in the Python API, in the REST API's problem documents and in the gateway's
refusals, and it does not change.

    AgentManagerError
    ├── InvalidRequest            the caller's input cannot be right
    ├── NotFound
    │   ├── ServiceNotFound
    │   ├── RuleNotFound
    │   ├── ConnectionNotFound
    │   ├── SessionNotFound
    │   ├── TokenNotFound
    │   └── NodeNotFound
    ├── Conflict                  right in itself, but not now
    │   ├── NameTaken
    │   ├── PortNotAvailable
    │   ├── WrongState
    │   ├── VersionMismatch       it was changed in between
    │   └── TooManyTickets        more than may wait to be used
    ├── Unprocessable             understood, and refused
    │   ├── AgentFileNotFound
    │   └── CannotUseCluster      what a cluster needs is missing or unfit
    ├── ServiceFailed             the user's program did not do its part
    │   ├── ServiceFailedToStart
    │   ├── ServiceGivenUp        it failed as often as its restart policy allows
    │   ├── AgentLoadError        raised in the child: the agent file gave no agent
    │   ├── AgentUnreachable      no connection to it could be made, or made again
    │   │   └── NotAnAgent        it answers with something else than an agent's events
    │   ├── SessionLost           it knows the session no more
    │   └── TurnFailed            it answered with an error, or not at all
    ├── NoServiceAvailable        no instance to route a client to
    ├── ManagerError              about the manager's own process
    │   ├── ManagerAlreadyRunning
    │   ├── ManagerNotRunning
    │   ├── ManagerReplaced       its cluster has a newer one
    │   └── CannotReachManager    from a node: another program answers, or none
    ├── StorageError              the database cannot be used
    │   ├── DatabaseUnusable
    │   ├── DatabaseDamaged
    │   └── DatabaseTooNew
    └── IllegalTransition         a bug of ours: the state table does not allow this
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar, TypeVar, overload

from attrs import frozen

E = TypeVar("E", bound=BaseException)


@frozen
class FieldProblem:
    """What is wrong with one field of a request."""

    path: str  #: as in `config.max_sessions` or `conditions[0].operator`
    message: str


class AgentManagerError(Exception):
    """The base of all errors of this package."""

    code: ClassVar[str] = "internal_error"
    _by_code: ClassVar[dict[str, type[AgentManagerError]]] = {}

    def __init_subclass__(cls) -> None:
        if "code" in vars(cls):  # a user's own subclass goes by its parent's code
            AgentManagerError._by_code[cls.code] = cls

    def __init__(self, message: str, *, fields: Sequence[FieldProblem] = ()) -> None:
        super().__init__(message)
        self.message = message
        self.fields = tuple(fields)

    @staticmethod
    def from_code(code: str, message: str, *, fields: Sequence[FieldProblem] = ()) -> AgentManagerError:
        """The error that a peer described with its code; the base class where the code is not known."""
        return AgentManagerError._by_code.get(code, AgentManagerError)(message, fields=fields)


class InvalidRequest(AgentManagerError, ValueError):
    """A value that can never be right: a bad name, a port out of range, an unknown field."""

    code = "invalid_request"


class NotFound(AgentManagerError, LookupError):
    """Nothing is known under that name or id."""

    code = "not_found"


class ServiceNotFound(NotFound):
    """No service has that name or id."""

    code = "service_not_found"


class RuleNotFound(NotFound):
    """No routing rule has that name or id."""

    code = "rule_not_found"


class ConnectionNotFound(NotFound):
    """No live connection has that id."""

    code = "connection_not_found"


class SessionNotFound(NotFound):
    """No session that the caller may see has that id."""

    code = "session_not_found"


class TokenNotFound(NotFound):
    """No token has that name or id."""

    code = "token_not_found"


class NodeNotFound(NotFound):
    """No node of the cluster has that name or id."""

    code = "node_not_found"


class Conflict(AgentManagerError):
    """A request that is right in itself, but not in the present state."""

    code = "conflict"


class NameTaken(Conflict):
    """A service or rule of that name is there already."""

    code = "name_taken"


class PortNotAvailable(Conflict):
    """Something else holds the port that was asked for."""

    code = "port_not_available"


class WrongState(Conflict):
    """The service's present status does not allow this."""

    code = "wrong_state"


class VersionMismatch(Conflict):
    """The thing was changed by another writer since it was read."""

    code = "version_mismatch"


class TooManyTickets(Conflict):
    """As many tickets of that token wait to be used as there may be."""

    code = "too_many_tickets"


class Unprocessable(AgentManagerError):
    """Understood, and refused for what it says."""

    code = "unprocessable"


class AgentFileNotFound(Unprocessable):
    """The agent file is missing, or is not a file."""

    code = "agent_file_not_found"


class CannotUseCluster(Unprocessable):
    """A package, a certificate or a key that a cluster needs is missing or unfit."""

    code = "cannot_use_cluster"


class ServiceFailed(AgentManagerError):
    """The service's own program did not do its part."""

    code = "service_failed"


class ServiceFailedToStart(ServiceFailed):
    """The service did not become ready; the message has its last words."""

    code = "service_failed_to_start"


class ServiceGivenUp(ServiceFailed):
    """It failed as often as its restart policy allows, and was started with `on_give_up="raise"`."""

    code = "service_given_up"


class AgentLoadError(ServiceFailed):
    """The agent file gave no agent; the message shows the author's own line."""

    code = "agent_load_error"


class AgentUnreachable(ServiceFailed):
    """No connection to the agent could be made, or made again in time.

    `refusal`: the code with which the gateway or the agent's host refused the client, as
    `agentmgr explain` has them; None where the client was not refused.
    """

    code = "agent_unreachable"

    def __init__(
        self, message: str, *, fields: Sequence[FieldProblem] = (), refusal: str | None = None
    ) -> None:
        super().__init__(message, fields=fields)
        self.refusal = refusal


class NotAnAgent(AgentUnreachable):
    """What answers is a WebSocket server that does not speak `agentmgr.protocol`, as a command's may be."""

    code = "not_an_agent"


class SessionLost(ServiceFailed):
    """The agent knows the session no more; the message says why, and `reason` says it to programs.

    `reason`: `ended`; `expired`, without a connection for too long; `instance_lost`, with the instance that
    held it; or `unknown`.
    """

    code = "session_lost"
    reason: str = "unknown"


class TurnFailed(ServiceFailed):
    """The agent ended a turn without an answer; the message has the reason that it gave."""

    code = "turn_failed"


class NoServiceAvailable(AgentManagerError):
    """No running service can take this client now."""

    code = "no_service_available"


class ManagerError(AgentManagerError):
    """About the process that manages a database."""

    code = "manager_error"


class ManagerAlreadyRunning(ManagerError):
    """Another process manages this database; the message names its pid."""

    code = "manager_already_running"


class ManagerNotRunning(ManagerError):
    """No process manages this database."""

    code = "manager_not_running"


class ManagerReplaced(ManagerError):
    """The nodes of its cluster obey a newer manager: its database was restored elsewhere."""

    code = "manager_replaced"


class CannotReachManager(ManagerError):
    """What answers a node is not the manager of its cluster, or does not let it in now."""

    code = "cannot_reach_manager"


class StorageError(AgentManagerError):
    """The database could not do what was asked of it."""

    code = "storage_error"


class DatabaseUnusable(StorageError):
    """The path cannot be opened or written."""

    code = "database_unusable"


class DatabaseDamaged(StorageError):
    """The file is not a database of ours, or is damaged; it was left untouched."""

    code = "database_damaged"


class DatabaseTooNew(StorageError):
    """A newer agentmgr wrote this database; it was left untouched."""

    code = "database_too_new"


class IllegalTransition(AgentManagerError):
    """An instance was asked to change state in a way the table forbids: a bug, please report it."""

    code = "illegal_transition"


@overload
def leaves(error: BaseExceptionGroup[E]) -> Iterator[E]: ...
@overload
def leaves(error: BaseException) -> Iterator[BaseException]: ...
def leaves(error: BaseException) -> Iterator[BaseException]:
    """The exceptions in a group and in the groups within it, in their order; or the exception itself."""
    pending = [error]
    while pending:
        found = pending.pop()
        if members := members_of(found):
            pending += members[::-1]
        else:
            yield found


def members_of(error: BaseException) -> tuple[BaseException, ...]:
    """Of a group, also of one whose class has `exceptions` or `__class__` of its own; else none."""
    if not issubclass(type(error), BaseExceptionGroup):
        return ()
    members: tuple[BaseException, ...] = BaseExceptionGroup.exceptions.__get__(error)
    return members
