"""The last lines of a log, as `show` asks for them."""

from __future__ import annotations

from pathlib import Path

from agentmgr.supervisor.log_file import LogFile
from agentmgr.supervisor.log_source import Selection


async def tail(path: Path, lines: int) -> tuple[bytes, int]:
    """Also the position where they end."""
    found, end = await LogFile(path).last(Selection(lines), 2**24)
    return b"".join(line.data for line in found), end
