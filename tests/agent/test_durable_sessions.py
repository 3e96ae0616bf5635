"""Durable sessions: what the journal has, a client gets from whichever host holds the session by then.

The journal is the real one, in a temporary directory; a host that ends here stands for a process that does.
"""

import json
import sqlite3
from contextlib import AsyncExitStack, asynccontextmanager, closing

import pytest
import trio
import trio.testing

from agentmgr.agent.events import usage
from agentmgr.agent.health import report
from agentmgr.agent.limits import MAX_HISTORY, SessionLimits
from agentmgr.agent.session_ids import SessionIds
from agentmgr.client.transport import CannotConnect, with_connection
from agentmgr.core.gateway_headers import CONNECTION_HEADER, RESUME_HEADER
from agentmgr.journal import sqlite_archive
from agentmgr.journal.holders import revoke
from agentmgr.journal.journal import SessionRecord
from agentmgr.journal.sqlite import open_journal
from agentmgr.models.host_config import OnCrash
from agentmgr.protocol import TURN_ENDS
from agentmgr.testing.agents import bare_client, hosted
from tests.conditions import until


async def echo(message):
    return str(message)


async def remembering(message, session):
    session.state["count"] = session.state.get("count", 0) + 1
    return [session.state["count"], len(session.history), session.restored, message.attempt]


@asynccontextmanager
async def durable(agent, path, instance="ins_0000000000000001", **options):
    async with open_journal(path, instance, lock_patience_s=0.3, retry_s=0.02) as journal:
        async with hosted(agent, journal=journal, instance_id=instance, **options) as url:
            yield url
            url.sessions.leave_all()  # as a process that ends in good order
            await url.sessions.all_left()


@asynccontextmanager
async def killed(agent, path, instance="ins_0000000000000001", **options):
    """A host that dies in the middle of things: nothing of it is written after that."""
    async with (
        open_journal(path, instance) as journal,
        hosted(agent, journal=journal, instance_id=instance, **options) as url,
    ):
        yield url
        for session in url.sessions._sessions.values():
            session._keeping._closed = True
        await trio.testing.wait_all_tasks_blocked(0.01)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "sessions" / "svc.db"


def seqs(*clients):
    return [event["seq"] for client in clients for event in client.events if "seq" in event]


async def resume(client, session_id, last_seq=0, **fields):
    await client.say("user.reconnect", session_id=session_id, last_seq=last_seq, **fields)
    return (await client.until("system.notice", "system.error"))["content"]


async def test_a_session_goes_on_in_the_next_process_with_its_state_and_history(path):
    async with durable(remembering, path) as url, bare_client(url) as client:
        for count in (1, 2):
            assert (await client.ask("x"))["content"] == [count, 2 * count - 2, False, 1]
        last = client.events[-1]["seq"]
    async with durable(remembering, path) as url, bare_client(url) as again:
        notice = await resume(again, client.session_id, last)
        assert notice == {"code": "resumed", "message": "the session goes on", "busy": False,
                          "replay_from": last + 1, "last_seq": last}  # fmt: skip
        assert (await again.ask("x"))["content"] == [3, 4, True, 1]
        await again.say("user.request_state")
        state = (await again.until("agent.state_exported"))["content"]
        assert [entry["role"] for entry in state["history"]] == ["user", "assistant"] * 3
    assert seqs(client, again) == list(range(1, 5))


async def test_what_a_client_missed_is_read_from_the_journal_byte_for_byte(path):
    async def agent(message):
        for number in range(int(message)):
            yield f"{number} "

    limits = SessionLimits(buffer_events=10)
    async with durable(agent, path, limits=limits) as url, bare_client(url) as client:
        await client.ask("500")
        async with bare_client(url) as other:
            notice = await resume(other, client.session_id)
            assert (notice["code"], notice["replay_from"]) == ("resumed", 1)
            await other.until(*TURN_ENDS)
    async with durable(agent, path, limits=limits) as url, bare_client(url) as again:
        await resume(again, client.session_id)
        await again.until(*TURN_ENDS)

    def said(client):
        return [{**event, "connection_id": None} for event in client.events if "seq" in event]

    assert said(client) == said(other) == said(again)
    assert len(said(client)) == 502


async def test_an_event_is_sent_only_after_it_is_committed(path, monkeypatch):
    import agentmgr.journal.writing as writing

    real, may_write = writing.write, trio.Event()
    token = trio.lowlevel.current_trio_token()

    def slow(*args):
        trio.from_thread.run(may_write.wait, trio_token=token)
        return real(*args)

    monkeypatch.setattr(writing, "write", slow)
    async with durable(echo, path) as url, bare_client(url) as client:
        await client.say("user.message", content="hi")
        assert (await client.receive())["event"] == "system.connected"
        await until(lambda: len(url.sessions) == 1)
        [session] = url.sessions._sessions.values()
        await until(lambda: session.buffer.last_seq == 2 and not session.busy)
        assert session.buffer.visible == 0
        may_write.set()
        assert (await client.until(*TURN_ENDS))["content"] == "hi"


