"""Bad input over the wire: named, answered, survived; nobody else notices."""

import gc
import json

import pytest
import trio
import trio.testing
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agentmgr.agent.client_link import ClientLink
from agentmgr.agent.limits import MAX_CONTROL_BYTES
from agentmgr.testing.agents import bare_client, hosted
from tests.conditions import until


async def echo(message):
    return message


@pytest.mark.parametrize(
    ("frame", "code"),
    [
        (b"\xff\xfe", "not_utf8"),
        ('{"event": "user.message", "content": "' + "x" * 5000 + '"}', "too_large"),
        ('{"event":', "invalid_json"),
        ('{"event": "user.message", "content": ' + "[" * 90 + "]" * 90 + "}", "too_deep"),
        ('{"event": "ping", "content": 1e999}', "invalid_json"),
        ('{"event": "user.message", "content": {"text": [-1e999]}}', "invalid_json"),
        ('{"event": "ping", "content": NaN}', "invalid_json"),
        ('{"event": "ping", "content": ' + "9" * 900 * 5 + "}", "invalid_json"),
        ("[1, 2]", "invalid_event"),
        ('{"event": ["user.message"]}', "invalid_event"),
        ('{"event": "user.nonsense", "step_id": "s"}', "unknown_event"),
        ('{"event": "user.message", "session_id": 7}', "invalid_field"),
        ('{"event": "user.message", "step_id": "' + "x" * 257 + '"}', "invalid_field"),
        ('{"event": "user.message", "session_id": "ses_nobody"}', "session_not_found"),
        ('{"event": "user.reconnect", "session_id": "ses_nobody"}', "session_not_found"),
        ('{"event": "user.reconnect"}', "invalid_field"),
        ('{"event": "user.cancel"}', "session_not_found"),
        ('{"event": "user.request_state"}', "session_not_found"),
        ('{"event": "user.ack", "seq": 1}', "session_not_found"),
        ('{"event": "user.response", "step_id": "s", "content": {"confirmed": true}}', "session_not_found"),
    ],
)
async def test_bad_input_is_answered_with_its_code_and_the_connection_goes_on(frame, code):
    async with hosted(echo, max_message_bytes=5000) as url, bare_client(url) as client:
        await client.say("ping")
        await client.until("pong")
        await client.websocket.send_message(frame)
        assert (await client.until("system.error"))["content"]["code"] == code
        assert (await client.ask("still here"))["content"] == "still here"


@pytest.mark.parametrize("frame", ['{"event":', b"\xff"])
async def test_a_bad_first_frame_leaves_the_client_its_choice(frame):
    async with hosted(echo) as url, bare_client(url) as client:
        await client.websocket.send_message(frame)
        await client.until("system.error")
        assert (await client.ask("hi"))["content"] == "hi"


async def test_unknown_events_that_are_not_the_users_are_ignored():
    async with hosted(echo) as url, bare_client(url) as client:
        await client.say("agent.final_answer", content="I am the agent")
        await client.say("whatever")
        await client.say("ping", content="p")
        assert (await client.until("pong", "system.error"))["content"] == "p"


@pytest.mark.parametrize("answer", ["yes", None, [], {}, {"confirmed": "yes"}, {"approved": 1}])
async def test_a_response_needs_a_clear_answer(answer):
    async with hosted(echo) as url, bare_client(url) as client:
        await client.open()
        await client.say("user.response", step_id="s", content=answer)
        assert (await client.until("system.error"))["content"]["code"] == "invalid_field"


async def test_a_flood_of_bad_input_from_a_client_that_never_reads_costs_nothing():
    async with hosted(echo) as url, bare_client(url) as flood, bare_client(url) as other:
        await other.open()
        await flood.say("ping")
        await flood.until("pong")
        bad = json.dumps({"event": "ping", "content": "x" * 20_000})
        links = [found for found in gc.get_objects() if isinstance(found, ClientLink)]

        async def talk() -> None:
            while True:
                await flood.websocket.send_message(bad)

        def waiting() -> int:
            return max(link._answers.size_bytes for link in links)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(talk)
            await until(lambda: waiting() >= MAX_CONTROL_BYTES)
            assert (await other.ask("hi"))["content"] == "hi"
            await trio.testing.wait_all_tasks_blocked(0.1)  # it is not read from any more
            nursery.cancel_scope.cancel()
        assert len(url.sessions) == 1
        assert waiting() < MAX_CONTROL_BYTES + 2 * len(bad)


WORDS = st.sampled_from([
    "user.create_session", "user.message", "user.response", "user.cancel", "user.ack", "user.reconnect",
    "user.reconnect_with_state", "user.request_state", "ping", "user.nonsense", "agent.partial_answer",
])  # fmt: skip
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
EVENTS = st.fixed_dictionaries(
    {"event": WORDS | JSON},
    optional={
        "session_id": JSON | st.just("MINE"),
        "step_id": JSON,
        "content": JSON | st.fixed_dictionaries({}, optional={"confirmed": JSON, "last_seq": JSON}),
        "metadata": JSON,
        "seq": JSON,
        "last_seq": JSON,
        "last_event_id": JSON,
    },
)
FRAMES = st.one_of(EVENTS, st.text(max_size=30), st.binary(max_size=30))


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(FRAMES, max_size=12))
def test_no_input_ends_the_host_leaks_a_session_or_blocks_another(frames):
    async def main():
        async with hosted(echo) as url, bare_client(url) as other:
            await other.open()
            async with bare_client(url) as client:
                await client.say("user.create_session")
                mine = (await client.until("agent.session_created"))["session_id"]
                for frame in frames:
                    if isinstance(frame, dict):
                        if frame.get("session_id") == "MINE":
                            frame["session_id"] = mine
                        frame = json.dumps(frame)
                    await client.websocket.send_message(frame)
                await client.say("ping", content="last")
                while (await client.until("pong"))["content"] != "last":
                    pass
                assert not client.websocket.closed
                opened = {e["session_id"] for e in client.events if e["event"] == "agent.session_created"}
            assert (await other.ask("hi"))["content"] == "hi"
            assert len(url.sessions) <= len(opened) + 1
            url.sessions.end_all("test")
            await trio.testing.wait_all_tasks_blocked()
            assert len(url.sessions) == 0

    trio.run(main)
