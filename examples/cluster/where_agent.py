"""Says where it works, on a node in a copy of this directory, and with which GPUs; see `cluster.py`."""

import os
from pathlib import Path


def create_agent():
    async def answer(message):
        gpus = os.environ.get("CUDA_VISIBLE_DEVICES") or "none"
        return f"{message}, answered in {Path.cwd()}, GPUs: {gpus}"

    return answer