async def test_a_turn_whose_instance_died_is_reported_and_those_that_waited_are_answered(path):
    started = trio.Event()

    async def agent(message, session):
        if message == "long" and not session.restored:
            await session.emit("agent.partial_answer", "half ")
            started.set()
            await trio.sleep_forever()
        return [message, len(session.history), session.history[-1].get("incomplete")]

    async with killed(agent, path) as url, bare_client(url) as client:
        await client.say("user.message", content="long", step_id="one")
        await client.say("user.message", content="next", step_id="two")
        await started.wait()
        await client.until("agent.partial_answer")
        last = client.events[-1]["seq"]
    async with durable(agent, path) as url:
        await until(lambda: len(url.sessions) == 1)  # taken up before any client came
        async with bare_client(url) as again:
            await resume(again, client.session_id, last)
            end = await again.until(*TURN_ENDS)
            assert (end["event"], end["step_id"], end["content"]["code"]) == (
                "agent.error",
                "one",
                "instance_lost",
            )
            end = await again.until(*TURN_ENDS)
            assert (end["event"], end["step_id"]) == ("agent.final_answer", "two")
            assert end["content"] == ["next", 2, True]
            await again.say("user.message", content="next", step_id="two")
            assert (await again.until("system.error"))["content"]["code"] == "duplicate"
    assert seqs(client, again) == list(range(1, len(seqs(client, again)) + 1))


async def test_a_turn_may_be_tried_again_so_often_and_no_more(path):
    limits = SessionLimits(on_crash=OnCrash.RETRY, max_turn_attempts=2)
    attempts, started = [], trio.Event()

    async def agent(message, session):
        attempts.append(message.attempt)
        await session.emit("agent.partial_answer", f"attempt {message.attempt} ")
        started.set()
        await trio.sleep_forever()

    last, clients = 0, []
    for attempt in (1, 2):
        started = trio.Event()
        async with killed(agent, path, limits=limits) as url, bare_client(url) as client:
            clients.append(client)
            if attempt == 1:
                await client.say("user.message", content="go")
            else:
                await resume(client, clients[0].session_id, last)
                notice = await client.until("system.notice")
                assert (notice["content"]["code"], notice["seq"]) == ("turn_restarted", last + 1)
            await started.wait()
            last = (await client.until("agent.partial_answer"))["seq"]
    async with durable(agent, path, limits=limits) as url, bare_client(url) as client:
        clients.append(client)
        await resume(client, clients[0].session_id, last)
        assert (await client.until(*TURN_ENDS))["content"]["code"] == "instance_lost"
        await client.say("user.request_state")
        history = (await client.until("agent.state_exported"))["content"]["history"]
        assert history[1] == {"role": "assistant", "content": "attempt 2 ", "incomplete": True}
    assert attempts == [1, 2]
    assert seqs(*clients) == list(range(1, 6))


async def test_a_planned_stop_interrupts_a_turn_and_says_why(path):
    started = trio.Event()

    async def agent(message, session):
        if not session.restored:
            started.set()
            await trio.sleep_forever()
        return "done"

    async with durable(agent, path) as url, bare_client(url) as client:
        await client.say("user.message", content="go")
        await started.wait()
        url.server.go_away()
        end = await client.until(*TURN_ENDS)
        assert (end["event"], end["content"]["code"]) == ("agent.interrupted", "service_stopped")
        with pytest.raises(trio.EndOfChannel):
            await client.receive()  # no `agent.session_end`
        assert client.websocket.closed.code == 1012
    async with durable(agent, path) as url, bare_client(url) as again:
        await resume(again, client.session_id, end["seq"])
        assert (await again.ask("go"))["content"] == "done"


async def test_a_planned_stop_leaves_a_turn_to_be_tried_again(path):
    limits, started = SessionLimits(on_crash=OnCrash.RETRY), trio.Event()

    async def agent(message, session):
        if message.attempt == 1:
            started.set()
            await trio.sleep_forever()
        return "done"

    async with durable(agent, path, limits=limits) as url, bare_client(url) as client:
        await client.say("user.message", content="go")
        await client.until("agent.session_created")
        await started.wait()
    async with durable(agent, path, limits=limits) as url, bare_client(url) as again:
        await resume(again, client.session_id)
        assert (await again.until(*TURN_ENDS))["content"] == "done"


async def test_a_session_that_is_not_used_leaves_memory_and_comes_back(path):
    ends = []

    class Agent:
        async def on_message(self, session, message):
            return [session.restored, len(session.history)]

        async def on_session_end(self, session):
            ends.append(session.id)

    async with durable(Agent(), path, limits=SessionLimits(session_idle=0.02)) as url:
        async with bare_client(url) as client:
            assert (await client.ask("hi"))["content"] == [False, 0]
        await until(lambda: not len(url.sessions))
        assert ends == [client.session_id]
        async with bare_client(url) as again:
            assert (await again.ask("hi", session_id=client.session_id))["content"] == [True, 2]


