"""What a second stage makes of its imports: whether it may be forked, and what its children get of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

MODULES = {
    "plain": "import colorsys, sched",
    "three": "import threading\n"
    "for _ in range(3): threading.Thread(target=threading.Event().wait, daemon=True).start()",
    "around": "import plain, three",
    "ended": "import threading\nthread = threading.Thread(target=int)\nthread.start(); thread.join()",
    "looping": "import asyncio\nloop = asyncio.new_event_loop()",
    "connected": "import socket\npair = socket.socketpair()",
    "reading": "file = open(__file__)",
    "read": "text = open(__file__).read()",
    "starting": "import subprocess\nprocess = subprocess.Popen(['true'])",
    "leaving": "raise SystemExit(3)",
    # As OpenBLAS has it: its threads end before a fork, and start again when they are needed.
    "forkable": "import os, threading\nend = threading.Event(); thread = threading.Thread(target=end.wait)\n"
    "thread.start(); os.register_at_fork(before=lambda: (end.set(), thread.join()))",
    "setting": "import os\nos.environ['SET'] = '1'; os.environ['CHANGED'] = '2'; del os.environ['REMOVED']",
}

# Each case in a child of one process, as imports cannot be undone.
SCRIPT = """
import json, os, sys
from agentmgr.fork_server import preloading
sys.path.insert(0, sys.argv[1])
for case in json.loads(sys.argv[2]):
    if os.fork() == 0:
        os.environ.update(REMOVED="x", CHANGED="1", KEPT="x")
        found = preloading.preload(case)
        os.environ.update(REMOVED="x", CHANGED="of the service", KEPT="y")
        os.environ.pop("SET", None)
        preloading.in_child()
        kept = {name: os.environ.get(name) for name in ("SET", "CHANGED", "REMOVED", "KEPT")}
        print(json.dumps([found.unsafe, found.packages, found.failed, kept]), flush=True)
        os._exit(0)
    os.wait()
"""


UNSAFE = {
    "plain": None,
    "three": "three started 3 threads",
    "around": "three started 3 threads",  # not the package that imports it
    "ended": None,
    "looping": "looping made an event loop",
    "connected": "connected opened a socket",
    "reading": "reading opened {}/reading.py",
    "read": None,
    "starting": "what it imports started a process",
    "leaving": None,
    "forkable": None,
    "setting": None,
}


def test_a_second_stage_says_what_is_unsafe_to_fork_and_its_children_have_what_imports_changed(
    tmp_path: Path,
) -> None:
    for name, text in MODULES.items():
        (tmp_path / f"{name}.py").write_text(text + "\n")
    cases = [[name] for name in MODULES] + [["leaving", "unknown", "plain"]]
    command = [sys.executable, "-c", SCRIPT, str(tmp_path), json.dumps(cases)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    lines = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
    *each, several = (json.loads(line) for line in lines.splitlines())
    found: dict[str, Any] = dict(zip(MODULES, each, strict=True))

    for name, unsafe in UNSAFE.items():
        assert found[name][0] == (unsafe and unsafe.format(tmp_path)), name

    assert several[1:3] == [["colorsys", "plain", "sched"], "leaving cannot be imported: SystemExit: 3"]

    assert found["plain"][3] == {"SET": None, "CHANGED": "of the service", "REMOVED": "x", "KEPT": "y"}
    assert found["setting"][3] == {"SET": "1", "CHANGED": "2", "REMOVED": None, "KEPT": "y"}
