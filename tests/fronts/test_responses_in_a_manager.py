"""Responses of durable sessions: they outlive instances that are killed, gateways, and the manager."""

from __future__ import annotations

from functools import partial
from typing import Any

import trio
from openai import OpenAI

from agentmgr import AgentManager
from agentmgr.models import ServiceConfig
from agentmgr.models.host_config import OnCrash
from tests.fronts.test_in_a_manager import AGENT, kill


class Caller:
    def __init__(self, port: int) -> None:
        self._client = OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="x", max_retries=5, timeout=60)

    def __enter__(self) -> Caller:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    async def create(self, text: Any, **more: Any) -> Any:
        create = partial(self._client.responses.create, model="agent", input=text, **more)
        return await trio.to_thread.run_sync(create)

    async def retrieve(self, known: str) -> Any:
        return await trio.to_thread.run_sync(self._client.responses.retrieve, known)

    async def begin(self, text: str) -> list[Any]:
        """The first ten events of a response in the background, whose stream is cut behind them."""

        def cut() -> list[Any]:
            with self._client.responses.create(
                model="agent", input=text, background=True, stream=True
            ) as events:
                return [next(events) for _ in range(10)]

        return await trio.to_thread.run_sync(cut)

    async def rest(self, known: str, after: int) -> list[Any]:
        def read() -> list[Any]:
            return list(self._client.responses.retrieve(known, stream=True, starting_after=after))

        return await trio.to_thread.run_sync(read)


async def test_a_response_outlives_its_instance_its_gateway_and_its_manager(tmp_path):
    (tmp_path / "agent.py").write_text(AGENT)
    async with AgentManager(tmp_path / "manager.db") as manager, trio.open_nursery() as nursery:
        config = ServiceConfig(on_crash=OnCrash.RETRY)
        await manager.register_service("agent", str(tmp_path / "agent.py"), config=config, auto_start=True)
        port = await nursery.start(manager.serve_proxy, "127.0.0.1", 0)
        other_port = await nursery.start(manager.serve_proxy, "127.0.0.1", 0)
        with Caller(port) as ours, Caller(other_port) as other:
            # Killed amid a response whose client has gone, the turn runs again.
            seen = await ours.begin("long")
            kill(manager)
            known = seen[0].response.id
            events = seen + await ours.rest(known, seen[-1].sequence_number)
            assert [event.sequence_number for event in events] == list(range(len(events)))
            assert events[-1].response.output_text == "." * 30 + "1 of 0"
            assert await ours.rest(known, 3) == events[4:]

            # A question waits while its instance is killed, and its turn asks again.
            asking = await ours.create("delete", previous_response_id=known)
            request = asking.output[-1]
            assert request.type == "mcp_approval_request"
            yes = {"type": "mcp_approval_response", "approval_request_id": request.id, "approve": True}
            kill(manager)
            again = await ours.create([yes])
            assert again.output[-1].type == "mcp_approval_request"
            yes["approval_request_id"] = again.output[-1].id
            assert (await ours.create([yes])).output_text == "gone"

            # Another gateway knows it too, while it runs and after it.
            seen = await ours.begin("long")
            events = seen + await other.rest(seen[0].response.id, seen[-1].sequence_number)
            assert [event.sequence_number for event in events] == list(range(len(events)))
            last = await ours.create("hi", previous_response_id=known)
        nursery.cancel_scope.cancel()

    async with AgentManager(tmp_path / "manager.db") as manager, trio.open_nursery() as nursery:
        await manager.start_service("agent")
        with Caller(await nursery.start(manager.serve_proxy, "127.0.0.1", 0)) as ours:
            assert (await ours.retrieve(last.id)).output_text == last.output_text
            goes_on = await ours.create("hi", previous_response_id=last.id)
            assert goes_on.output_text.startswith(".....")
        nursery.cancel_scope.cancel()