async def test_one_instance_holds_a_session_and_the_other_names_it(path):
    one, two = "ins_0000000000000001", "ins_0000000000000002"
    async with durable(echo, path, one) as first, durable(echo, path, two) as second:
        async with bare_client(first) as client, bare_client(second) as elsewhere:
            await client.ask("hi")
            error = await resume(elsewhere, client.session_id)
            assert (error["code"], error["instance"]) == ("session_elsewhere", one)
            await first.sessions._sessions[client.session_id].gone.wait() if False else None
            for session in first.sessions._sessions.values():
                session.leave()
            await first.sessions.all_left()
            assert (await resume(elsewhere, client.session_id, 2))["code"] == "resumed"
            assert (await elsewhere.ask("again"))["content"] == "again"


async def test_a_handshake_that_names_a_session_of_another_instance_is_refused(path):
    one, two = "ins_0000000000000001", "ins_0000000000000002"
    async with durable(echo, path, one) as first, durable(echo, path, two) as second:
        async with bare_client(first) as client:
            await client.open()
            host, port = second.removeprefix("ws://").split(":")
            stream = await trio.open_tcp_stream(host, int(port))
            await stream.send_all(
                f"GET /?session_id={client.session_id} HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\n"
                "Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
                "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n".encode()
            )
            answer = b""
            async with stream:
                while data := await stream.receive_some():
                    answer += data
            assert answer.startswith(b"HTTP/1.1 421 ")
            body = json.loads(answer.partition(b"\r\n\r\n")[2])
            assert (body["code"], body["instance"]) == ("session_elsewhere", one)


async def test_a_host_that_drains_leaves_what_it_has_not_in_memory_to_others(path):
    async with durable(echo, path) as url, bare_client(url) as client:
        await client.open()
    async with durable(echo, path) as url:
        url.server._drain.begin(1012)
        with pytest.raises(CannotConnect) as refused:
            await with_connection(f"{url}/?session_id={client.session_id}", [], trio.sleep)
        assert (refused.value.code, len(url.sessions)) == ("session_elsewhere", 0)
        async with bare_client(url) as again:
            assert (await resume(again, client.session_id))["code"] == "draining"
        assert len(url.sessions) == 0


async def test_a_drain_waits_for_a_session_that_is_just_being_taken_up(path, monkeypatch):
    """A turn may wait in it, which would begin as the host ends."""
    async with durable(echo, path) as url, bare_client(url) as client:
        await client.open()
    async with durable(echo, path) as url:
        asked, go_on = trio.Event(), trio.Event()
        real = url.sessions.journal.take_up

        async def take_up(*args):
            asked.set()
            await go_on.wait()
            return await real(*args)

        monkeypatch.setattr(url.sessions.journal, "take_up", take_up)
        drain = url.server._drain
        async with bare_client(url) as again:
            await again.say("user.reconnect", session_id=client.session_id)
            await asked.wait()
            drain.begin(1012)
        await until(lambda: not drain._connections)
        assert drain.left == 1
        go_on.set()
        await until(lambda: not drain.left)
        assert len(url.sessions) == 1


async def test_a_message_that_meets_a_session_on_its_way_out_begins_no_other_one(path):
    async with durable(echo, path) as url, bare_client(url) as client:
        await client.ask("hi")
        [session] = url.sessions._sessions.values()
        session.leave()
        await url.sessions.all_left()
        await client.say("user.message", content="and then?")
        assert (await client.until("system.error"))["content"]["code"] == "session_unreachable"
        await client.say("user.ack", seq=client.events[-2]["seq"])
        assert (await client.until("system.error"))["content"]["code"] == "session_unreachable"
        assert not len(url.sessions)


async def test_clients_converse_on_while_the_journal_cannot_be_written_and_its_host_says_so(path):
    """And once it can be, all of it is kept: nothing is sent twice."""
    async with durable(remembering, path) as url, bare_client(url) as client, bare_client(url) as other:
        await client.ask("before")
        with closing(sqlite3.connect(path, isolation_level=None)) as locked:
            locked.execute("BEGIN IMMEDIATE")
            assert (await client.ask("meanwhile"))["content"] == [2, 2, False, 1]
            assert (await other.ask("a new one"))["content"] == [1, 0, False, 1]
            health = await health_of(url)
            assert (health["status"], "in memory only" in health["detail"]) == ("degraded", True)
        journal = url.sessions.journal
        await until(lambda: journal.degraded is None)  # a journal does not announce it
        assert (await health_of(url))["status"] == "healthy"
        assert (await client.ask("after"))["content"] == [3, 4, False, 1]
    async with durable(remembering, path) as url:
        for before, turns in ((client, 3), (other, 1)):
            async with bare_client(url) as again:
                await resume(again, before.session_id)
                for _ in range(turns):
                    await again.until(*TURN_ENDS)
                assert seqs(again) == seqs(before) == list(range(1, turns + 2))
                assert (await again.ask("more"))["content"] == [turns + 1, 2 * turns, True, 1]


