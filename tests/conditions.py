"""What tests wait for where nothing announces it."""

from collections.abc import Callable

import trio

PATIENCE_S = 60.0


async def until(holds: Callable[[], bool], *, within_s: float = PATIENCE_S) -> None:
    """Looks until it does. Raises `trio.TooSlowError`."""
    with trio.fail_after(within_s):
        while not holds():  # noqa: ASYNC110  # for what has no event
            await trio.sleep(0.005)
