"""Says in which directory it works, which on a node is a copy of this one; see `cluster.py`."""

from pathlib import Path


def create_agent():
    async def answer(message):
        return f"{message}, answered in {Path.cwd()}"

    return answer
