"""What is said of a start that did not come to its end because the service waits for others."""

from __future__ import annotations

from ..models import ServiceStatus
from .group import Cli
from .reach import running

_SERVING = (ServiceStatus.RUNNING, ServiceStatus.UNHEALTHY)


async def waits(cli: Cli, name: str) -> str | None:
    """In words that follow its name: what it starts `--after` and does not run; None where all does."""
    async with running(cli) as manager:
        service = await manager.get_service(name)
        serving = {other.name for other in await manager.list_services() if other.status in _SERVING}
    needed = [other for other in service.config.after if other not in serving]
    if not needed:
        return None
    return f"waits for {' and '.join(needed)}; `agentmgr start {' '.join(needed)}` lets it begin"
