"""What clients make a host keep is bounded over all its sessions: counted exactly, given up in order."""

import json
import math

import pytest
import trio
import trio.testing
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agentmgr.agent import Event, thinking
from agentmgr.agent.answers import Answers, StateRequests
from agentmgr.agent.budget import Budget, Offer
from agentmgr.agent.incoming import BadInput, parse
from agentmgr.agent.limits import (
    ENTRY_BYTES,
    MAX_CONTROL_BYTES,
    MAX_HISTORY,
    SESSION_BYTES,
    STREAM_BYTES,
    SessionLimits,
    weigh,
)
from agentmgr.agent.turn import Turn
from agentmgr.models import OnDisconnect
from agentmgr.testing.agents import bare_client, hosted
from tests.conditions import until

MIB = 2**20
ENDS = ("agent.final_answer", "agent.error", "agent.timeout", "agent.interrupted")


async def echo(message):
    return message.content


class Gate:
    """Answers once `go` is set."""

    def __init__(self):
        self.go, self.begun = trio.Event(), []

    async def on_message(self, session, message):
        self.begun.append(str(message)[:10])
        await self.go.wait()
        return str(message)[:10]


async def settle():
    await trio.testing.wait_all_tasks_blocked(0.05)


async def until_used(budget, most):
    await until(lambda: budget.used <= most)


async def away(url, session_id):
    await until(lambda: not url.sessions._sessions[session_id].connected)


# The sums.


@given(st.data())
def test_a_budget_is_the_sum_of_its_shares_and_room_is_made_in_order(data):
    budget, shares, order = Budget(100), [], []

    def give_up(number):
        order.append((number, offered.get(number)))
        shares[number].hold(shares[number].size // 2)

    offered = {}
    for number in range(4):
        shares.append(budget.share(lambda number=number: give_up(number)))
    for _ in range(data.draw(st.integers(0, 30))):
        number = data.draw(st.integers(0, 3))
        action = data.draw(st.sampled_from(["hold", "offer", "room"]))
        if action == "hold":
            shares[number].hold(data.draw(st.integers(0, 80)))
        elif action == "offer":
            offered[number] = data.draw(st.sampled_from([None, *Offer]))
            shares[number].offer(offered[number])
        else:
            order.clear()
            size = data.draw(st.integers(0, 120))
            fits = budget.make_room(size)
            assert fits == (budget.used + size <= 100)
            assert None not in [offer for _, offer in order]
            assert [offer for _, offer in order] == sorted(offer for _, offer in order)
        assert budget.used == sum(share.size for share in shares) >= 0


def test_who_grew_longest_ago_gives_up_first():
    budget, order = Budget(10), []
    one, two = (budget.share(lambda n=n: order.append(n)) for n in (1, 2))
    for share in (one, two):
        share.offer(Offer.ABSENT)
    assert not budget.make_room(11)
    assert order == [1, 2]
    two.hold(1)
    one.hold(1)
    two.hold(2)
    assert not budget.make_room(11)
    assert order == [1, 2, 2, 1]
    with pytest.raises(BadInput, match="send it again later"):
        budget.require(11)


def test_what_a_message_takes_in_memory_counts_not_its_length():
    lists = '{"event": "user.message", "content": [' + ",".join(["[]"] * 10_000) + "]}"
    text = json.dumps({"event": "user.message", "content": "x" * len(lists)})
    assert parse(lists).size > 10 * parse(text).size
    assert len(text) < parse(text).size < len(text) + 1000
    assert parse('{"event": "user.message", "content": {"' + "k" * 10_000 + '": 1}}').size > 10_000


@pytest.mark.parametrize(
    "value", ["[]", "{}", '{"a":1}', '{"ab":"cd"}', "1.5", '"ab"', "12345", '[["é"],{"a":[{}]}]', '"😀"']
)
def test_of_very_many_values_the_size_is_estimated_from_above(value):
    text = '{"event": "user.message", "content": [' + ",".join([value] * 40_000) + "]}"
    event = parse(text)
    assert weigh(event.fields) <= event.size <= 8 * weigh(event.fields)


def test_weighing_stops_when_it_is_enough():
    circle = []
    circle.append(circle)
    assert 1000 < weigh(circle, 1000) < 2000
    assert weigh([[]] * 10**6, 1000) < 10**7


@given(st.lists(st.text(max_size=30) | st.just("é" * 900_000) | st.just("x" * 5_000_000), max_size=6))
def test_a_turn_keeps_the_beginning_of_what_it_streams(texts):
    turn = Turn(None, "s")
    for text in texts:
        turn.stream(text)
    whole = "".join(texts)
    assert whole.startswith(turn.streamed)
    assert turn.truncated == (turn.streamed != whole)
    assert turn.bytes_held <= STREAM_BYTES


def test_text_that_takes_four_bytes_a_character_counts_so():
    turn = Turn(None, "s")
    turn.stream("😀" * STREAM_BYTES)
    assert (len(turn.streamed), turn.truncated) == (STREAM_BYTES // 4, True)


def exact(url):
    """What is counted is what the sessions hold, and is never over the limit by more than they may be."""
    budget = url.sessions.budget
    sessions = url.sessions._sessions.values()
    for session in sessions:
        before = session._holdings.size
        session._holdings.count()
        assert session._holdings.size == before
    assert budget.used >= sum(session._holdings.size for session in sessions) >= len(sessions) * SESSION_BYTES


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["say", "open", "leave", "state", "end", "cancel"]), st.integers(0, 400_000)
        ),
        max_size=14,
    )
)
def test_all_is_counted_whatever_comes_and_nothing_is_left_of_it(steps):
    async def main():
        async with hosted(echo, host_bytes=2 * MIB) as url:
            for _ in range(2):
                async with bare_client(url) as client:
                    await client.open()
                    for step, size in steps:
                        if step == "leave":
                            break
                        if step == "end":
                            url.sessions.end_all("test")
                            await settle()
                        elif step == "open":
                            await client.say("user.create_session")
                        elif step == "state":
                            await client.say("user.request_state")
                        elif step == "cancel":
                            await client.say("user.cancel")
                        else:
                            await client.say("user.message", content="x" * size)
                        exact(url)
                    await settle()
                    exact(url)
                await until(lambda: not any(it.connected for it in url.sessions._sessions.values()))
                exact(url)
            url.sessions.end_all("test")
            await until_used(url.sessions.budget, 0)
            assert url.sessions.budget.used == 0

    trio.run(main)


