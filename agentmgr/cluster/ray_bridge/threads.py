"""A thread whose failure ends the process: the next bridge finds out what is left of what it did."""

from __future__ import annotations

import os
import threading
import traceback
from collections.abc import Callable


def in_thread(work: Callable[..., object], *arguments: object) -> None:
    def run() -> None:
        is_done = False
        try:
            work(*arguments)
            is_done = True
        finally:
            if not is_done:  # whatever Ray has raised: the other threads would go on without this one
                traceback.print_exc()
                os._exit(1)

    threading.Thread(target=run, daemon=True).start()
