"""The command line: one module per command, each imported only when it is called.

Exit code 0: done; 1: it could not be done, and one line on stderr says why; 2: wrong usage; 128 + N: ended by
the signal N.
"""

from __future__ import annotations

import gc
import sys

from .. import __version__, bootstrap

TYPE_CHECKING = False  # as in typing, see `agentmgr.bootstrap`
if TYPE_CHECKING:
    from typing import NoReturn


def main() -> NoReturn:
    """The console command `agentmgr`."""
    if sys.argv[1:] == ["--version"]:  # what scripts ask most often needs nothing imported
        print(f"agentmgr {__version__}")
        sys.exit(0)
    bootstrap.search_last(bootstrap.python_path())
    # Imported modules live as long as the process: searching them for garbage, twice more at exit, would take
    # 30 ms of a short command's 200.
    gc.disable()
    from .entry import run

    gc.freeze()
    gc.enable()
    sys.exit(run(sys.argv[1:]))
