"""An agent with a protocol of its own: it gets each client's WebSocket as it is.

agentmgr serve examples/websocket_agent.py --port 8081
websocat ws://localhost:8081

It has no sessions, events or turns: for those, write a function or `on_message` (`notes_agent.py`).
"""

from trio_websocket import ConnectionClosed


class Shouting:
    async def serve(self, websocket):
        try:
            while True:
                await websocket.send_message((await websocket.get_message()).upper())
        except ConnectionClosed:
            pass  # the client has left


def create_agent():
    return Shouting()
