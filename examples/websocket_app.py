"""How does my own WebSocket server hand some of its clients to agents? To a gateway, by gateway.relay.

python examples/websocket_app.py localhost:8001 localhost:8002
"""

import signal
import sys
from functools import partial

import trio
from trio_websocket import serve_websocket

from agentmgr import Backend, Gateway, RoutingTable


async def main(*addresses: str) -> None:
    backends = [address.rsplit(":", 1) for address in addresses]
    table = RoutingTable(tuple(Backend.at(host, int(port), service="agent") for host, port in backends))
    gateway = Gateway(table)

    async def serve(request):
        if request.path == "/agent":
            await gateway.relay(request, target="/")  # accepts it or refuses it; returns when it is over
        else:
            websocket = await request.accept()
            await websocket.send_message("my own server; the agent is at /agent")

    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:
            await nursery.start(gateway.serve, [])  # no port of its own
            server = await nursery.start(partial(serve_websocket, serve, "127.0.0.1", 0, ssl_context=None))
            print(f"clients connect to ws://127.0.0.1:{server.port}/agent", flush=True)
            await anext(signals)
            nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(main, *sys.argv[1:])