@pytest.mark.parametrize("degraded", [False, True])
async def test_a_connection_that_goes_on_without_the_journal_is_closed_where_its_host_drains(path, degraded):
    """Without a Close frame its gateway would have another host go on with it, from what was kept before."""
    headers = {CONNECTION_HEADER: "con_1", RESUME_HEADER: "con_1"}
    async with durable(echo, path) as url, bare_client(url, headers) as client:
        await client.ask("kept")
        with closing(sqlite3.connect(path, isolation_level=None)) as locked:
            if degraded:
                locked.execute("BEGIN IMMEDIATE")
            await client.ask("and more")
            assert (url.sessions.journal.degraded is not None) == degraded
            url.server._drain.begin(1012)
            with pytest.raises(trio.EndOfChannel):
                await client.receive()
        assert client.websocket.closed.code == (1012 if degraded else 1006)


async def health_of(url):
    agent = url.server._agent
    return json.loads(await report(agent, url.sessions, token="", target="/", quiet_s=0.0, stranger=False))


async def test_two_requests_for_one_session_take_it_up_once(path, monkeypatch):
    async with durable(echo, path) as url, bare_client(url) as client:
        await client.open()
    async with durable(echo, path) as url:
        taken = []
        real = url.sessions.journal.take_up

        async def take_up(session_id, may_own=None):
            taken.append(session_id)
            return await real(session_id, may_own)

        monkeypatch.setattr(url.sessions.journal, "take_up", take_up)
        async with bare_client(url) as one, bare_client(url) as two, trio.open_nursery() as nursery:
            for each in (one, two):
                nursery.start_soon(resume, each, client.session_id)
    assert taken == [client.session_id]
    assert [e["content"]["code"] for c in (one, two) for e in c.events if e["event"] == "system.notice"] == [
        "resumed", "resumed",
    ]  # fmt: skip


@pytest.mark.parametrize("thief", [None, "eve"])
async def test_the_session_of_another_identity_does_not_exist(path, thief):
    alice = {"X-Agentmgr-Identity": "alice"}
    async with durable(echo, path) as url, bare_client(url, alice) as client:
        await client.open()
    async with durable(echo, path) as url:
        eve_is = {"X-Agentmgr-Identity": thief} if thief else {}
        async with bare_client(url, eve_is) as eve:
            assert (await resume(eve, client.session_id))["reason"] == "unknown"
            assert len(url.sessions) == 0  # nor does it move to where another one asks for it
            async with bare_client(url, alice) as again:
                assert (await resume(again, client.session_id))["code"] == "resumed"
            async with durable(echo, path) as elsewhere, bare_client(elsewhere, eve_is) as there:
                assert (await resume(there, client.session_id))["code"] == "session_not_found"


async def test_a_client_may_end_its_session_and_then_it_is_not_taken_up(path):
    async with durable(echo, path) as url, bare_client(url) as client:
        await client.ask("hi")
        await client.say("user.end_session")
        assert (await client.until("agent.session_end"))["content"] == {"reason": "ended"}
    async with durable(echo, path) as url, bare_client(url) as again:
        error = await resume(again, client.session_id)
        assert (error["code"], error["reason"]) == ("session_not_found", "ended")


async def test_ending_a_session_ends_its_turn_first():
    begun = trio.Event()

    async def agent(message):
        begun.set()
        await trio.sleep_forever()

    async with hosted(agent) as url, bare_client(url) as client:
        await client.say("user.message", content="go")
        await begun.wait()
        await client.say("user.end_session")
        assert (await client.until(*TURN_ENDS))["event"] == "agent.interrupted"
        await client.until("agent.session_end")


async def test_a_history_that_its_author_changed_comes_back_as_it_was_left(path):
    async def agent(message, session):
        if message == "forget":
            del session.history[:-1]
            session.history[0]["content"] = "in short"
        return [entry["content"] for entry in session.history]

    async with durable(agent, path) as url, bare_client(url) as client:
        for text in ("one", "two", "forget", "three"):
            end = await client.ask(text)
        expected = end["content"]
        assert expected[0] == "in short"
    async with durable(agent, path) as url, bare_client(url) as again:
        seen = (await again.ask("four", session_id=client.session_id))["content"]
        assert seen == [*expected, "three", expected]


