"""Sessions outlive connections, belong to somebody, and are bounded."""

import pytest
import trio
import trio.testing

from agentmgr.agent import thinking
from agentmgr.agent.incoming import BadInput
from agentmgr.agent.limits import SessionLimits
from agentmgr.agent.message import Client
from agentmgr.models import OnDisconnect
from agentmgr.protocol import TURN_ENDS
from agentmgr.testing.agents import bare_client, hosted


async def echo(message):
    return str(message)


class Numbers:
    """Streams as many numbers as it is asked for, the second half after `go_on`."""

    def __init__(self):
        self.go_on, self.halfway, self.stopped = trio.Event(), trio.Event(), trio.Event()

    async def on_message(self, session, message):
        count = int(message)
        try:
            for number in range(count):
                if number == count // 2:
                    self.halfway.set()
                    await self.go_on.wait()
                yield f"{number} "
        finally:
            self.stopped.set()


async def settle():
    await trio.testing.wait_all_tasks_blocked(0.05)


async def gone(url):
    """Waits until the host knows that nobody is connected."""
    with trio.fail_after(60):
        while any(session.connected for session in url.sessions._sessions.values()):
            await settle()


def numbers(events):
    return [e["content"] for e in events if e["event"] == "agent.partial_answer"]


async def test_a_client_that_comes_back_gets_what_it_missed_in_order_and_then_the_rest():
    agent = Numbers()
    async with hosted(agent) as url:
        async with bare_client(url) as client:
            await client.say("user.message", content="10")
            await client.until("agent.partial_answer")
            seen = client.events[-1]["seq"]
            await agent.halfway.wait()
        await gone(url)
        async with bare_client(url) as again:
            await again.say("user.reconnect", session_id=client.session_id, last_seq=seen)
            notice = (await again.until("system.notice"))["content"]
            assert notice == {
                "code": "resumed", "message": "the session goes on",
                "replay_from": seen + 1, "last_seq": 6, "busy": True,
            }  # fmt: skip
            agent.go_on.set()
            end = await again.until(*TURN_ENDS)
    assert end["content"] == "0 1 2 3 4 5 6 7 8 9 "
    assert numbers(client.events + again.events) == [f"{n} " for n in range(10)]
    assert [e["seq"] for e in again.events if "seq" in e] == list(range(seen + 1, 13))
    assert all(e["connection_id"] == again.events[0]["connection_id"] for e in again.events)


async def test_a_gap_is_named_before_the_replay():
    limits = SessionLimits(buffer_events=4)
    async with hosted(echo, limits=limits) as url:
        async with bare_client(url) as client:
            for number in range(10):
                await client.ask(str(number))
        async with bare_client(url) as again:
            await again.say("user.reconnect", content={"session_id": client.session_id, "last_seq": 2})
            notice = (await again.until("system.notice"))["content"]
            assert (notice["code"], notice["missing_from"], notice["missing_to"]) == ("gap", 3, 7)
            assert [(await again.receive())["seq"] for _ in range(4)] == [8, 9, 10, 11]


async def test_a_reconnect_with_state_gets_the_state_first():
    async with hosted(echo) as url:
        async with bare_client(url) as client:
            await client.ask("hi")
        async with bare_client(url) as again:
            await again.say("user.reconnect_with_state", session_id=client.session_id, last_seq=2)
            restored = (await again.until("agent.state_restored"))["content"]
            assert [turn["content"] for turn in restored["history"]] == ["hi", "hi"]


async def test_acknowledged_events_are_not_replayed():
    async with hosted(echo) as url:
        async with bare_client(url) as client:
            await client.ask("hi")
            await client.say("user.ack", seq=2)
            await client.say("ping")
            await client.until("pong")
        async with bare_client(url) as again:
            await again.say("user.reconnect", session_id=client.session_id)
            assert (await again.until("system.notice"))["content"]["code"] == "gap"


async def test_a_question_asked_before_a_cut_is_answered_after_it_once():
    asked = []

    async def agent(message, session):
        asked.append(bool(await session.confirm("rm")))
        return asked

    async with hosted(agent) as url:
        async with bare_client(url) as client:
            await client.say("user.message", content="go")
            question = await client.until("agent.user_confirm")
        await gone(url)
        async with bare_client(url) as again:
            await again.say("user.reconnect", session_id=client.session_id, last_seq=question["seq"])
            for _ in range(2):
                await again.say("user.response", step_id=question["step_id"], content={"confirmed": True})
            refusal = await again.until("system.error")
            assert refusal["content"]["code"] == "unknown_step"
            if not asked:
                await again.until(*TURN_ENDS)
    assert asked == [True]


