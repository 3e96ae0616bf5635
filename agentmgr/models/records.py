"""What happened and what is: facts that the store keeps, and figures."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import datetime
from itertools import accumulate

from attrs import Factory, field, frozen

from .fields import utc_now
from .services import HealthStatus

_FIRST_S = 1e-4
_PER_DOUBLING = 4
_LAST = 20 * _PER_DOUBLING  #: the bucket that begins at 105 s, and has no end

WINDOW = 2000
"""From so many values on, each of them counts half: a bad day last year does not show for ever."""


@frozen
class InstanceRecord:
    """What the database knows of a process, so that the next manager can tell it from another program's."""

    instance_id: str
    service_id: str
    slot: int  #: which of the service's instances: 0 … instances-1
    pid: int
    process_start: int  #: clock ticks since boot (`/proc/PID/stat`, field 22)
    boot_id: str
    token: str = field(repr=False)  #: in the child's environment; never shown
    host: str
    port: int
    spec_version: int  #: the version of the registration that it runs
    started_at: datetime
    digest: str = ""  #: of its agent file and env file, as they were when it was launched; never shown
    node_id: str = ""  #: of the node that it runs on; empty: the manager's own machine
    gpus: tuple[str, ...] = ()  #: the GPUs of its node that are reserved for it
    ready_unasked: bool = False
    """It was ready by its own word (sd_notify) or by running on, which no probe can find out again."""


@frozen
class HealthCheck:
    """The result of one probe of one instance.

    In the history of a service: the first probe of that result since the instance started, or since another
    result; those that follow it found the same, up to the next row of that instance.
    """

    service_id: str
    instance_id: str
    status: HealthStatus  #: the verdict after this probe
    checked_at: datetime
    ok: bool
    latency_s: float | None = None
    reason: str | None = None  #: why it failed


@frozen
class Event:
    """Something that happened, for people and for `GET /events`."""

    kind: str  #: as in `service.registered`, `instance.running`, `session.closed`
    at: datetime = Factory(utc_now)
    service_id: str | None = None
    instance_id: str | None = None
    detail: Mapping[str, str | int | float | bool | None] = Factory(dict)
    event_id: int = 0  #: given by the store, rising


@frozen
class Connection:
    """One live connection through the gateway."""

    connection_id: str
    client_ip: str
    client_port: int
    service_id: str
    service_name: str
    instance_id: str
    rule: str | None  #: the name of the rule that chose, if one did
    path: str  #: without the query, which may carry secrets
    started_at: datetime
    idle_s: float
    bytes_from_client: int
    bytes_to_client: int
    messages_from_client: int
    messages_to_client: int
    handshake_s: float | None = None
    """From the client's complete request to the instance's 101: routing, waiting, dialling, its handshake."""
    resumed: int = 0  #: how often another instance went on with it


# Codes of an instance's close frame (RFC 6455, section 7.4): an end that was meant; or its verdict on what
# the client sent: not the protocol, a kind of data that it does not take, not UTF-8, too large.
_NO_FAILURE = frozenset({1000, 1001, 1005, 1008, 1012}) | {1002, 1003, 1007, 1009, 1010}


@frozen
class ConnectionEnd:
    """How a connection through the gateway ended."""

    connection_id: str
    service_id: str
    instance_id: str
    started_at: datetime
    ended_at: datetime
    ended_by: str  #: `client`, `backend` or `gateway`
    code: int | None  #: the close code that was seen or sent; None where the stream just ended
    reason: str
    bytes_from_client: int
    bytes_to_client: int
    messages_from_client: int
    messages_to_client: int
    handshake_s: float | None = None  #: as in `Connection`
    first_byte_s: float | None = None
    """From the client's first message to the first that the instance sent after it; None: there was none."""

    resumed: int = 0  #: as in `Connection`
    services_fault: bool = False  #: the gateway ended it for what the instance did or did not do
    is_request: bool = False  #: it was one HTTP request: counted, and no event

    @property
    def failed(self) -> bool:
        """Is it the service's failure? Not if the client vanished, broke the protocol or sent what is not
        taken; not if an operator, a limit or a restart ended it; not if a part of the gateway has died.
        """
        if self.ended_by == "backend":
            return self.code is None or not (self.code in _NO_FAILURE or self.code >= 3000)
        return self.ended_by == "gateway" and self.services_fault

    @property
    def event(self) -> Event:
        """The same, as something that happened."""
        detail = {
            "connection_id": self.connection_id,
            "ended_by": self.ended_by,
            "code": self.code,
            "reason": self.reason,
            "duration_s": round((self.ended_at - self.started_at).total_seconds(), 3),
            "messages_from_client": self.messages_from_client,
            "messages_to_client": self.messages_to_client,
            "resumed": self.resumed,
        }
        return Event(
            "session.closed", service_id=self.service_id, instance_id=self.instance_id, detail=detail
        )


