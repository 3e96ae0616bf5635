"""Whether a manager is there: it holds the database's lock, and answers on the control socket."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio

from ..errors import ManagerAlreadyRunning, ManagerError
from ..process.control_socket import connect
from ..process.ownership import coming_up, holder
from ..process.paths import RuntimePaths

RETRY_S = 0.03
_MOMENT_S = 3.0  #: a manager on its way up, or whose socket was deleted, answers in less


async def answers(paths: RuntimePaths) -> bool:
    """Whether a manager answers on the control socket; waits a moment for one that holds the database."""
    return not await silent(paths) and await answers_at_once(paths)


async def answers_at_once(paths: RuntimePaths) -> bool:
    try:
        stream = await connect(paths.control_socket)
    except OSError:  # no such file, or no process listens
        return False
    await trio.aclose_forcefully(stream)
    return True


async def silent(paths: RuntimePaths) -> bool:
    """Whether a process holds the database and does not answer, not even after a moment.

    A manager that is coming up is waited for as long, also before it holds the database.
    """
    give_up_at = trio.current_time() + _MOMENT_S
    while not await answers_at_once(paths) and ((held := holder(paths) is not None) or coming_up(paths)):
        if trio.current_time() > give_up_at:
            return held
        await trio.sleep(RETRY_S)
    return False


async def manages_unless_another_does(paths: RuntimePaths, manage: Callable[[], Awaitable[None]]) -> bool:
    """Runs `manage` and returns true, or returns false when there is another manager, also when that one was
    quicker. Raises `ManagerError` when the other one does not answer.
    """
    if not await answers(paths):
        try:
            await manage()
        except* ManagerAlreadyRunning:
            pass
        else:
            return True
        if await silent(paths):
            raise unreachable(paths)
    return False


def unreachable(paths: RuntimePaths) -> ManagerError:
    pid = holder(paths)
    return ManagerError(
        f"the process {pid} manages {paths.database}, and does not answer on {paths.control_socket}: it is a "
        f"program that embeds a manager without `serve_control`, or hangs; `kill {pid}` ends it"
    )