async def test_a_second_connection_takes_a_session_over_if_it_says_so():
    async with hosted(echo) as url, bare_client(url) as first, bare_client(url) as second:
        await first.open()
        await second.say("user.reconnect", session_id=first.session_id, last_seq=1, exclusive=True)
        assert (await first.until("system.notice"))["content"]["code"] == "taken_over"
        assert (await second.ask("hi"))["content"] == "hi"
        assert (await first.ask("mine"))["session_id"] != second.events[-1]["session_id"]


async def test_one_connection_may_serve_several_sessions():
    async with hosted(echo) as url, bare_client(url) as client:
        one, two = await client.open(), await client.open()
        assert (await client.ask("a", session_id=one))["session_id"] == one
        assert (await client.ask("b", session_id=two))["session_id"] == two
        assert (await client.ask("c"))["session_id"] == two


@pytest.mark.parametrize("thief", [None, "eve"])
async def test_nobody_else_can_take_up_a_session(thief):
    def as_user(name):
        return {"X-Agentmgr-Identity": name} if name else {}

    async with hosted(echo) as url:
        async with bare_client(url, as_user("alice")) as alice, bare_client(url, as_user(thief)) as eve:
            await alice.open()
            await eve.open()
            for event in ("user.reconnect", "user.message", "user.cancel", "user.request_state", "user.ack"):
                await eve.say(event, session_id=alice.session_id, content="x", seq=1)
                assert (await eve.until("system.error"))["content"]["code"] == "session_not_found"
        async with bare_client(url, as_user("alice")) as again:
            await again.say("user.reconnect", session_id=alice.session_id)
            assert (await again.until("system.notice"))["content"]["code"] == "resumed"


async def test_the_author_sees_who_is_there():
    async def agent(message, session):
        return [session.client.identity, session.client.address, session.client.headers["x-colour"]]

    headers = {"X-Agentmgr-Identity": "alice", "X-Colour": "red", "X-Forwarded-For": "203.0.113.9"}
    async with hosted(agent) as url, bare_client(url, headers) as client:
        assert (await client.ask("who?"))["content"] == ["alice", "203.0.113.9", "red"]


async def test_a_turn_goes_on_when_its_client_is_gone():
    agent = Numbers()
    async with hosted(agent) as url:
        async with bare_client(url) as client:
            await client.open()
            await client.say("user.message", content="4")
            await agent.halfway.wait()
        await gone(url)
        agent.go_on.set()
        with trio.fail_after(60):
            await agent.stopped.wait()
        async with bare_client(url) as again:
            await again.say("user.reconnect", session_id=client.session_id)
            assert (await again.until(*TURN_ENDS))["content"] == "0 1 2 3 "


async def test_a_service_may_stop_the_turn_of_a_client_that_is_gone():
    agent = Numbers()
    async with hosted(agent, limits=SessionLimits(on_disconnect=OnDisconnect.CANCEL)) as url:
        async with bare_client(url) as client:
            await client.open()
            await client.say("user.message", content="4")
            await agent.halfway.wait()
        with trio.fail_after(60):
            await agent.stopped.wait()
        async with bare_client(url) as again:
            await again.say("user.reconnect", session_id=client.session_id)
            assert (await again.until(*TURN_ENDS))["event"] == "agent.interrupted"
            agent.go_on.set()
            assert (await again.ask("2"))["content"] == "0 1 "


async def test_a_client_that_is_back_within_the_grace_finds_its_turn_running():
    agent = Numbers()
    limits = SessionLimits(on_disconnect=OnDisconnect.CANCEL, disconnect_grace=60)
    async with hosted(agent, limits=limits) as url:
        async with bare_client(url) as client:
            await client.open()
            await client.say("user.message", content="4")
            await agent.halfway.wait()
        await gone(url)
        [session] = url.sessions._sessions.values()
        assert session._turns[0].scope.deadline < trio.current_time() + 60
        async with bare_client(url) as again:
            await again.say("user.reconnect", session_id=client.session_id)
            await again.until("system.notice")
            assert session._turns[0].scope.deadline == float("inf")
            agent.go_on.set()
            assert (await again.until(*TURN_ENDS))["event"] == "agent.final_answer"


