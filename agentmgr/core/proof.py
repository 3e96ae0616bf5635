"""How a hosted agent proves that it is the one its supervisor started.

Not in `core.health`, which would cost each agent's process the import of the models.
"""

from __future__ import annotations

import hmac

HEALTH_PATH = "/.well-known/agentmgr/health"
"""Where a hosted agent answers `?challenge=HEX`, to a WebSocket and to plain GET (prefix: RFC 8615)."""


def proof(token: str, challenge: str) -> str:
    """The answer to a challenge, which only a holder of the instance's token can compute."""
    return hmac.new(token.encode(), challenge.encode(), "sha256").hexdigest()
