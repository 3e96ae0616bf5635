"""How do I put one address before WebSocket servers that somebody else runs? With a gateway and no manager.

python examples/embed_gateway.py localhost:8001 localhost:8002
"""

import signal
import sys

import trio

from agentmgr import Backend, Gateway, RoutingTable


def table(addresses):
    backends = [address.rsplit(":", 1) for address in addresses]
    return RoutingTable(tuple(Backend.at(host, int(port), service="chat") for host, port in backends))


async def main(*addresses):
    gateway = Gateway(table(addresses))
    # Whenever the backends change: gateway.update(table(...)). Open sessions stay where they are.
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:
            listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
            await nursery.start(gateway.serve, listeners)
            port = listeners[0].socket.getsockname()[1]
            print(f"clients connect to ws://127.0.0.1:{port}", flush=True)
            await anext(signals)
            nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(main, *sys.argv[1:])
