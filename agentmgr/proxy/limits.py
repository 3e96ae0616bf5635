"""The gateway's limits, each with its default and the reason for it."""

from __future__ import annotations

from attrs import frozen


@frozen
class GatewayLimits:
    """Durations in seconds, sizes in bytes. A limit of 0 means none where the text says so."""

    head_bytes: int = 16 * 1024  #: as in h11, Node and most servers; cookies are what fills it
    head_fields: int = 100
    head_timeout_s: float = 10.0  #: from accept to the complete head, TLS handshake included
    early_bytes: int = 64 * 1024  #: what a client may send before its answer without being made to wait
    # Bodies of requests to fronts, from their first byte until the agent has them, and answers that are not
    # read: all together, beyond `early_bytes` of each. Parsed, a body takes up to four times as much.
    requests_bytes: int = 256 * 1024 * 1024
    refusal_bytes: int = 64 * 1024  #: of a backend's own refusal, relayed to the client

    connect_timeout_s: float = 5.0
    handshake_timeout_s: float = 10.0  #: from the connect to the backend's complete answer
    dial_timeout_s: float = 15.0  #: for all tries together
    max_tries: int = 3

    queue_timeout_s: float = 10.0  #: how long a client waits for a seat or for an instance that is coming
    queue_size: int = 1000  #: clients that wait at once
    retry_after_s: int = 2  #: sent to a refused client; a restart usually takes less

    max_connections: int = (
        0  #: at once, handshakes included; 0: what open files allow, and never more than that
    )
    connections_per_address: int = 0  #: at once, from one client address; 0: no limit
    handshakes_per_address_s: float = 0.0  #: a second, from one client address; 0: no limit

    stall_timeout_s: float = 60.0  #: a receiver that takes nothing for so long is cut
    # A millisecond saves a third of a lone connection's CPU, where the process has nothing else to do: all
    # other tasks wait meanwhile. Epoll knows no shorter wait.
    busy_wait_s: float = 0.0  #: how long a busy relay waits for the next message, outside of trio's loop
    close_timeout_s: float = 10.0  #: from a close frame to the end of the connection
    # So long without a data frame ends a draining connection if the agent cannot say whether it works.
    drain_idle_s: float = 10.0
    close_batch: int = 50  #: connections closed at once when many are
    close_pause_s: float = 0.05  #: on average, between two such batches

    def longest_wait_s(self, starts_within: float) -> float:
        """From a client's request to the end of the last dial for it. `starts_within`: of its `Visit`."""
        return max(self.queue_timeout_s, starts_within) + self.dial_timeout_s
