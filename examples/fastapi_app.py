"""How do I talk to agents from FastAPI, or another asyncio program? With the clients in agentmgr.client.aio.

agentmgr run echo_agent.py                             # in another terminal
pip install fastapi uvicorn
uvicorn fastapi_app:app --port 8000
curl "http://localhost:8000/ask?text=hello"            # with session_id and last_seq it goes on
curl -N "http://localhost:8000/stream?text=hello"
curl http://localhost:8000/services
"""

import os

from fastapi import FastAPI
from fastapi.responses import StreamingResponse

from agentmgr.client.aio import ManagerClient, open_session

AGENT = os.environ.get("AGENT_URL", "ws://localhost:9090")
MANAGER = os.environ.get("MANAGER_URL", "http://localhost:8080")

app = FastAPI()


@app.get("/ask")
async def ask(text: str, session_id: str | None = None, last_seq: int = 0):
    async with open_session(AGENT, session_id=session_id, last_seq=last_seq) as session:
        answer = await session.ask(text)
        return {"answer": answer, "session_id": session.session_id, "last_seq": session.last_seq}


@app.get("/stream")
async def stream(text: str):
    async def pieces():
        async with open_session(AGENT) as session:
            async for event in await session.send(text):
                if event.event == "agent.partial_answer":
                    yield event.content

    return StreamingResponse(pieces(), media_type="text/plain")


@app.get("/services")
async def services():
    async with ManagerClient(MANAGER) as manager:
        return {service.name: service.status for service in await manager.list_services()}
