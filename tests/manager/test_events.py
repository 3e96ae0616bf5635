"""Those who listen are told; those who cannot keep up are let go."""

import pytest
import trio

from agentmgr.manager.events import EventLog
from agentmgr.models import Event
from agentmgr.testing.memory_store import MemoryStore


async def test_events_reach_the_store_and_every_listener_with_rising_ids() -> None:
    store = MemoryStore()
    log = EventLog(store)
    with log.subscribe() as one, log.subscribe() as two:
        for kind in ("first", "second"):
            log.announce(Event(kind))
        heard = [one.receive_nowait(), one.receive_nowait()]
        assert heard == [two.receive_nowait(), two.receive_nowait()]
    assert heard[0].event_id < heard[1].event_id
    assert await store.events() == tuple(heard)


async def test_a_listener_that_left_hears_nothing_and_disturbs_nobody() -> None:
    log = EventLog(MemoryStore())
    with log.subscribe() as gone:
        pass
    log.announce(Event("later"))
    with pytest.raises(trio.ClosedResourceError):
        gone.receive_nowait()


async def test_a_listener_that_lags_is_cut_off_and_can_read_on_in_the_store() -> None:
    store = MemoryStore()
    log = EventLog(store)
    with log.subscribe() as slow:
        announced = [log.announce(Event("tick")) for _ in range(1500)]
        heard = [event async for event in slow]
    assert heard == announced[: len(heard)]
    assert 0 < len(heard) < len(announced)
    rest = await store.events(after=heard[-1].event_id, limit=2000)
    assert list(rest) == announced[len(heard) :]
