"""How a service's configuration reaches the process that hosts its agent."""

from __future__ import annotations

from ..models import ServiceConfig


def host_flags(config: ServiceConfig) -> list[str]:
    """The options of `python -m agentmgr.agent` that say what the configuration says."""
    options: dict[str, object] = {
        "--runtime": config.runtime,
        "--max-conversations": config.conversation_limit,
        "--session-timeout": config.session_timeout,
        "--max-message-bytes": config.max_message_bytes,
        "--turn-timeout": config.turn_timeout,
        "--confirm-timeout": config.confirm_timeout,
        "--on-disconnect": config.on_disconnect,
        "--disconnect-grace": config.disconnect_grace,
        "--when-busy": config.when_busy,
    }
    return [str(word) for option in options.items() for word in option]