# What clients see.


async def test_one_connection_with_all_its_sessions_full_does_not_fill_the_host():
    gate = Gate()
    async with hosted(gate, host_bytes=8 * MIB) as url, bare_client(url) as client, bare_client(url) as other:
        theirs = await other.open()
        opened = [await client.open() for _ in range(64)]
        refused = []
        for session_id in opened:
            for number in range(3):
                await client.say(
                    "user.message", session_id=session_id, step_id=f"{number}", content="x" * 400_000
                )
        await client.say("ping")
        while (event := await client.until("pong", "system.error"))["event"] != "pong":
            refused.append(event)
        assert {"host_full", "queue_full"} == {event["content"]["code"] for event in refused}
        full = next(event for event in refused if event["content"]["code"] == "host_full")
        assert full["content"]["message"] == (
            "this agent keeps as much for its clients as it may (8 MiB); "
            "send it again later, when other turns and sessions have ended"
        )
        assert full["session_id"] in opened
        assert full["step_id"] in ("0", "1", "2")
        assert url.sessions.budget.used <= 8 * MIB
        assert gate.begun.count("x" * 10) + len(refused) <= 64 * 3
        gate.go.set()
        await other.say("user.message", session_id=theirs, content="hi")
        assert (await other.until(*ENDS))["content"] == "hi"


async def test_answers_beyond_the_limit_make_room_among_their_own_events():
    async def agent(message):
        for _ in range(60):
            yield thinking("x" * 50_000)
        yield "done"

    async with hosted(agent, host_bytes=MIB, limits=SessionLimits(buffer_bytes=8 * MIB)) as url:
        async with bare_client(url) as client:
            assert (await client.ask("go"))["content"] == "done"
            assert url.sessions.budget.used <= MIB + 100_000


