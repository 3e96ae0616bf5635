"""What a health probe and its answer have in common."""

from __future__ import annotations

import hmac

HEALTH_PATH = "/.well-known/agentmgr/health"


def proof(token: str, challenge: str) -> str:
    """Shows that who answers knows the instance's token, without showing the token."""
    return hmac.new(token.encode(), challenge.encode(), "sha256").hexdigest()
