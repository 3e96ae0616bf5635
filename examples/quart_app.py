"""How do I have the manager's REST API within my own web application? Mounted beside its routes.

python examples/quart_app.py
curl http://localhost:8000/                            # the application's own
curl http://localhost:8000/api/v1/services             # the manager's
"""

import signal
import sys

import trio
from quart_trio import QuartTrio

from agentmgr import AgentManager
from agentmgr.api import api_app
from agentmgr.api.server import serve

app = QuartTrio(__name__)


@app.get("/")
async def index():
    return "my own page\n"


async def main(port=8000):
    # Not left to Python: it raises KeyboardInterrupt wherever the program happens to be, and in the middle of
    # a request Hypercorn would swallow it.
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with AgentManager("quart_app.db") as manager, trio.open_nursery() as nursery:
            port = await nursery.start(serve_both, manager, port)
            print(f"open http://localhost:{port}", flush=True)
            await anext(signals)
            nursery.cancel_scope.cancel()


async def serve_both(manager, port, *, task_status):
    async with trio.open_nursery() as nursery:

        def make_both(nursery, stopping):
            api = api_app(manager, nursery, stopping=stopping)

            async def both(scope, receive, send):
                theirs = scope["path"].startswith("/api/v1/")
                await (api if theirs else app)(scope, receive, send)

            return both

        # Hypercorn's HTTP behind an accept loop that no client can end or keep from ending.
        listeners = await trio.open_tcp_listeners(port, host="127.0.0.1")
        await nursery.start(serve, make_both, listeners)
        task_status.started(listeners[0].socket.getsockname()[1])


if __name__ == "__main__":
    trio.run(main, *map(int, sys.argv[1:]))