async def test_sessions_that_are_away_forget_first_and_the_longest_away_before_others():
    async with hosted(echo, host_bytes=5 * MIB) as url:
        ids = []
        for _ in range(3):
            async with bare_client(url) as client:
                await client.ask("x" * 300_000)
                ids.append(client.session_id)
            await away(url, ids[-1])
        async with bare_client(url) as client:
            await client.ask("x" * 700_000)
        kept = [len(url.sessions._sessions[session_id].history) for session_id in ids]
        assert kept == sorted(kept)
        assert (kept[0], kept[-1]) == (0, 2)
        async with bare_client(url) as again:
            await again.say("user.reconnect_with_state", session_id=ids[0], last_seq=1)
            assert (await again.until("agent.state_restored"))["content"]["truncated"] == 2
            assert (await again.until("system.notice"))["content"]["code"] == "gap"
            assert (await again.ask("still here"))["content"] == "still here"


async def test_clients_that_are_connected_keep_no_room_by_what_they_have_received():
    async with hosted(echo, host_bytes=2 * MIB) as url:
        async with bare_client(url) as idle, bare_client(url) as client:
            for _ in range(5):
                await idle.ask({"text": "hi", "n": 1})
            session = url.sessions._sessions[idle.session_id]
            assert session.buffer.first_seq == 1
            await client.ask("x" * 600_000)
            assert session.buffer.first_seq == session.buffer.last_seq + 1
            assert len(session.history) == 10
            assert (await idle.ask("on"))["content"] == "on"


async def test_what_a_client_has_not_received_is_kept_until_it_has():
    async with hosted(echo) as url, bare_client(url) as client:
        session = url.sessions._sessions[await client.open()]
        session.publish(Event("my.event"))
        assert not url.sessions.budget.make_room(2**40)
        await client.until("my.event")
        await settle()
        assert session.buffer.first_seq == session.buffer.last_seq
        assert not url.sessions.budget.make_room(2**40)
        assert session.buffer.first_seq == session.buffer.last_seq + 1


async def test_a_running_turn_gives_up_nothing_that_it_said():
    go = trio.Event()

    async def agent(message):
        yield thinking("hm")
        await go.wait()
        yield "done"

    async with hosted(agent) as url:
        async with bare_client(url) as client:
            await client.say("user.message", content="hi")
            await client.until("agent.thinking")
            await settle()
            assert not url.sessions.budget.make_room(2**40)
        await away(url, client.session_id)
        assert not url.sessions.budget.make_room(2**40)
        async with bare_client(url) as again:
            await again.say("user.reconnect", session_id=client.session_id)
            await again.until("agent.thinking")
            assert [event["seq"] for event in again.events if "seq" in event] == [1, 2]
            go.set()
            assert (await again.until(*ENDS))["content"] == "done"


async def test_what_waits_of_a_client_that_is_away_makes_room_and_what_runs_does_not():
    gate = Gate()
    async with hosted(gate, host_bytes=3 * MIB) as url:
        async with bare_client(url) as client:
            for number in range(3):
                await client.say("user.message", content=f"{number}" * 300_000, step_id=f"step {number}")
            await client.say("ping")
            await client.until("pong")
        await away(url, client.session_id)
        async with bare_client(url) as other:
            await other.say("user.message", content="y" * 900_000)
            await other.say("ping")
            assert (await other.until("pong", "system.error"))["event"] == "pong"
            gate.go.set()
            assert (await other.until(*ENDS))["content"] == "y" * 10
        async with bare_client(url) as again:
            await again.say("user.reconnect", session_id=client.session_id)
            ends = [await again.until(*ENDS) for _ in range(3)]
        assert [(end["event"], end["step_id"]) for end in ends] == [
            ("agent.final_answer", "step 0"),
            ("agent.interrupted", "step 1"),
            ("agent.interrupted", "step 2"),
        ]
        assert ends[1]["content"]["reason"] == "the host needed its room while the client was away"
        assert sorted(gate.begun) == ["0" * 10, "y" * 10]
        history = url.sessions._sessions[client.session_id].history
        assert [entry["content"][:1] for entry in history] == ["0", "0"]


