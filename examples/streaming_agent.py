"""Streams its answer, uses a tool, and asks a person before it does something that cannot be undone.

agentmgr serve examples/streaming_agent.py --port 8081
agentmgr chat ws://localhost:8081                        # try: "delete notes.txt", and Ctrl-C
"""

import trio

from agentmgr.agent import thinking, tool_call, tool_result

FILES = {"notes.txt": "buy milk", "todo.txt": "call mum"}


async def agent(message, session):
    yield thinking("looking for a file name")
    name = next((word for word in message.split() if word in FILES), None)
    if name is None:
        answer = f"I know these files: {', '.join(sorted(FILES)) or 'none'}. Say: delete NAME."
    elif await session.confirm("delete_file", {"name": name}, message=f"Really delete {name}?"):
        yield tool_call("delete_file", {"name": name}, step_id="delete")
        content = FILES.pop(name)
        yield tool_result("delete_file", f"deleted {len(content)} bytes", step_id="delete")
        answer = f"Done: {name} is gone."
    else:
        answer = f"All right, {name} stays."
    for word in answer.split():
        yield word + " "
        await trio.sleep(0.05)
