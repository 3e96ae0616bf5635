"""`open_session`: what a program sees, and how it survives its connections."""

import asyncio
import json
from functools import partial

import pytest
import trio

from agentmgr.agent.session import SessionLimits
from agentmgr.client import aio
from agentmgr.client import session as trios
from agentmgr.errors import AgentUnreachable, InvalidRequest, SessionLost, TurnFailed
from agentmgr.proxy import GatewayLimits
from agentmgr.testing import memory_network
from agentmgr.testing.agents import bare_client, hosted
from tests.asyncio_side import asyncio_side


@pytest.fixture(params=["trio", "asyncio"])
async def open_session(request):
    if request.param == "trio":
        yield trios.open_session
    else:
        async with asyncio_side() as there:
            yield there(aio.open_session)


async def echo(message):
    return message


async def asks(message, session):
    return "done" if await session.confirm("rm", {"path": message}) else "kept"


async def test_a_question_and_its_answer(open_session):
    async with hosted(echo) as url, open_session(url) as session:
        assert await session.ask("hi") == "hi"
        assert await session.ask({"text": "an object"}) == "an object"
        assert session.session_id.startswith("ses_")


async def test_a_turn_is_an_iterator_of_its_events(open_session):
    async def agent(message):
        yield "a"
        yield "b"

    async with hosted(agent) as url, open_session(url) as session:
        for _ in range(2):
            turn = await session.send("go")
            events = [event async for event in turn]
            assert [e.content for e in events if e.event == "agent.partial_answer"] == ["a", "b"]
            assert events[-1].event == "agent.final_answer"
            assert [event async for event in turn] == []


async def test_a_question_of_the_agent_goes_to_confirm_and_no_answer_is_no(open_session):
    async def by_path(question):
        if trio.lowlevel.in_trio_run():
            await trio.lowlevel.checkpoint()
        else:
            await asyncio.sleep(0)
        return question.content["args"]["path"] == "good"

    async with hosted(asks) as url, open_session(url) as session:
        assert await session.ask("good") == "kept"
        assert await session.ask("good", confirm=by_path) == "done"
        assert await session.ask("bad", confirm=by_path) == "kept"
        assert await session.ask("bad", confirm=lambda question: True) == "done"


async def test_a_turn_without_an_answer_raises_with_the_reason(open_session):
    async def agent(message):
        if message == "fail":
            raise ValueError
        await trio.sleep_forever()

    async with hosted(agent, limits=SessionLimits(turn_timeout=0.05)) as url, open_session(url) as session:
        with pytest.raises(TurnFailed, match="the agent failed with ValueError"):
            await session.ask("fail")
        with pytest.raises(TurnFailed, match=r"did not answer within 0.05 s"):
            await session.ask("wait")


async def test_a_turn_can_be_cancelled(open_session):
    async def agent(message):
        yield "first"
        await trio.sleep_forever()

    async with hosted(agent) as url, open_session(url) as session:
        turn = await session.send("go")
        await turn.cancel()
        with pytest.raises(TurnFailed, match="interrupted"):
            await turn.answer()


async def test_a_refused_message_ends_its_turn(open_session):
    async with hosted(echo, max_message_bytes=500) as url, open_session(url) as session:
        turn = await session.send("x" * 1000)
        error = await turn.__anext__()
        assert error.code == "too_large"
        assert await session.ask("hi") == "hi"


async def test_an_exception_in_the_block_leaves_it_as_it_is(open_session):
    async with hosted(echo) as url:
        with pytest.raises(KeyError, match="mine"):
            async with open_session(url):
                raise KeyError("mine")


@pytest.mark.parametrize("url", ["http://x", "ws://", "localhost:9090", "ws://x:99999", ""])
async def test_what_is_no_websocket_url_is_said_before_any_connection(open_session, url):
    with pytest.raises(InvalidRequest, match="is not a WebSocket URL"):
        async with open_session(url):
            pass


async def test_nobody_there_is_said_at_once(open_session):
    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listener.socket.getsockname()[1]
    await listener.aclose()
    with pytest.raises(AgentUnreachable, match=f"cannot connect to 127.0.0.1:{port}: Connection refused"):
        async with open_session(f"ws://127.0.0.1:{port}"):
            pass


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (
            b"HTTP/1.1 503 No\r\nContent-Length: 4\r\n\r\nbusy",
            "refused the connection: it answers with HTTP status 503",
        ),
        (
            b"HTTP/1.1 401 No\r\nContent-Length: 0\r\n\r\n",
            "refused the connection: it answers with HTTP status 401",
        ),
        (b"", "did not answer as a WebSocket server does"),
        (b"garbage\r\n\r\n", "did not answer as a WebSocket server does"),
    ],
)
async def test_a_server_that_is_no_agent_is_described(open_session, answer, message):
    async def serve(stream):
        await stream.receive_some()
        await stream.send_all(answer)
        await stream.aclose()

    async with trio.open_nursery() as nursery:
        [listener] = await nursery.start(partial(trio.serve_tcp, serve, 0, host="127.0.0.1"))
        with pytest.raises(AgentUnreachable, match=message):
            async with open_session(f"ws://127.0.0.1:{listener.socket.getsockname()[1]}"):
                pass
        nursery.cancel_scope.cancel()