async def test_without_need_what_waits_is_answered_though_its_client_is_away():
    gate = Gate()
    async with hosted(gate) as url:
        async with bare_client(url) as client:
            for number in range(3):
                await client.say("user.message", content=f"{number}")
            await client.say("ping")
            await client.until("pong")
        await away(url, client.session_id)
        gate.go.set()
        async with bare_client(url) as again:
            await again.say("user.reconnect", session_id=client.session_id)
            assert [(await again.until(*ENDS))["content"] for _ in range(3)] == ["0", "1", "2"]


async def test_what_waits_is_not_begun_and_is_free_when_the_client_of_a_cancelling_service_has_gone():
    gate = Gate()
    limits = SessionLimits(on_disconnect=OnDisconnect.CANCEL, disconnect_grace=0.1)
    async with hosted(gate, limits=limits) as url:
        async with bare_client(url) as client:
            for number in range(3):
                await client.say("user.message", content=f"{number}" * 300_000)
            await client.say("ping")
            await client.until("pong")
            assert url.sessions.budget.used > 1_800_000
        await until_used(url.sessions.budget, 1_100_000)  # its history
        assert gate.begun == ["0" * 10]


async def test_a_session_that_ends_frees_all_that_it_had():
    gate = Gate()
    async with hosted(gate) as url, bare_client(url) as client:
        for _ in range(4):
            await client.say("user.message", content="x" * 200_000)
        await client.say("ping")
        await client.until("pong")
        assert url.sessions.budget.used > 1_600_000
        url.sessions.end_all("test")
        await client.until("agent.session_end")
        await until_used(url.sessions.budget, 0)
        assert not any(url.sessions.budget._offers)  # nor does it stay there itself


async def test_sessions_count_also_when_nothing_is_in_them():
    async with hosted(echo, host_bytes=10 * SESSION_BYTES) as url:
        async with bare_client(url) as client:
            for _ in range(12):
                await client.say("user.create_session")
            assert (await client.until("system.error"))["content"]["code"] == "host_full"
            first = client.session_id
            opened = len(url.sessions)
            assert opened < 10
        await away(url, first)
        async with bare_client(url) as client:
            await client.open()  # in the place of one whose client has left
            assert len(url.sessions) == opened


# State.


async def test_a_large_state_is_left_out_before_it_is_encoded():
    class Spy:
        def __repr__(self):
            raise AssertionError("it was encoded")

    async def agent(message, session):
        session.state |= {"spy": Spy(), "big": ["x" * 1000 for _ in range(10_000)]}
        return "ok"

    async with hosted(agent) as url, bare_client(url) as client:
        await client.ask("hi")
        await client.say("user.request_state")
        shown = (await client.until("agent.state_exported"))["content"]
        assert (shown["state"], shown["state_left_out"]) == ({}, f"over {MIB} bytes")
        assert [entry["content"] for entry in shown["history"]] == ["hi", "ok"]


async def test_a_state_or_history_that_no_client_could_read_harms_nothing():
    deep = []
    for _ in range(300):
        deep = [deep]

    async def agent(message, session):
        session.state["deep"] = deep
        session.history[:] = [{"role": "user", "content": "x" * MIB}] * 5
        return "ok"

    async with hosted(agent) as url, bare_client(url) as client:
        await client.ask("hi")
        await client.say("user.request_state")
        shown = (await client.until("agent.state_exported"))["content"]
        assert (shown["state"], shown["state_left_out"]) == ({}, "JSON cannot say it")
        assert len(shown["history"]) <= 4


async def test_requests_for_state_in_a_row_get_few_answers_and_the_last_is_of_now():
    async def agent(message, session):
        session.state["last"] = message.content
        return "ok"

    async with hosted(agent) as url, bare_client(url) as client:
        await client.ask("first")
        for _ in range(20):
            await client.say("user.request_state")
        await client.ask("second")
        await client.say("user.request_state")
        state = {}
        while state.get("last") != "second":
            state = (await client.until("agent.state_exported"))["content"]["state"]
        await client.say("ping")
        await client.until("pong")
        answers = [
            e["content"]["state"]["last"] for e in client.events if e["event"] == "agent.state_exported"
        ]
        assert 2 <= len(answers) <= 5
        assert answers[-1] == "second"
        await client.say("user.request_state")
        await client.until("agent.state_exported")


