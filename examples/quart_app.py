"""How do I have the manager's REST API within my own web application? Mounted beside its routes.

python examples/quart_app.py
curl http://localhost:8000/                            # the application's own
curl http://localhost:8000/api/v1/services             # the manager's
"""

import signal
import sys
from functools import partial

import trio
from quart_trio import QuartTrio

from agentmgr import AgentManager
from agentmgr.api import serve_api

app = QuartTrio(__name__)


@app.get("/")
async def index():
    return "my own page\n"


def mounted(api):
    async def both(scope, receive, send):
        theirs = scope["path"].startswith("/api/v1/")
        await (api if theirs else app)(scope, receive, send)

    return both


async def main(port: int = 8000) -> None:
    # Not left to Python: it raises KeyboardInterrupt wherever the program happens to be, and in the middle of
    # a request Hypercorn would swallow it.
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with AgentManager("quart_app.db") as manager, trio.open_nursery() as nursery:
            port = await nursery.start(partial(serve_api, manager, port=port, middleware=mounted))
            print(f"open http://localhost:{port}", flush=True)
            await anext(signals)
            nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(partial(main, *map(int, sys.argv[1:])))
