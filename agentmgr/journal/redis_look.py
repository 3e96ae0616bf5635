"""What is to be known of a Redis before sessions are trusted to it."""

from __future__ import annotations

from .redis_connection import Redis


async def loses_sessions(redis: Redis) -> str | None:
    """Why none are to be written there. Raises `RedisTrouble`."""
    memory = await _info(redis, "memory")
    policy = memory.get("maxmemory_policy", "noeviction")
    # What is kept has no time to live: the policies volatile-… find none of it.
    if memory.get("maxmemory", "0") != "0" and policy.startswith("allkeys-"):
        return (
            f"it erases what it likes when its memory is full (maxmemory-policy {policy}), and would erase"
            " sessions: CONFIG SET maxmemory-policy noeviction"
        )
    return None


async def look_at(redis: Redis) -> list[str]:
    """What somebody should know who keeps sessions there, a sentence each. Raises `RedisTrouble`."""
    remarks = [f"Redis: {reason}"] if (reason := await loses_sessions(redis)) else []
    persistence = await _info(redis, "persistence")
    if persistence.get("aof_enabled") != "1":
        remarks.append(
            "Redis keeps no log of writes (appendonly no): when it ends, sessions that no instance has in"
            " memory are as they were at its last snapshot, or gone. CONFIG SET appendonly yes, and in its"
            " configuration file"
        )
    elif persistence.get("aof_last_write_status", "ok") != "ok":
        remarks.append("Redis cannot write its log (aof_last_write_status): its disk may be full")
    clients = await _info(redis, "clients")
    used, most = int(clients.get("connected_clients", 0)), int(clients.get("maxclients", 0))
    if most and used > 0.8 * most:
        remarks.append(f"Redis has {used} of at most {most} connections (maxclients); an instance takes two")
    return remarks


async def _info(redis: Redis, section: str) -> dict[str, str]:
    text = (await redis.call("INFO", section)).decode()
    pairs = (line.partition(":") for line in text.splitlines() if ":" in line)
    return {name: value for name, _, value in pairs}