async def test_state_that_is_on_its_way_counts():
    async def agent(message, session):
        session.state["big"] = "x" * 900_000
        return "ok"

    async with hosted(agent, host_bytes=MIB // 2) as url, bare_client(url) as client:
        await client.ask("hi")
        await client.say("user.request_state", step_id="mine")
        refusal = await client.until("system.error")
        assert (refusal["content"]["code"], refusal["step_id"]) == ("host_full", "mine")
        await client.say("user.reconnect_with_state", session_id=client.session_id)
        assert (await client.until("system.error"))["content"]["code"] == "host_full"
        assert (await client.until("system.notice"))["content"]["last_seq"] == 2


async def test_what_waits_to_be_written_is_counted_until_it_is_or_its_client_has_gone():
    budget = Budget(100)
    answers = Answers(budget)
    answers.append(b"x" * 20)
    answers.append(b"x" * 10)
    assert (budget.used, answers.pop()) == (30, b"x" * 20)
    answers.now_written(20)
    assert budget.used == 30
    answers.now_written(0)
    assert budget.used == 10
    answers.close()
    assert budget.used == 0


async def test_states_wait_for_room_among_what_is_to_be_written(autojump_clock):
    answers, told = Answers(Budget(2**30)), []
    requests = StateRequests(lambda session, event: told.append(session), answers)
    async with trio.open_nursery() as nursery:
        for session in (1, 2, 3, 2):
            requests.add(session, None, nursery)
        answers.append(b"x" * MAX_CONTROL_BYTES)
        await trio.sleep(10)
        assert told == [1]
        answers.pop()
        await trio.sleep(10)
        assert told == [1, 2, 3]
        requests.add(1, None, nursery)
        assert told == [1, 2, 3, 1]


async def test_a_repr_of_megabytes_and_entries_without_end_are_bounded():
    class Long:
        def __repr__(self):
            return "x" * 2 * MIB

    async def agent(message, session):
        session.state["long"] = Long()
        if message == "fill":
            session.history[:] = [{"role": "user", "content": ""}] * 3000
        return "ok"

    async with hosted(agent) as url, bare_client(url) as client:
        await client.ask("fill")
        await client.say("user.request_state")
        shown = (await client.until("agent.state_exported"))["content"]
        assert shown["state_left_out"] == f"over {MIB} bytes"
        assert len(shown["history"]) == MAX_HISTORY


# Turns without end.


async def test_an_endless_answer_is_streamed_whole_and_kept_in_part(monkeypatch):
    pieces, most = 40, 1_500_000
    monkeypatch.setattr("agentmgr.agent.turn.STREAM_BYTES", most)

    async def agent(message, session):
        for _ in range(pieces):
            yield "x" * 50_000

    async with hosted(agent) as url, bare_client(url) as client:
        answer = await client.ask("go")
        streamed = [e["content"] for e in client.events if e["event"] == "agent.partial_answer"]
        assert len("".join(streamed)) == pieces * 50_000
        assert (len(answer["content"]), answer["metadata"]) == (most, {"truncated": True})
        await client.say("user.request_state")
        shown = (await client.until("agent.state_exported"))["content"]
        assert shown["history"][-1]["truncated"] is True
        assert len(shown["history"][-1]["content"]) <= ENTRY_BYTES


@pytest.mark.parametrize("answer", ["y" * 3 * MIB, ["z"] * MIB])
async def test_an_enormous_answer_is_sent_and_kept_in_part(answer):
    async def agent(message):
        return answer

    async with hosted(agent, max_message_bytes=8 * MIB) as url, bare_client(url) as client:
        client.websocket._max_message_size = math.inf
        assert (await client.ask("x" * 2 * MIB))["content"] == answer
        [session] = url.sessions._sessions.values()
        assert [entry["truncated"] for entry in session.history] == [True, True]
        assert session._holdings.history_bytes <= 2 * MIB + 2000
