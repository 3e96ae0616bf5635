"""A node daemon with real processes, linked over a unix socket: `daemon_process.py DIRECTORY SOCKET`."""

import logging
import sys
from functools import partial
from pathlib import Path

import trio

from agentmgr.node.node import Node
from agentmgr.node.protocol import Facts
from agentmgr.supervisor.local import LocalLauncher


def main(directory: str, socket: str) -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s daemon %(message)s")
    node = Node(
        Path(directory),
        LocalLauncher(Path(directory) / "logs", fork_server=False),
        Facts("node-b", "b"),
        partial(trio.open_unix_socket, socket),
    )
    trio.run(node.run)


if __name__ == "__main__":
    main(*sys.argv[1:])
