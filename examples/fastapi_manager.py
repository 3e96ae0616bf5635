"""How do I have a manager within FastAPI, or another asyncio program? In a thread, where trio runs.

pip install fastapi uvicorn
uvicorn fastapi_manager:app --port 8000
curl http://localhost:8000/                            # clients connect to the gateway that it names
"""

import asyncio
from concurrent.futures import Future
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import trio
from fastapi import FastAPI

from agentmgr import AgentManager
from agentmgr.api import serve_control
from agentmgr.client.aio import ManagerClient
from agentmgr.errors import NameTaken

AGENT = Path(__file__).with_name("echo_agent.py")


async def manage(started):
    """Runs in the thread."""
    async with AgentManager("fastapi_manager.db") as manager, trio.open_nursery() as nursery:
        with suppress(NameTaken):  # an earlier run has registered it, and it runs again by itself
            await manager.register_service("echo", str(AGENT), auto_start=True)
        await nursery.start(serve_control, manager, manager.paths.control_socket)
        port = await nursery.start(manager.serve_proxy, "localhost", 0)
        token = trio.lowlevel.current_trio_token()
        started.set_result((manager.paths.control_socket, port, token, nursery.cancel_scope))
        await trio.sleep_forever()


@asynccontextmanager
async def lifespan(app):
    started: Future = Future()
    thread = asyncio.create_task(asyncio.to_thread(trio.run, manage, started))
    await asyncio.wait([thread, asyncio.wrap_future(started)], return_when=asyncio.FIRST_COMPLETED)
    if thread.done():
        thread.result()  # raises what went wrong
    socket, app.state.port, token, scope = started.result()
    app.state.manager = ManagerClient(socket)  # has the manager's methods, for asyncio
    try:
        yield
    finally:
        token.run_sync_soon(scope.cancel)
        await thread  # all ends in order


app = FastAPI(lifespan=lifespan)


@app.get("/")
async def index():
    services = await app.state.manager.list_services()
    return {"gateway": f"ws://localhost:{app.state.port}", "services": {s.name: s.status for s in services}}
