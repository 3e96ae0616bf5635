"""Where the nodes of this machine keep what they are, if Ray had them started."""

from __future__ import annotations

import os
from pathlib import Path


def kept() -> list[Path]:
    """Their directories, by name: one for each cluster, and for each address of a machine whose home is
    shared by several. `cluster.ray_keeper` makes them.
    """
    state = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    nodes = Path(os.path.expanduser(state), "agentmgr", "nodes")
    return sorted(file.parent for file in nodes.glob("*/*/node.json"))
