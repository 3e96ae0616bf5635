"""The events of one turn, kept apart from those of others: the door gives what the test says."""

from __future__ import annotations

import pytest
import trio

from agentmgr import protocol
from agentmgr.fronts.turn import Turn


class ScriptedDoor:
    """Gives batches of events, one at a time; remembers what was sent."""

    def __init__(self, *batches):
        self.batches = list(batches)
        self.sent = []

    async def send(self, *events, size=0):
        self.sent += events

    async def receive(self):
        await trio.lowlevel.checkpoint()
        return self.batches.pop(0)


def event(name, content, seq=None, step_id="step"):
    fields = {"event": name, "session_id": "ses", "step_id": step_id, "content": content}
    return fields if seq is None else fields | {"seq": seq}


@pytest.mark.parametrize("code", ["resumed", "gap"])
async def test_a_message_that_was_taken_before_gets_the_same_answer_also_behind_a_gap(code):
    duplicate = event(protocol.ERROR, {"code": "duplicate"})
    notice = event(protocol.NOTICE, {"code": code, "replay_from": 7, "last_seq": 9}, step_id=None)
    other = event(protocol.FINAL_ANSWER, "of the turn before", 7, "other")
    mine = [event(protocol.PARTIAL_ANSWER, "a", 8), event(protocol.FINAL_ANSWER, "ab", 9)]
    pong = {"event": protocol.PONG, "content": ""}
    door = ScriptedDoor([duplicate, pong], [notice, other, *mine])
    turn = Turn(door, "ses", "step", last_seq=9, early=[])
    with trio.fail_after(60):
        assert await turn.events() == mine
        assert await turn.events() == []
    assert [sent["event"] for sent in door.sent] == [protocol.RECONNECT]
