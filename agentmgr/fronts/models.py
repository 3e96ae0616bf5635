"""The services, by the names that clients have for them: as models, or as agents. Pure."""

from __future__ import annotations

from urllib.parse import quote

from ..core.routing import BackendState, RoutingTable


def target_of(model: str) -> str:
    """The address in the gateway for `NAME`, a service, `tag:NAME`, or `auto`, by the rules."""
    if model == "auto":
        return "/"
    if model.startswith("tag:"):
        return f"/?tag={quote(model.removeprefix('tag:'), safe='')}"
    return f"/services/{quote(model, safe='')}"


def services_of(table: RoutingTable, allowed: frozenset[str] | None) -> frozenset[str]:
    """The names of those that clients converse with, of which one may reach the `allowed` ones."""
    running = {backend.service_name for backend in table.backends}
    names = {
        backend.service_name
        for backend in table.backends
        if table.takes_any_client(backend) and backend.state is not BackendState.NO_LISTENER
    }
    names |= table.service_names - table.http_services - table.portless_services - running
    return frozenset(names if allowed is None else names & allowed)


def models(table: RoutingTable, services: frozenset[str] | None) -> list[str]:
    """`auto`, the names of the services, and `tag:…` for the tags of those that run."""
    allowed = services_of(table, services)
    tags = {tag for b in table.backends if b.service_name in allowed for tag in b.tags}
    return ["auto", *sorted(allowed), *sorted(f"tag:{tag}" for tag in tags)]
