"""Why a start has not finished: the service waits for others."""

from __future__ import annotations

from ..models import ServiceStatus
from .group import Cli
from .reach import running

_SERVING = (ServiceStatus.RUNNING, ServiceStatus.UNHEALTHY)


async def waits(cli: Cli, name: str) -> str | None:
    """In words that follow its name: what it starts `--after` and does not run; None where all does."""
    async with running(cli) as manager:
        service = await manager.get_service(name)
        others = await manager.list_services()
    serving = {other.name for other in others if other.status in _SERVING}
    needed = [other for other in service.config.after if other not in serving]
    if not needed:
        return None
    if unknown := [other for other in needed if all(other != known.name for known in others)]:
        names = " and ".join(unknown)
        return f"waits for {names}, which is no registered service; `agentmgr change` corrects --after"
    return f"waits for {' and '.join(needed)}; `agentmgr start {' '.join(needed)}` lets it begin"
