"""What `--format json` prints, and programs may rely on; `--help` shows it, and the tests hold it true.

Keys are added now and then, and neither renamed nor removed without a line in the changelog. Times are
ISO 8601 in UTC; what is not known is null.
"""

from __future__ import annotations

_SERVICE = """
    service_id name description agent_factory_path command host port endpoint tags status desired_status
    health error_message version created_at updated_at started_at restart_count next_restart_at
    active_sessions config instances port_is_fixed next_run_at last_run reload_error preloaded remarks
    wanted_instances journal
"""
_SYSTEM = "services connections health instances troubles"
_SESSION = """
    session_id service name owner state instance_id turns input_tokens output_tokens created_at
    last_used_at ended_at end_reason
"""
_NODE = """
    node_id name address state reason instances sessions cpu_percent memory_bytes labels resources
    joined_at cordoned agentmgr python clock_skew_s troubles claimed
"""
_KEYS = {
    "list": ("array", _SERVICE),
    "status NAME": ("object", f"{_SERVICE} stats"),
    "status": ("object", _SYSTEM),
    "stats": ("object", _SYSTEM),
    "stats NAME": (
        "object",
        """
        service_id name status connections sessions response_time bytes restarts errors uptime_s
        usage instances last_run
    """,
    ),
    "events": ("lines", "kind at service_id instance_id detail event_id"),
    "connections": (
        "array",
        """
        connection_id client_ip client_port service_id service_name instance_id rule path
        started_at idle_s bytes_from_client bytes_to_client messages_from_client
        messages_to_client handshake_s resumed
    """,
    ),
    "sessions list NAME": ("array", _SESSION),
    "sessions show ID": ("object", f"{_SESSION} history questions session_state"),
    "questions list": ("array", "session_id service name owner instance_id step_id content asked_at"),
    "routes list": (
        "array",
        """
        name conditions priority target_services target_tags match_all_tags target_strategy
        fallback_strategy hash_key enabled description rule_id version created_at
    """,
    ),
    "routes test": ("object", "rule strategy candidates chosen service code reason rules"),
    "tokens list": ("array", "token_id name scopes created_at expires_at"),
    "nodes list": ("array", _NODE),
    "nodes show NAME": ("object", _NODE),
    "doctor": ("array", "what result found advice"),
    "info": ("object", "version manager files"),
    "version": ("object", "agentmgr python trio trio-websocket hypercorn quart-trio platform"),
    "settings": ("array", "name value default environment help"),
}
PRINTED = {command: (shape, keys.split()) for command, (shape, keys) in _KEYS.items()}
"""By command with its arguments: array, object, or lines (an object in each); and the keys of an object."""


def printed_by(command: str) -> list[tuple[str, str]]:
    """What its help says: with which arguments, and what that prints."""
    return [
        (words, f"{shape}: {', '.join(keys)}")
        for words, (shape, keys) in PRINTED.items()
        if words.removesuffix(" NAME").removesuffix(" ID") == command
    ]
