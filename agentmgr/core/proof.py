"""How a hosted agent proves that it is the one its supervisor started.

Apart from `core.health`, whose models the agent's process would otherwise import at each start.
"""

from __future__ import annotations

import hmac

HEALTH_PATH = "/.well-known/agentmgr/health"
"""Where a hosted agent answers `?challenge=HEX`, to a WebSocket and to plain GET (prefix: RFC 8615)."""


def proof(token: str, challenge: str) -> str:
    """What only the holder of the instance's token can answer to a challenge."""
    return hmac.new(token.encode(), challenge.encode(), "sha256").hexdigest()