async def test_a_gateway_that_has_its_client_wait_is_heard_out(autojump_clock):
    begun = trio.current_time()
    async with memory_network() as network:
        silent = network.listen("silent", 1)
        with pytest.raises(AgentUnreachable, match="did not answer within"):
            async with trios.open_session(silent.url, dial=network.dial):
                pass
    assert trio.current_time() - begun > GatewayLimits().queue_timeout_s


async def test_a_session_goes_on_after_a_cut_and_a_message_is_taken_once(open_session):
    heard = []

    async def agent(message):
        heard.append(str(message))
        yield "a"
        yield "b"

    async with hosted(agent) as url, open_session(url) as session:
        session_id = session.session_id
        for number in range(10):
            turn = await session.send(str(number))
            session.cut()
            assert await turn.answer() == "ab"
        assert session.session_id == session_id
        assert heard == [str(number) for number in range(10)]


async def test_a_question_is_answered_once_though_the_connection_breaks_around_it(open_session):
    async with hosted(asks) as url, open_session(url) as session:
        for cut_before, cut_after in [(True, False), (False, True), (True, True)]:
            turn = await session.send("x")
            async for event in turn:
                if event.event == "agent.user_confirm":
                    if cut_before:
                        session.cut()
                    await session.respond(event, True)
                    if cut_after:
                        session.cut()
            assert event.content == "done"


async def test_a_cancel_is_sent_again_when_the_connection_breaks(open_session):
    async def agent(message):
        await trio.sleep_forever()

    async with hosted(agent) as url, open_session(url) as session:
        turn = await session.send("x")
        await turn.cancel()
        session.cut()
        assert [event async for event in turn][-1].event == "agent.interrupted"


async def test_a_session_can_be_taken_up_by_another_process(open_session):
    async def agent(message, session):
        session.state["n"] = session.state.get("n", 0) + 1
        return session.state["n"]

    async with hosted(agent) as url:
        async with open_session(url) as session:
            await session.ask("one")
        async with open_session(url, session_id=session.session_id, last_seq=session.last_seq) as again:
            assert await again.ask("two") == 2


async def test_a_session_that_is_not_there_is_lost(open_session):
    async with hosted(echo) as url:
        with pytest.raises(SessionLost):
            async with open_session(url, session_id="ses_unknown"):
                pass


async def test_a_restarted_agent_has_lost_the_session(open_session):
    async with hosted(echo) as url, open_session(url) as session:
        await session.ask("hi")
        url.sessions.end_all("restart")
        assert (await session.receive()).event == "agent.session_end"
        session.cut()
        with pytest.raises(SessionLost, match="no longer has this session"):
            await session.receive()


async def test_the_state_can_be_asked_for(open_session):
    async with hosted(echo) as url, open_session(url) as session:
        await session.ask("hi")
        await session.request_state()
        state = await session.receive()
        assert state.content["history"][0]["content"] == "hi"


async def test_a_client_that_does_not_take_its_events_makes_the_agent_wait(open_session):
    count = 0

    async def agent(message):
        nonlocal count
        for _ in range(5_000):
            count += 1
            yield "x" * 2000

    limits = SessionLimits(buffer_events=100)
    async with hosted(agent, limits=limits) as url, open_session(url) as session:
        turn = await session.send("go")
        await trio.testing.wait_all_tasks_blocked(0.2)
        assert count < 5_000
        with trio.fail_after(180):
            # The whole of it; the final answer repeats its beginning.
            streamed = [len(event.content) async for event in turn if event.event == "agent.partial_answer"]
        assert sum(streamed) == 5_000 * 2000


async def test_headers_go_along(open_session):
    async def agent(message, session):
        return session.client.headers["authorization"]

    async with hosted(agent) as url, open_session(url, headers={"Authorization": "Bearer x"}) as session:
        assert await session.ask("?") == "Bearer x"


async def test_leaving_closes_the_connection_and_keeps_the_session(open_session):
    async with hosted(echo) as url:
        async with open_session(url) as session:
            await session.ask("hi")
        await trio.testing.wait_all_tasks_blocked(0.05)
        [left] = url.sessions._sessions.values()
        assert not left.connected
        async with bare_client(url) as client:
            await client.say("user.reconnect", session_id=session.session_id)
            await client.until("system.notice")


async def test_an_event_that_comes_twice_is_seen_once_and_a_reconnect_says_how_far_it_came(open_session):
    hellos = []

    class Stutters:
        async def serve(self, websocket):
            hellos.append(json.loads(await websocket.get_message()))
            if len(hellos) > 1:
                return
            common = {"session_id": "ses_1", "content": "x"}
            for seq, event in [
                (1, "agent.session_created"),
                (2, "my.event"),
                (2, "my.event"),
                (1, "my.event"),
            ]:
                await websocket.send_message(json.dumps({**common, "event": event, "seq": seq}))
            await websocket.send_message(json.dumps({**common, "event": "agent.thinking", "seq": 3}))
            await websocket.get_message()

    async with hosted(Stutters()) as url, open_session(url, reconnect_for_s=0.2) as session:
        assert [(await session.receive()).seq for _ in range(2)] == [2, 3]
        session.cut()
        with pytest.raises(AgentUnreachable):
            await session.receive()
    assert hellos[1] == {"event": "user.reconnect", "session_id": "ses_1", "last_seq": 3}
