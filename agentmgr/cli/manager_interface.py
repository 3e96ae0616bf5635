"""What a command asks of a manager, whichever it is: every method is awaited.

ReadsServices       all of them
ReadsManager        `client.ManagerClient`, and `cli.offline.OfflineManager`, the database where none runs
ManagerInterface    `client.ManagerClient`, and `cli.offline.LocalManager`: `AgentManager` in this process
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import datetime
from typing import Any, Protocol

from ..models import (
    Connection,
    Event,
    InstanceEnd,
    RoutingRule,
    Service,
    ServiceConfig,
    ServiceStatus,
    SessionDetail,
    SessionPage,
    SessionQuestion,
    SessionState,
    Token,
    TokenPolicy,
)


class ReadsSessions(Protocol):
    async def list(
        self,
        service: str | None = None,
        *,
        state: SessionState | None = None,
        owner: str | None = None,
        text: str | None = None,
        limit: int = 100,
        cursor: str | None = None,
    ) -> SessionPage: ...
    async def get(self, session_id: str) -> SessionDetail: ...
    async def questions(self) -> tuple[SessionQuestion, ...]: ...
    def events(
        self, session_id: str, *, since: int = 0, follow: bool = True, messages: bool = False
    ) -> AbstractAsyncContextManager[AsyncIterator[dict[str, Any]]]: ...
    def export(self, session_id: str) -> AbstractAsyncContextManager[AsyncIterator[bytes]]: ...
    async def erase(self, session_id: str) -> None: ...


class ReadsServices(Protocol):
    async def get_service(self, ref: str) -> Service: ...
    async def list_services(
        self, *, status: ServiceStatus | None = None, tags: Iterable[str] = (), name: str | None = None
    ) -> list[Service]: ...
    async def list_tokens(self) -> tuple[Token, ...]: ...
    async def get_token_policy(self) -> TokenPolicy: ...


class ReadsManager(ReadsServices, Protocol):
    @property
    def sessions(self) -> ReadsSessions: ...
    async def get_environments(self) -> dict[str, dict[str, str]]: ...
    async def get_hooks(self) -> dict[str, str]: ...
    async def get_digests(self) -> dict[str, Sequence[str]]: ...
    async def get_service_stats(self, ref: str) -> dict[str, Any]: ...
    async def get_ends(self, ref: str, *, limit: int = 50) -> tuple[InstanceEnd, ...]: ...
    async def get_system_stats(self) -> dict[str, Any]: ...
    async def get_events(self, *, after: int = 0, limit: int = 1000) -> tuple[Event, ...]: ...
    async def list_connections(self) -> tuple[Connection, ...]: ...
    async def list_routing_rules(self) -> list[RoutingRule]: ...
    async def test_routing(
        self, *, path: str, client_ip: str, headers: Mapping[str, str]
    ) -> dict[str, Any]: ...
    def read_logs(
        self,
        ref: str | Sequence[str],
        *,
        tail: int | None = None,
        follow: bool = False,
        instance: int | None = None,
        since: datetime | None = None,
        grep: str | None = None,
        timestamps: bool = False,
    ) -> AbstractAsyncContextManager[AsyncIterator[bytes]]: ...


class ManagerInterface(ReadsServices, Protocol):
    async def register_service(
        self,
        name: str,
        agent_factory_path: str | None = None,
        *,
        command: Sequence[str] = (),
        description: str = "",
        tags: Iterable[str] = (),
        host: str = "localhost",
        port: int | None = None,
        config: ServiceConfig | None = None,
        auto_start: bool = False,
        wait: bool = True,
    ) -> Service: ...
    async def update_service(
        self, ref: str, changes: Mapping[str, Any], *, expected_version: int | None = None
    ) -> Service: ...
    async def unregister_service(self, ref: str, *, force: bool = False) -> Service: ...
    async def start_service(self, ref: str, *, wait: bool = True) -> Service: ...
    async def stop_service(self, ref: str, *, force: bool = False, wait: bool = True) -> Service: ...
    async def restart_service(
        self, ref: str, *, rolling: bool = True, force: bool = False, wait: bool = True
    ) -> Service: ...
    async def run_service_now(self, ref: str) -> Service: ...
    async def scale_service(self, ref: str, instances: int | str, *, wait: bool = True) -> Service: ...
    async def create_routing_rule(self, rule: RoutingRule) -> RoutingRule: ...
    async def update_routing_rule(
        self, ref: str, changes: Mapping[str, Any], *, expected_version: int | None = None
    ) -> RoutingRule: ...
    async def delete_routing_rule(self, ref: str) -> object: ...
    async def create_token(
        self, name: str, scopes: Iterable[str], *, expires_in_days: float | None = None
    ) -> tuple[Token, str]: ...
    async def delete_token(self, ref: str, *, leave_open: bool = False) -> object: ...
    async def require_tokens(
        self, *, api: bool | None = None, gateway: bool | None = None
    ) -> TokenPolicy: ...