async def test_a_session_nobody_comes_back_to_ends_and_its_author_is_told():
    ended = trio.Event()

    class Agent:
        async def on_message(self, session, message):
            return message

        async def on_session_end(self, session):
            ended.set()

    async with hosted(Agent(), limits=SessionLimits(session_timeout=0.05)) as url:
        async with bare_client(url) as client:
            await client.open()
            await trio.sleep(0.15)  # longer than the timeout: being connected keeps it
            await client.ask("hi")
        with trio.fail_after(60):
            await ended.wait()
        async with bare_client(url) as again:
            await again.say("user.reconnect", session_id=client.session_id)
            assert (await again.until("system.error"))["content"]["code"] == "session_not_found"
        assert len(url.sessions) == 0


async def test_a_host_serves_so_many_sessions_and_no_more():
    async with hosted(echo, max_sessions=2) as url, bare_client(url) as one, bare_client(url) as two:
        await one.open()
        await two.open()
        async with bare_client(url) as three:
            await three.say("user.create_session")
            assert (await three.until("system.error"))["content"]["code"] == "max_sessions"
            assert (await one.ask("hi"))["content"] == "hi"


async def test_a_session_whose_client_left_makes_room_and_a_running_turn_does_not():
    agent = Numbers()
    async with hosted(agent, max_sessions=2) as url:
        async with bare_client(url) as busy, bare_client(url) as idle:
            await busy.say("user.message", content="4")
            await agent.halfway.wait()
            await busy.until("agent.partial_answer")
            await idle.open()
        await gone(url)
        async with bare_client(url) as three, bare_client(url) as four:
            await three.open()
            await four.say("user.create_session")
            assert (await four.until("system.error"))["content"]["code"] == "max_sessions"
            await four.say("user.reconnect", session_id=idle.session_id)
            assert (await four.until("system.error"))["content"]["code"] == "session_not_found"
            agent.go_on.set()
            await four.say("user.reconnect", session_id=busy.session_id)
            assert (await four.until(*TURN_ENDS))["content"] == "0 1 2 3 "


async def test_one_connection_cannot_have_every_session():
    async with hosted(echo) as url, bare_client(url) as client:
        for _ in range(64):
            await client.open()
        await client.say("user.create_session")
        assert (await client.until("system.error"))["content"]["code"] == "max_sessions"


async def test_a_session_that_its_author_cannot_start_ends_with_the_reason():
    class Agent:
        async def on_session_start(self, session):
            raise RuntimeError("no model")

        async def on_message(self, session, message):
            return message

    async with hosted(Agent()) as url, bare_client(url) as client:
        await client.say("user.create_session")
        assert (await client.until("agent.error"))["content"]["type"] == "RuntimeError"
        assert (await client.until("agent.session_end"))["content"]["reason"] == "failed"
        await settle()
        assert len(url.sessions) == 0


async def test_a_client_that_does_not_read_makes_the_turn_wait_and_loses_nothing():
    sent = []

    async def agent(message):
        for number in range(3000):
            sent.append(number)
            yield f"{number:05d}" * 200  # 3 MB in all: more than the sockets and the buffer hold

    limits = SessionLimits(buffer_events=100)
    async with hosted(agent, limits=limits) as url, bare_client(url) as client:
        await client.say("user.message", content="go")
        await trio.testing.wait_all_tasks_blocked(0.2)
        assert len(sent) < 3000
        [session] = url.sessions._sessions.values()
        assert session.buffer.last_seq - session.buffer.first_seq < 100
        await client.until(*TURN_ENDS)
        assert [e["seq"] for e in client.events if "seq" in e] == list(range(1, 3003))


async def test_a_question_counts_one_answer_though_two_come_at_once():
    async def agent(message, session):
        return bool(await session.confirm("rm"))

    async with hosted(agent) as url, bare_client(url) as client:
        await client.say("user.message", content="go")
        question = await client.until("agent.user_confirm")
        [session] = url.sessions._sessions.values()
        session.answer(question["step_id"], {"confirmed": True})
        with pytest.raises(BadInput, match="has been answered"):
            session.answer(question["step_id"], {"confirmed": False})
        assert (await client.until(*TURN_ENDS))["content"] is True


