"""What a host says of its turns to its manager, which decides by that how many instances run."""

from __future__ import annotations

from typing import Any

import trio

from agentmgr.core.proof import HEALTH_PATH
from agentmgr.supervisor.host_request import HostRequest
from agentmgr.testing.agents import bare_client, hosted

TOKEN = "secret"


async def turns_of(url: str, token: str = TOKEN) -> Any:
    ask = HostRequest("127.0.0.1", int(url.rpartition(":")[2]), token)
    with trio.fail_after(30):
        return await ask(HEALTH_PATH, {"only": "turns"})


async def test_turns_are_counted_and_those_that_wait_for_a_person_too() -> None:
    thinks, asks_health = trio.Event(), 0

    class Agent:
        async def on_message(self, session: Any, message: str) -> str:
            if message == "ask":
                await session.confirm("rm", {})
            thinks.set()
            await trio.sleep_forever()
            return ""

        async def check_health(self) -> bool:
            nonlocal asks_health
            asks_health += 1
            return True

    async with hosted(Agent(), token=TOKEN) as url, bare_client(url) as one, bare_client(url) as other:
        assert (await turns_of(url)).items() >= {"turns": 0, "asking": 0}.items()
        await other.open()  # and says nothing
        await one.say("user.message", content="ask")
        await one.until("agent.user_confirm")
        assert (await turns_of(url)).items() >= {"turns": 1, "asking": 1}.items()
        await other.say("user.message", content="think")
        await thinks.wait()
        assert (await turns_of(url)).items() >= {"turns": 2, "asking": 1}.items()
        assert await turns_of(url, token="another") is None
    assert asks_health == 0


async def test_an_agent_that_has_the_websocket_to_itself_cannot_tell() -> None:
    class Raw:
        async def serve(self, websocket: Any) -> None:
            await websocket.get_message()

    async with hosted(Raw(), token=TOKEN) as url:
        assert (await turns_of(url))["turns"] is None
