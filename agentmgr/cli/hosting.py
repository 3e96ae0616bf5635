"""The command that hosts an agent file in a process of its own, without a manager."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from .. import bootstrap
from ..agent.host import HostOptions, open_listener
from ..codec import to_json
from ..core.hosts import authority
from ..errors import InvalidRequest
from ..manager.factory_path import located
from ..models.network_journal import SESSIONS_URL
from .out import say


def host_command(
    options: HostOptions, given: Mapping[str, Any], fd: int, python: str | None = None
) -> list[str]:
    """Serves on the socket `fd`. `given`: the fields of `HostConfig` that are not as by default.

    Raises `AgentFileNotFound`.
    """
    assert options.agent_factory_path is not None
    words = bootstrap.words("agentmgr.agent", python)
    words += [located(options.agent_factory_path, Path.cwd()), "--fd", str(fd), "--options", to_json(given)]
    words += ["--open-beyond-loopback"] if options.open_beyond_loopback else []
    return words + [word for origin in options.allowed_origins or () for word in ("--allow-origin", origin)]


def host_environment(more: Mapping[str, str] = {}) -> dict[str, str]:
    """Ours, but the operator's key and the journal of managers, which are none of the agent's business."""
    ours = {name: text for name, text in os.environ.items() if name not in ("AGENTMGR_TOKEN", SESSIONS_URL)}
    return bootstrap.environment({**ours, **more})


def announce(options: HostOptions, address: tuple[Any, ...]) -> None:
    url = f"ws://{authority(*address[:2])}"
    say(f"{options.agent_factory_path} answers at {url}; try: agentmgr chat {url}", flush=True)


async def become_host(options: HostOptions, given: Mapping[str, Any], python: str) -> NoReturn:
    """This process goes on as a host in that Python. Raises as `host_command`, and `InvalidRequest`."""
    async with await open_listener(options) as listener:
        fd = listener.socket.fileno()
        words = host_command(options, given, fd, python)
        words += ["--journal", options.journal] if options.journal else []
        os.set_inheritable(fd, True)
        try:
            os.execvpe(python, words, host_environment())
        except OSError as error:
            raise InvalidRequest(f"cannot execute {python!r}: {error.strerror}") from None