async def test_a_client_that_takes_in_nothing_is_cut_off_and_may_come_back(monkeypatch):
    monkeypatch.setattr("agentmgr.agent.client_link.WRITE_STALL_S", 0.1)

    async def agent(message):
        for _ in range(600):
            yield thinking("x" * 50_000)  # 30 MB: more than the sockets hold
        yield "done"

    limits = SessionLimits(buffer_events=50, buffer_bytes=2**24)
    async with hosted(agent, limits=limits) as url, bare_client(url) as client:
        await client.open()
        await client.say("user.message", content="go")
        await gone(url)  # it reads nothing, for longer than the host has patience
        async with bare_client(url) as again:
            await again.say("user.reconnect", session_id=client.session_id, last_seq=1)
            assert (await again.until("system.notice"))["content"]["code"] == "gap"
            assert (await again.until(*TURN_ENDS))["event"] == "agent.final_answer"


async def lost_because(url, session_id, **headers):
    async with bare_client(url, headers) as client:
        await client.say("user.reconnect", session_id=session_id)
        content = (await client.until("system.error"))["content"]
        assert content["code"] == "session_not_found"
        return content["reason"]


async def test_a_client_learns_why_its_session_is_gone_and_nobody_else_does():
    alice = {"X-Agentmgr-Identity": "alice"}
    async with hosted(echo, limits=SessionLimits(session_timeout=0.05)) as url:
        async with bare_client(url, alice) as client:
            expired = await client.open()
        with trio.fail_after(60):
            while len(url.sessions):  # noqa: ASYNC110
                await trio.sleep(0.01)
        async with bare_client(url, alice) as client:
            ended = await client.open()
            (await url.sessions.find(ended, Client(None, "alice", {}))).end("the agent has said all")
            await client.until("agent.session_end")
        assert await lost_because(url, expired, **alice) == "expired"
        assert await lost_because(url, ended, **alice) == "ended"
        assert await lost_because(url, ended) == "unknown"
        assert await lost_because(url, "ses_nobody") == "unknown"
        last = ended
    async with hosted(echo) as url:  # as the same instance restarted, or another one
        assert await lost_because(url, last, **alice) == "instance_lost"
        assert await lost_because(url, f"{last}.ins_0123456789abcdef") == "instance_lost"
        assert await lost_because(url, "ses_nobody.ins_0123456789abcdef") == "unknown"


async def test_ends_are_remembered_within_bounds(monkeypatch):
    monkeypatch.setattr("agentmgr.agent.session_ids.MAX_REMEMBERED_ENDS", 2)
    async with hosted(echo) as url:
        ids = []
        async with bare_client(url) as client:
            for _ in range(3):
                ids.append(await client.open())
                url.sessions.end_all("enough")
                await client.until("agent.session_end")
                await trio.testing.wait_all_tasks_blocked()
        assert [await lost_because(url, each) for each in ids] == ["unknown", "ended", "ended"]


async def test_a_session_that_is_ending_takes_no_message():
    hook, go_on = trio.Event(), trio.Event()

    class Agent:
        async def on_message(self, session, message):
            return message

        async def on_session_end(self, session):
            hook.set()
            await go_on.wait()

    async with hosted(Agent()) as url, bare_client(url) as client:
        session_id = await client.open()
        url.sessions.end_all("enough")
        await hook.wait()
        assert await lost_because(url, session_id) == "ended"
        go_on.set()


async def test_what_waits_and_what_is_remembered_is_bounded_by_bytes():
    go = trio.Event()

    async def agent(message, session):
        if message == "wait":
            await go.wait()
        session.state["odd"] = float("inf")
        return "ok"

    async with hosted(agent) as url, bare_client(url) as client:
        await client.say("user.message", content="wait")
        for _ in range(3):
            await client.say("user.message", content="x" * 500_000)
        assert (await client.until("system.error"))["content"]["code"] == "queue_full"
        go.set()
        for _ in range(3):
            await client.until("agent.final_answer")
        for _ in range(3):
            await client.ask("y" * 900_000)
        await client.say("user.request_state")
        shown = (await client.until("agent.state_exported"))["content"]
        assert [len(entry["content"]) for entry in shown["history"]] == [2, 900_000, 2]
        assert shown["truncated"] == 9
        assert shown["state"] == {"odd": "Infinity"}