async def test_a_long_history_comes_back_whole_however_many_messages_wait(path):
    async def agent(message, session):
        if str(message) == "for ever":
            await trio.sleep_forever()
        return len(session.history)

    async with killed(agent, path) as url, bare_client(url) as client:
        for _ in range(MAX_HISTORY // 2):
            await client.ask("x")
        for _ in range(3):
            await client.say("user.message", content="for ever")
        await until(lambda: len(url.sessions._sessions[client.session_id]._turns.unfinished) == 3)
    async with durable(agent, path, "ins_0000000000000002") as url, bare_client(url) as again:
        await again.say("user.reconnect_with_state", session_id=client.session_id, last_seq=0)
        assert len((await again.until("agent.state_restored"))["content"]["history"]) == MAX_HISTORY


async def test_an_answer_that_is_what_the_author_keeps_is_in_the_history_as_it_was_said(path):
    async def agent(message, session):
        notes = session.state.setdefault("notes", [])
        notes.append(str(message))
        return session.history if message == "history" else notes

    async with durable(agent, path) as url, bare_client(url) as client:
        assert (await client.ask("one"))["content"] == ["one"]
        first = [{"role": "user", "content": "one"}, {"role": "assistant", "content": ["one"]}]
        for message in ("two", "history"):
            answer = await client.ask(message)
        assert answer["content"][:2] == first
        await client.ask("three")
    async with durable(agent, path) as url, bare_client(url) as again:
        seen = (await again.ask("history", session_id=client.session_id))["content"]
        assert seen[:2] == first
        assert len(seen) == 8


async def test_state_that_json_cannot_say_is_left_out_and_named(path, caplog):
    async def agent(message, session):
        session.state.setdefault("count", 0)
        session.state["count"] += 1
        session.state["db"] = {"pool": [object()]}
        session.state[3] = "three"
        session.state["pair"] = (1, 2)
        return sorted(map(str, session.state))

    async with durable(agent, path) as url, bare_client(url) as client:
        for _ in range(2):
            await client.ask("hi")
        assert url.sessions.journal_report() == {
            "degraded": None,
            "not_durable": [
                "session.state['db']['pool'][0] is a object", "session.state[3] has no string for its name",
            ],
            "set_aside": [],
        }  # fmt: skip
    assert caplog.text.count("not durable") == 2

    async def shown(message, session):
        return session.state

    async with durable(shown, path) as url, bare_client(url) as again:
        assert (await again.ask("?", session_id=client.session_id))["content"] == {"count": 2, "pair": [1, 2]}


async def test_a_state_that_is_too_large_is_an_error_and_the_one_before_is_kept(path):
    async def agent(message, session):
        session.state["text"] = "x" * int(message)
        return "ok"

    async def shown(message, session):
        return len(session.state["text"])

    limits = SessionLimits(state_max_bytes=1000)
    async with durable(agent, path, limits=limits) as url, bare_client(url) as client:
        assert (await client.ask("10"))["content"] == "ok"
        end = await client.ask("2000")
        assert (end["event"], end["content"]["code"]) == ("agent.error", "state_too_large")
        [session] = url.sessions._sessions.values()
        assert len(session.state["text"]) == 10
    async with durable(shown, path) as url, bare_client(url) as again:
        assert (await again.ask("?", session_id=client.session_id))["content"] == 10


async def test_what_a_framework_remembers_goes_with_the_session(path):
    class Framework:
        def __init__(self):
            self.memory = {}

        async def on_message(self, session, message):
            said = self.memory.setdefault(session.id, [])
            said.append(str(message))
            return said

        async def export_memory(self, session):
            return json.dumps(self.memory[session.id])

        def import_memory(self, session, text):
            self.memory[session.id] = json.loads(text)

    async with durable(Framework(), path) as url, bare_client(url) as client:
        await client.ask("one")
    async with durable(Framework(), path) as url, bare_client(url) as again:
        assert (await again.ask("two", session_id=client.session_id))["content"] == ["one", "two"]


async def test_a_name_is_a_session_of_its_owner(path):
    def as_user(name):
        return {"X-Agentmgr-Identity": name}

    async with durable(echo, path) as url:
        async with bare_client(url, as_user("alice")) as client:
            await client.say("user.create_session", content={"name": "diary"})
            await client.until("agent.session_created")
            await client.ask("dear diary")
    async with durable(echo, path) as url:
        async with bare_client(url, as_user("bob")) as bob, bare_client(url, as_user("alice")) as again:
            for each in (bob, again):
                await each.say("user.create_session", name="diary")
                await each.until("agent.session_created")
            assert again.session_id == client.session_id != bob.session_id
            assert (await again.until(*TURN_ENDS))["content"] == "dear diary"


@pytest.mark.parametrize("kept", [False, True])
async def test_a_session_is_found_by_its_name_or_none_is_made(path, kept):
    def as_user(name):
        return {"X-Agentmgr-Identity": name}

    async with durable(echo, path) if kept else hosted(echo) as url:
        async with bare_client(url, as_user("alice")) as alice, bare_client(url, as_user("bob")) as bob:
            await alice.say("user.create_session", name="diary")
            await alice.until("agent.session_created")
            await alice.ask("dear diary")
            for client, name, code in (
                (bob, "diary", "session_not_found"),
                (alice, "other", "session_not_found"),
                (alice, "", "invalid_field"),
                (alice, 3, "invalid_field"),
            ):
                await client.say("user.reconnect", content={"name": name})
                assert (await client.until("system.error"))["content"]["code"] == code
            await alice.say("user.reconnect", content={"name": "diary", "last_seq": 1})
            assert (await alice.until("system.notice"))["content"]["code"] == "resumed"
            assert (await alice.until(*TURN_ENDS))["content"] == "dear diary"
            await alice.say("user.end_session", session_id=alice.session_id)
            await alice.until("agent.session_end")
            await alice.say("user.reconnect", content={"name": "diary"})
            assert (await alice.until("system.error"))["content"]["code"] == "session_not_found"
            await bob.say("user.create_session", name="other")
            await bob.until("agent.session_created")  # the first one of that name


@pytest.mark.parametrize("kept", [False, True])
async def test_a_session_may_begin_with_a_history(path, kept):
    async def agent(message, session):
        return [entry["content"] for entry in session.history]

    seed = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    async with durable(agent, path) if kept else hosted(agent) as url, bare_client(url) as client:
        await client.say("user.create_session", content={"history": seed, "name": "x"})
        await client.until("agent.session_created")
        assert (await client.ask("?"))["content"] == ["a", "b"]
        for wrong in ({"history": [{"role": "judge", "content": ""}]}, {"name": ""}, {"name": 3}):
            await client.say("user.create_session", content=wrong)
            assert (await client.until("system.error"))["content"]["code"] == "invalid_field"
    if kept:
        async with durable(agent, path) as url, bare_client(url) as again:
            seen = (await again.ask("?", session_id=client.session_id))["content"]
            assert seen == ["a", "b", "?", ["a", "b"]]


async def test_many_read_one_session_and_all_may_speak():
    async with hosted(echo) as url, bare_client(url) as one, bare_client(url) as two:
        await one.open()
        await two.open()
        own = two.session_id
        await two.say("user.watch", session_id=one.session_id)
        assert (await two.until("system.notice"))["content"]["code"] == "resumed"
        await one.ask("from one")
        assert (await two.until(*TURN_ENDS))["content"] == "from one"
        assert (await two.ask("mine"))["session_id"] == own
        await two.say("user.message", session_id=one.session_id, content="from two")
        assert (await one.until(*TURN_ENDS))["content"] == "from two"


async def test_a_stuck_watcher_keeps_no_other_client_waiting(path):
    async def agent(message):
        for number in range(3000):
            yield f"{number:05d}" * 200  # 3 MB in all

    limits = SessionLimits(buffer_events=50)
    async with durable(agent, path, limits=limits) as url:
        async with bare_client(url) as client, bare_client(url) as stuck:
            await client.open()
            await stuck.say("user.watch", session_id=client.session_id)
            assert (await client.ask("go"))["event"] == "agent.final_answer"
            await stuck.until(*TURN_ENDS)
    assert seqs(client) == seqs(stuck) == list(range(1, 3003))


async def test_of_fifty_watchers_one_that_is_stuck_costs_little_and_holds_up_no_other(path):
    """Nor does a client that acknowledges nothing."""

    async def agent(message):
        for number in range(60):
            yield f"{number:05d}" * 5000  # 1.5 MB in all

    limits = SessionLimits(buffer_events=4)
    async with (
        durable(agent, path, limits=limits) as url,
        bare_client(url) as client,
        AsyncExitStack() as stack,
    ):
        await client.open()
        watchers = [await stack.enter_async_context(bare_client(url)) for _ in range(50)]
        for watcher in watchers:
            await watcher.say("user.watch", session_id=client.session_id)
        async with trio.open_nursery() as nursery:
            for watcher in watchers[1:]:
                nursery.start_soon(watcher.until, *TURN_ENDS)
            await client.ask("go")
        assert url.sessions.budget.used < 16 * 2**20
        await watchers[0].until(*TURN_ENDS)
    for each in (client, *watchers):
        assert seqs(each) == list(range(1, 63))


async def test_usage_is_added_up(path):
    async def agent(message, session):
        await session.emit(usage(10, 3, "model"))
        return list(session.usage)

    async with durable(agent, path) as url, bare_client(url) as client:
        assert (await client.ask("hi"))["content"] == [10, 3]
    async with durable(agent, path) as url, bare_client(url) as again:
        assert (await again.ask("hi", session_id=client.session_id))["content"] == [20, 6]


async def test_a_client_that_has_more_than_the_journal_goes_on_after_it(path):
    """As when the host before could not write, sent on from memory, and died."""
    async with durable(echo, path) as url, bare_client(url) as client:
        await client.ask("hi")
    async with durable(echo, path) as url, bare_client(url) as again:
        await resume(again, client.session_id, 100)
        assert (await again.ask("hi"))["seq"] == 101
        async with bare_client(url) as third:
            await resume(third, client.session_id)
            await third.until(*TURN_ENDS)
            gap = (await third.until("system.notice"))["content"]
            assert (gap["code"], gap["missing_from"], gap["missing_to"]) == ("gap", 3, 100)
            assert (await third.until(*TURN_ENDS))["seq"] == 101


async def test_a_client_that_has_more_makes_no_hole_for_others_in_what_is_not_committed_yet(path):
    async with durable(echo, path) as url, bare_client(url) as client, bare_client(url) as ahead:
        await client.ask("hi")
        [session] = url.sessions._sessions.values()
        with closing(sqlite3.connect(path, isolation_level=None)) as locked:
            locked.execute("BEGIN IMMEDIATE")
            await client.say("user.message", content="more")
            await until(lambda: session.buffer.last_seq == 3)
            notice = await resume(ahead, client.session_id, 50)
            assert (notice["replay_from"], notice["last_seq"], session.buffer.visible) == (51, 50, 2)
        assert (await client.until(*TURN_ENDS))["seq"] == 3
        assert (await ahead.ask("and on"))["seq"] == 51
        gap = (await client.until("system.notice"))["content"]
        assert (gap["missing_from"], gap["missing_to"]) == (4, 50)
        assert (await client.until(*TURN_ENDS))["seq"] == 51
    assert (seqs(client), seqs(ahead)) == ([1, 2, 3, 51], [51])
    async with durable(echo, path) as url, bare_client(url) as again:
        await resume(again, client.session_id)
        while seqs(again) != [1, 2, 3, 51]:
            await again.receive()


async def test_a_named_session_whose_host_died_as_it_was_made_is_begun_where_it_is_asked_for(path):
    """Its row is there, and nothing that says so."""
    session_id = SessionIds("ins_0000000000000001").new()
    async with open_journal(path, "ins_0000000000000001") as journal:
        await journal.create(SessionRecord(session_id, None, 1.0, 1.0, "diary"))
    async with durable(echo, path) as url, bare_client(url) as client:
        await client.say("user.create_session", name="diary")
        await client.until("agent.session_created")
        assert (client.session_id, (await client.ask("hi"))["seq"]) == (session_id, 2)


async def test_a_question_is_closed_when_its_instance_dies(path):
    async def agent(message, session):
        return bool(await session.confirm("rm"))

    async with killed(agent, path) as url, bare_client(url) as client:
        await client.say("user.message", content="go")
        question = await client.until("agent.user_confirm")
    async with durable(agent, path) as url, bare_client(url) as again:
        await resume(again, client.session_id)
        assert (await again.until(*TURN_ENDS))["content"]["code"] == "instance_lost"
        await again.say("user.response", step_id=question["step_id"], content=True)
        assert (await again.until("system.error"))["content"]["code"] == "unknown_step"
        assert sqlite_archive.questions(path) == []


async def test_numbers_that_a_client_made_a_session_leave_out_are_not_looked_for(path):
    async def agent(message):
        yield "half"
        await trio.sleep_forever()

    async with killed(agent, path) as url, bare_client(url) as client:
        await client.open()
        await resume(client, client.session_id, 10**9)
        await client.say("user.message", content="go")
        assert (await client.until("agent.partial_answer"))["seq"] == 10**9 + 1
    with trio.fail_after(20):
        async with durable(echo, path) as url, bare_client(url) as again:
            await resume(again, client.session_id, 10**9)
            assert (await again.until(*TURN_ENDS))["content"]["code"] == "instance_lost"


async def test_an_agent_that_cannot_start_ends_no_session_that_it_had(path):
    class Broken:
        async def on_session_start(self, session):
            raise RuntimeError("a bad release")

        async def on_message(self, session, message):
            return "never"

    async with durable(echo, path) as url, bare_client(url) as client:
        await client.ask("hi")
    async with durable(Broken(), path) as url, bare_client(url) as again:
        error = await resume(again, client.session_id)
        assert error["code"] == "session_unreachable"
        assert error["message"].startswith("the agent failed with RuntimeError")
    async with durable(echo, path) as url, bare_client(url) as mended:
        assert (await mended.ask("hi", session_id=client.session_id))["content"] == "hi"


def left_alone(url):
    return not any(session.connected for session in url.sessions._sessions.values())


async def test_room_is_made_by_sessions_that_leave_memory(path):
    async with durable(echo, path, max_sessions=1) as url:
        async with bare_client(url) as client:
            await client.ask("hi")
        await until(lambda: left_alone(url))
        async with bare_client(url) as other:
            await other.ask("hi")
            refused = await resume(other, client.session_id)
            assert refused["code"] == "max_sessions"
        await until(lambda: left_alone(url))
        async with bare_client(url) as again:
            assert (await resume(again, client.session_id))["code"] == "resumed"


async def test_a_journal_that_was_deleted_has_the_session_again_when_it_works_again(path):
    async with durable(remembering, path) as url, bare_client(url) as client:
        await client.ask("one", step_id="1")
        for suffix in ("", "-wal", "-shm"):
            path.with_name(path.name + suffix).unlink(missing_ok=True)
        for number in (2, 3):
            assert (await client.ask("more", step_id=f"{number}"))["content"][0] == number
        await until(lambda: path.exists() and not url.sessions.journal.degraded)
        assert (await client.ask("four", step_id="4"))["content"][0] == 4
    async with durable(remembering, path) as url, bare_client(url) as again:
        notice = await resume(again, client.session_id)
        assert notice["last_seq"] == 5
        assert (await again.until(*TURN_ENDS))["content"][0] == 1
        for _ in range(3):
            await again.until(*TURN_ENDS)
        assert (await again.ask("five"))["content"] == [5, 8, True, 1]
        await again.say("user.message", step_id="4", content="four")
        assert (await again.until("system.error"))["content"]["code"] == "duplicate"
    assert seqs(client) == [1, 2, 3, 4, 5]
    assert seqs(again) == [1, 2, 3, 4, 5, 6]


async def test_a_host_whose_session_was_taken_over_says_nothing_more_and_sends_its_client_back(path):
    """As one that was suspended, and wakes up."""
    one, two = "ins_0000000000000001", "ins_0000000000000002"
    async with durable(echo, path, one) as first, durable(echo, path, two) as second:
        async with bare_client(first) as client, bare_client(second) as elsewhere:
            await client.ask("hi")
            revoke(path.parent, one)  # as a manager does that has decided to end it
            assert (await resume(elsewhere, client.session_id, 2))["code"] == "resumed"
            assert (await elsewhere.ask("from the new one"))["seq"] == 3
            await client.say("user.message", content="to the old one")
            with pytest.raises(trio.EndOfChannel):
                await client.until(*TURN_ENDS)
            assert client.websocket.closed.code == 1012
            assert (await elsewhere.ask("still here"))["seq"] == 4
        assert seqs(client) == [1, 2]


class Setting:
    """Sets in its hook what each session begins with, as most agents do."""

    async def on_session_start(self, session):
        session.seen = dict(session.state)
        session.state = {"notes": [], "opened": object()}
        session.history = [{"role": "system", "content": "be kind"}]

    async def on_message(self, session, message):
        session.state["notes"].append(str(message))
        return [session.seen.get("notes"), session.state["notes"], len(session.history)]


async def test_what_was_kept_counts_more_than_what_on_session_start_sets_anew(path):
    async with killed(Setting(), path) as url, bare_client(url) as client:
        assert (await client.ask("one"))["content"] == [None, ["one"], 1]
    async with durable(Setting(), path) as url, bare_client(url) as again:
        await again.say("user.reconnect", session_id=client.session_id, last_seq=2)
        assert (await again.ask("two"))["content"] == [["one"], ["one", "two"], 3]


async def test_a_host_that_drains_begins_no_turn_behind_the_one_that_runs(path):
    """Else a client that always has one more message under way would keep it."""
    go_on = trio.Event()

    async def slow(message):
        await go_on.wait()
        return str(message)

    async with durable(slow, path) as url, bare_client(url) as client:
        await client.open()
        for name in ("one", "two"):
            await client.say("user.message", content=name, step_id=name)
        await client.say("user.request_state")
        await client.until("agent.state_exported")
        url.server._drain.begin(1012)
        go_on.set()
        assert (await client.until(*TURN_ENDS))["content"] == "one"
        with pytest.raises(trio.EndOfChannel):
            await client.receive()
    async with durable(slow, path) as url, bare_client(url) as again:
        await again.say("user.reconnect", session_id=client.session_id, last_seq=2)
        end = await again.until(*TURN_ENDS)
        assert (end["content"], end["step_id"], end["seq"]) == ("two", "two", 3)


async def test_a_connection_misses_nothing_of_a_session_that_left_and_came_back(path):
    """What it said meanwhile was not for another one alone."""
    go_on = trio.Event()

    async def slow(message):
        await go_on.wait()
        return str(message)

    async with durable(slow, path) as url, bare_client(url) as client, bare_client(url) as other:
        await client.open()
        await leave_behind_one(url, client, go_on)
        url.sessions.is_draining = False
        await resume(other, client.session_id, 2)
        assert (await other.until(*TURN_ENDS))["content"] == "two"
        await client.say("user.message", session_id=client.session_id, content="three")
        assert [(await client.until(*TURN_ENDS))["content"] for _ in range(2)] == ["two", "three"]
        assert seqs(client) == [1, 2, 3, 4]


async def test_a_host_that_drains_does_not_take_up_again_what_has_left_it(path):
    go_on, never = trio.Event(), trio.Event()

    async def slow(message):
        await (never if message == "long" else go_on).wait()
        return str(message)

    async with durable(slow, path) as url, bare_client(url) as client:
        await client.say("user.message", content="long")  # keeps the connection
        await client.until("agent.session_created")
        await client.open()
        await leave_behind_one(url, client, go_on)
        await client.say("user.message", session_id=client.session_id, content="three")
        assert (await client.until("system.error"))["content"]["code"] == "draining"
        assert len(url.sessions) == 1
        never.set()


async def leave_behind_one(url, client, go_on):
    """The client's newest session leaves when its first message was answered, and has one more."""
    for name in ("one", "two"):
        await client.say("user.message", session_id=client.session_id, content=name)
    await client.say("user.request_state")
    await client.until("agent.state_exported")
    session = url.sessions._sessions[client.session_id]
    url.sessions.is_draining = True
    go_on.set()
    assert (await client.until(*TURN_ENDS))["content"] == "one"
    await session.gone.wait()
