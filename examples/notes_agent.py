"""All of an agent's interface in one file: hooks, events, questions, state, history, client, health.

agentmgr serve examples/notes_agent.py --port 8081
agentmgr chat ws://localhost:8081               # "add buy milk", "list", "clear", "count", "repeat", "who"

`agentmgr/protocol.py` says what a client sees of it.
"""

import trio

from agentmgr.agent import partial_answer, thinking, tool_call, tool_result

RUNTIME = "trio"  # or "asyncio", where the code awaits asyncio; by default it is what the file imports


class NotesAgent:
    """One object serves all sessions: what belongs to one conversation is in its `session`."""

    def __init__(self):
        self.sessions = 0

    async def on_session_start(self, session):
        session.state["notes"] = []  # of one that comes back, what was kept counts; see `session.restored`
        self.sessions += 1

    async def on_session_end(self, session):
        self.sessions -= 1

    async def on_message(self, session, message):
        """One turn. `message` is a string, and has `content` and `metadata` as the client sent them;
        `instructions` (a system prompt) and `attachments` (images and files, each with `url`, `name`,
        `media_type` and, of a data URL, `data`) where a chat program says so.
        """
        notes = session.state["notes"]
        command, _, text = message.partition(" ")
        if command == "add":
            await session.emit(tool_call("add", {"text": text}, step_id="add"))
            notes += [text, *(part.name or part.url for part in message.attachments)]
            await session.emit(tool_result("add", len(notes), step_id="add"))
            await session.emit("notes.changed", {"count": len(notes)})  # an event of our own
            return f"That is note {len(notes)}."
        if command == "list":
            for note in notes or ["There are no notes."]:
                await session.emit(partial_answer(f"{note}\n"))
                await trio.sleep(0.05)  # a cancel of the client ends the turn here
            return None  # the answer is what was streamed
        if command == "clear":
            await session.emit(thinking("this cannot be undone"))
            if not await session.confirm("clear", {"count": len(notes)}, message="Delete all?", timeout_s=60):
                return "They stay."  # also when the person did not answer in time
            notes.clear()
            return "They are gone."
        if command == "count":
            return {"notes": len(notes), "sessions": self.sessions}  # an answer may be any JSON
        if command == "repeat":
            return [turn["content"] for turn in session.history if turn["role"] == "user"]
        if command == "who":
            return session.client.identity or f"someone at {session.client.address}"
        raise ValueError(f"{command!r} is no command")  # ends this turn with `agent.error`, nothing more

    async def check_health(self):
        return True if self.sessions < 1000 else {"status": "degraded", "detail": "very many sessions"}


def create_agent():
    return NotesAgent()
