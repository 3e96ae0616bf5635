"""What each fact adds to its service's totals."""

from __future__ import annotations

from attrs import evolve

from ..models import ConnectionEnd, ConnectionPeak, Event, Fact, HealthCheck, Latency, ServiceTotals


def counted(totals: ServiceTotals, fact: Fact) -> ServiceTotals:
    """The totals of the fact's service once `fact` is counted in."""
    match fact:
        case ConnectionEnd():
            return evolve(
                totals,
                sessions_total=totals.sessions_total + 1,
                sessions_failed=totals.sessions_failed + fact.failed,
                # The wall clock may have been set back in between; time is never taken off the total.
                session_seconds=totals.session_seconds
                + max(0.0, (fact.ended_at - fact.started_at).total_seconds()),
                bytes_from_client=totals.bytes_from_client + fact.bytes_from_client,
                bytes_to_client=totals.bytes_to_client + fact.bytes_to_client,
                handshake=_with(totals.handshake, fact.handshake_s),
                first_byte=_with(totals.first_byte, fact.first_byte_s),
            )
        case ConnectionPeak():
            return evolve(totals, sessions_peak=max(totals.sessions_peak, fact.sessions))
        case Event(kind="instance.backoff"):  # the way to every unplanned restart
            return evolve(totals, restarts=totals.restarts + 1)
        case Event(kind="instance.error"):
            return evolve(totals, errors=totals.errors + 1)
        case Event() | HealthCheck():
            return totals


def _with(latency: Latency, seconds: float | None) -> Latency:
    return latency if seconds is None else latency.with_value(seconds)
