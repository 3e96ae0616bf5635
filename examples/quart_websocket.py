"""How does my Quart application hand some of its WebSocket clients to agents? To a gateway, by gateway.relay.

python examples/quart_websocket.py localhost:8001 localhost:8002
"""

import signal
import sys
from functools import partial

import hypercorn.trio
import trio
from hypercorn.config import Config
from quart import websocket
from quart_trio import QuartTrio

from agentmgr import Backend, Gateway, RoutingTable

app = QuartTrio(__name__)
gateway = Gateway()


@app.websocket("/agent")
async def agent() -> None:
    # Log in as always; then it is accepted or refused here, and when it is over, this returns.
    await gateway.relay(websocket, target="/")


async def main(*addresses: str) -> None:
    backends = [address.rsplit(":", 1) for address in addresses]
    table = RoutingTable(tuple(Backend.at(host, int(port), service="agent") for host, port in backends))
    gateway.update(table)
    config = Config()
    config.bind = ["127.0.0.1:0"]
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:
            await nursery.start(gateway.serve, [])  # no port of its own
            serve = partial(hypercorn.trio.serve, app, config, shutdown_trigger=trio.sleep_forever)
            [url] = await nursery.start(serve)
            print(f"clients connect to {url.replace('http', 'ws')}/agent", flush=True)
            await anext(signals)
            nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(main, *sys.argv[1:])
