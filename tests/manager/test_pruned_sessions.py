"""What a manager erases by itself of durable sessions, and says of it."""

import time
from pathlib import Path

import trio

from agentmgr.journal import sqlite_archive
from agentmgr.journal.journal import Frame, SessionRecord
from agentmgr.journal.sqlite import open_journal
from agentmgr.manager import AgentManager
from agentmgr.models import ServiceConfig

DAY_S = 86400.0


async def keep(path: Path, session_id: str, at: float, size: int = 10) -> None:
    """A session as a host leaves it."""
    async with open_journal(path, "inst_gone") as journal:
        held = await journal.create(SessionRecord(session_id, None, at, at))
        held.write(*(Frame(seq, 0, b"x" * 1000) for seq in range(1, size + 1)))
        await held.settled()


async def test_what_is_not_used_is_erased_and_counted_in_one_event(db, agent_file):
    async with AgentManager(db, supervise=False) as manager:
        kept = await manager.register_service("kept", agent_file())
        short = ServiceConfig(session_retention=DAY_S)
        brief = await manager.register_service("brief", agent_file(), config=short)
        small = ServiceConfig(session_retention=0, sessions_max_bytes=200_000)
        little = await manager.register_service("little", agent_file(), config=small)
        directory = manager.paths.sessions
    now = time.time()
    for service, ages in ((kept, (29, 31)), (brief, (0.5, 2, 3))):
        for age in ages:
            await keep(directory / f"{service.service_id}.db", f"ses_{age}", now - age * DAY_S)
    for age in range(5):
        await keep(directory / f"{little.service_id}.db", f"ses_{age}", now - age * 1000 * DAY_S, 80)

    async with AgentManager(db) as manager:
        events = []
        with trio.fail_after(20):
            while len(events) < 3:
                found = await manager.get_events()
                events = [event for event in found if event.kind == "sessions.pruned"]
                await trio.sleep(0.02)
        left = {}
        for service in (kept, brief, little):
            page = sqlite_archive.sessions(directory / f"{service.service_id}.db")
            left[service.name] = [one.session_id for one in page.items]
    assert left["kept"] == ["ses_29"]
    assert left["brief"] == ["ses_0.5"]
    assert 0 < len(left["little"]) < 5
    assert left["little"] == [f"ses_{age}" for age in range(len(left["little"]))], "the last used stay"
    said = {event.service_id: (event.detail["unused"], event.detail["for_room"]) for event in events}
    assert said == {
        kept.service_id: (1, 0),
        brief.service_id: (2, 0),
        little.service_id: (0, 5 - len(left["little"])),
    }