@frozen
class ConnectionPeak:
    """A service has more connections at once than ever before."""

    service_id: str
    sessions: int


@frozen
class InstanceEnd:
    """How one run of an instance ended, or why it could not begin."""

    service_id: str
    instance_id: str
    slot: int
    at: datetime
    planned: bool  #: the manager ended it: it was stopped, or replaced; or it is a job that has completed
    reason: str  #: for the user
    exit: str | None = None  #: as in "exit code 1", "SIGKILL"; None: there was no process, or it is not known
    pid: int | None = None
    ran_s: float | None = None  #: since its launch
    output: str = ""  #: the last lines before it, as they were written; what is not UTF-8 is replaced
    node: str = ""  #: the name of the node where it ran; empty where there is no cluster


@frozen(kw_only=True)
class MinuteFigures:
    """What a service did in one minute. None: it was not measured."""

    connections: int = 0  #: at its end
    sessions: int | None = None  #: in the memory of its hosts
    cpu: float | None = None  #: as a fraction of one core
    memory_bytes: int | None = None
    first_byte_p50_s: float | None = None  #: of the connections that ended in it
    first_byte_p95_s: float | None = None
    restarts: int = 0  #: in it, unplanned ones


Fact = HealthCheck | Event | ConnectionEnd | ConnectionPeak | InstanceEnd
"""What is recorded in batches: it may be lost when the power fails within a second."""


@frozen
class Latency:
    """A histogram with buckets of fixed width: each ends 19 % above where it begins.

    Whatever is counted, it stays as small as that. It forgets slowly: its percentiles are those of about the
    last `WINDOW` values.
    """

    counts: Mapping[str, int] = Factory(dict)  #: by the number of the bucket; JSON has only strings for keys

    def with_value(self, seconds: float) -> Latency:
        counts = dict(self.counts)
        if sum(counts.values()) >= WINDOW:
            counts = {bucket: count // 2 for bucket, count in counts.items() if count > 1}
        bucket = str(_bucket(seconds))
        counts[bucket] = counts.get(bucket, 0) + 1
        return Latency(counts)

    def plus(self, other: Latency) -> Latency:
        """Of the values of both."""
        counts = dict(self.counts)
        for bucket, count in other.counts.items():
            counts[bucket] = counts.get(bucket, 0) + count
        return Latency(counts)

    def quantile(self, share: float) -> float | None:
        """Seconds that `share` (0 to 1) of the values do not exceed; None where there are no values.

        It is at most 19 % over the true one, and never under it, for values from 0.1 ms to 105 s.
        """
        total = sum(self.counts.values())
        if not total:
            return None
        wanted = max(1, math.ceil(share * total))
        buckets = sorted((int(bucket), count) for bucket, count in self.counts.items())
        reached = accumulate(count for _, count in buckets)
        last = next(bucket for (bucket, _), seen in zip(buckets, reached, strict=True) if seen >= wanted)
        return _FIRST_S * 2 ** (last / _PER_DOUBLING)


def _bucket(seconds: float) -> int:
    """The number of the bucket: it ends at 0.1 ms * 2 ** (number / 4), which still belongs to it."""
    if seconds <= _FIRST_S:
        return 0
    return min(_LAST, math.ceil(math.log2(seconds / _FIRST_S) * _PER_DOUBLING - 1e-9))


@frozen
class ServiceTotals:
    """What a service has done since it was registered."""

    sessions_total: int = 0  #: those that have ended
    sessions_failed: int = 0
    session_seconds: float = 0.0  #: the sum of their durations
    bytes_from_client: int = 0
    bytes_to_client: int = 0
    restarts: int = 0  #: unplanned ones
    errors: int = 0  #: times that an instance was given up
    sessions_peak: int = 0  #: the most at once
    handshake: Latency = Factory(Latency)
    first_byte: Latency = Factory(Latency)
