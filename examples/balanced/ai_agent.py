"""Says which service it is; see `balanced.sh`."""

import os


def create_agent():
    async def answer(message):
        return f"{os.environ['AGENTMGR_SERVICE']} heard: {message}"

    return answer
