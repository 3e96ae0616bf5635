"""`agentmgr chat` and `serve`, as a person or a script uses them: real processes, a real terminal."""

import json
import os
import pty
import signal
import subprocess
import sys
from contextlib import asynccontextmanager, suppress
from functools import partial

import pytest
import trio
from trio_websocket import ConnectionClosed, serve_websocket

from agentmgr.agent.limits import SessionLimits
from agentmgr.cli.commands.chat import address
from agentmgr.cli.screen import Screen
from agentmgr.cli.talk import Talk
from agentmgr.client import open_session
from agentmgr.errors import InvalidRequest, NotAnAgent
from agentmgr.journal.sqlite import open_journal
from agentmgr.testing.agents import hosted
from tests.conditions import read_to, until


def words(*args):
    return [sys.executable, "-m", "agentmgr", *args]


async def chat(*args, stdin=b""):
    with trio.fail_after(60):
        return await trio.run_process(
            words("chat", *args), stdin=stdin, capture_stdout=True, capture_stderr=True, check=False
        )


async def agent(message, session):
    if message == "fail":
        raise ValueError
    if message == "rm":
        yield "gone" if await session.confirm("rm", {"n": 1}, message="Really?") else "kept"
    elif message == "sleep":
        yield "zzz"
        await trio.sleep_forever()
    else:
        yield "you said "
        yield str(message)


@pytest.mark.parametrize(
    ("target", "url"),
    [
        (None, "ws://localhost:9090"),
        ("my-agent", "ws://localhost:9090/services/my-agent"),
        ("wss://example.org/x", "wss://example.org/x"),
    ],
)
def test_a_target_is_nothing_a_url_or_a_service(target, url):
    assert address(target) == url


def test_a_forgotten_scheme_is_named():
    with pytest.raises(InvalidRequest, match="ws://localhost:9090"):
        address("localhost:9090")


async def test_once_prints_the_final_answer_and_nothing_else():
    async with hosted(agent) as url:
        done = await chat(url, "--once", "hi")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"you said hi\n", b"")


async def test_once_without_an_answer_is_exit_code_1_and_one_line():
    async with hosted(agent) as url:
        done = await chat(url, "--once", "fail")
        assert (done.returncode, done.stdout) == (1, b"")
        assert done.stderr.startswith(b"Error: the agent failed with ValueError")
        assert done.stderr.count(b"\n") == 1
    done = await chat(url, "--once", "hi")
    assert done.returncode == 1
    assert b"Connection refused" in done.stderr
    assert done.stderr.count(b"\n") == 1


async def test_raw_shows_the_events():
    async with hosted(agent) as url:
        done = await chat(url, "--once", "hi", "--raw")
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert [event["event"] for event in events][-1] == "agent.final_answer"
    assert events[-1]["content"] == "you said hi"


async def test_lines_from_a_pipe_are_messages_and_a_backslash_goes_on():
    async with hosted(agent) as url:
        done = await chat(url, stdin=b"one\ntwo \\\nlines\nrm\nyes\nrm\nno\n")
    assert done.stdout.decode() == "you said one\nyou said two \nlines\ngone\nkept\n"
    assert done.returncode == 0


async def test_an_answer_that_is_neither_yes_nor_no_is_asked_for_again():
    async with hosted(agent) as url:
        done = await chat(url, stdin=b"rm\nmaybe\nsure\nrm\nwhat?\n\none\n")
    assert done.stdout.decode() == "gone\nkept\nyou said one\n"
    assert done.returncode == 0


async def test_yes_answers_every_question():
    async with hosted(agent) as url:
        done = await chat(url, "--once", "rm", "--yes")
        assert done.stdout == b"gone\n"
        done = await chat(url, "--once", "rm")
        assert done.stdout == b"kept\n"


@pytest.fixture(autouse=True)
def state(tmp_path, monkeypatch, commands_fork):
    """Where the history of lines is."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))


class Terminal:
    """A process on a pseudo-terminal of its own."""

    def __init__(self, master):
        self._master = master
        self.seen = ""

    async def type(self, text):
        await trio.to_thread.run_sync(os.write, self._master, text.encode())

    async def see(self, text):
        with trio.fail_after(60):
            while text not in self.seen:
                await trio.lowlevel.wait_readable(self._master)
                self.seen += os.read(self._master, 4096).decode()
        before, _, self.seen = self.seen.partition(text)
        return before


@asynccontextmanager
async def at_a_terminal(*args):
    master, slave = pty.openpty()
    process = await trio.lowlevel.open_process(
        words("chat", *args), stdin=slave, stdout=slave, stderr=slave, start_new_session=True
    )
    os.close(slave)
    try:
        yield Terminal(master), process
    finally:
        process.kill()
        await process.wait()
        os.close(master)


async def test_at_a_terminal_ctrl_c_stops_the_answer_then_leaves():
    async with hosted(agent) as url, at_a_terminal(url) as (terminal, process):
        await terminal.see(f"connected to {url}")
        await terminal.see("you> ")
        await terminal.type("hi\n")
        await terminal.see("you said hi")
        await terminal.see("you> ")
        await terminal.type("rm\n")
        await terminal.see("Really? [y/N] ")
        await terminal.type("y\n")
        await terminal.see("gone")
        await terminal.see("you> ")
        await terminal.type("sleep\n")
        await terminal.see("zzz")
        process.send_signal(signal.SIGINT)
        await terminal.see("interrupted")
        await terminal.see("you> ")
        process.send_signal(signal.SIGINT)
        with trio.fail_after(60):
            assert await process.wait() == 0


async def test_lines_are_edited_and_remembered_and_answers_are_not(tmp_path):
    async with hosted(agent) as url:
        async with at_a_terminal(url) as (terminal, process):
            await terminal.see("you> ")
            await terminal.type("hj\x08i\n")  # backspace
            await terminal.see("you said hi")
            await terminal.see("you> ")
            await terminal.type("ouch\x01\x0bhello\n")  # to the beginning, and all behind it is cut
            await terminal.see("you said hello")
            await terminal.see("you> ")
            await terminal.type("rm\n")
            await terminal.see("Really? [y/N] ")
            await terminal.type("y\n")
            await terminal.see("gone")
            await terminal.see("you> ")
            await terminal.type("\x04")
            with trio.fail_after(60):
                assert await process.wait() == 0
        async with at_a_terminal(url) as (terminal, _):
            await terminal.see("you> ")
            await terminal.type("\x1b[A\x1b[A\n")  # twice up: the last one but one
            await terminal.see("you said hello")
    history = tmp_path / "agentmgr" / "chat_history"
    assert history.read_text().split() == ["hi", "hello", "rm", "hello"]
    assert history.stat().st_mode & 0o777 == 0o600


async def test_ctrl_c_at_a_question_ends_the_turn_and_swallows_no_line():
    async with hosted(agent) as url, at_a_terminal(url) as (terminal, process):
        await terminal.see("you> ")
        await terminal.type("rm\n")
        await terminal.see("Really? [y/N] ")
        process.send_signal(signal.SIGINT)
        await terminal.see("interrupted")
        await terminal.see("you> ")
        await terminal.type("hi\n")
        await terminal.see("you said hi")


async def answer_elsewhere(session_id, url, *, confirmed):
    async with open_session(url, session_id=session_id) as other:
        while (event := await other.receive()).event != "agent.user_confirm":
            pass
        await other.respond(event, confirmed)
        while (event := await other.receive()).event != "agent.final_answer":
            pass


async def test_a_prompt_does_not_outlive_its_question_that_is_answered_elsewhere():
    async with hosted(agent) as url, at_a_terminal(url) as (terminal, _):
        await terminal.see("session ses_")
        await terminal.see("you> ")
        await terminal.type("rm\n")
        await terminal.see("Really? [y/N] ")
        [session_id] = url.sessions._sessions
        await terminal.type("ye")  # no line yet: it was for this question, and is no message
        await answer_elsewhere(session_id, url, confirmed=True)
        await terminal.see("\n")
        assert "yes" in await terminal.see("\r\ngone")
        await terminal.see("you> ")
        await terminal.type("hi\n")
        await terminal.see("you said hi\r\n")


async def test_a_question_that_is_answered_elsewhere_takes_no_line_of_a_pipe():
    asked, whose = trio.Event(), []

    async def asking(message, session):
        whose.append(session.id)
        asked.set()
        async for piece in agent(message, session):
            yield piece

    async with hosted(asking) as url:
        process = await trio.lowlevel.open_process(
            words("chat", url), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        try:
            with trio.fail_after(60):
                await process.stdin.send_all(b"rm\n")
                await asked.wait()
                await answer_elsewhere(whose[0], url, confirmed=False)
                assert await read_to(process.stdout, b"\n") == b"kept\n"
                await process.stdin.send_all(b"yes\n")
                await process.stdin.aclose()
                assert b"".join([piece async for piece in process.stdout]) == b"you said yes\n"
                noted = b"".join([piece async for piece in process.stderr])
                assert noted == b"this question is closed: the answer was no\n"
                assert await process.wait() == 0
        finally:
            process.kill()
            await process.wait()


@asynccontextmanager
async def asked_elsewhere(url, message="rm"):
    """Another client's turn, which waits with a question; the test has the session's id, and the turn."""
    async with open_session(url) as other:
        turn = await other.send(message)
        async for event in turn:
            if event.event == "agent.user_confirm":
                break
        yield other.session_id, turn


@asynccontextmanager
async def durable(directory):
    """A host whose sessions keep what clients have acknowledged."""
    instance_id = "ins_0000000000000001"
    async with open_journal(directory / "svc.db", instance_id) as journal:
        async with hosted(agent, journal=journal, instance_id=instance_id) as url:
            yield url


async def test_a_session_that_waits_with_a_question_asks_it_when_it_is_taken_up(tmp_path):
    async with durable(tmp_path) as url, asked_elsewhere(url) as (session_id, turn):
        async with at_a_terminal(url, "--session", session_id) as (terminal, _):
            await terminal.see("Really? [y/n] ")
            await terminal.type("\n")
            await terminal.see("[y/n] ")
            await terminal.type("y\n")
            assert await turn.answer() == "gone"
            await terminal.see("gone")
            await terminal.see("you> ")
        async with at_a_terminal(url, "--session", session_id) as (terminal, _):  # it is not asked again
            assert "Really?" not in await terminal.see("you> ")
            await terminal.type("hi\n")
            await terminal.see("you said hi")


async def test_a_pipe_answers_the_question_of_the_session_that_it_takes_up(tmp_path):
    async with durable(tmp_path) as url:
        for answer, said in ((b"y\nhi\n", b"gone\nyou said hi\n"), (b"no\n", b"kept\n")):
            async with asked_elsewhere(url) as (session_id, _):
                assert (await chat(url, "--session", session_id, stdin=answer)).stdout.endswith(said)
        async with asked_elsewhere(url) as (session_id, _):
            assert (await chat(url, "--session", session_id)).returncode == 0
            assert url.sessions._sessions[session_id].questions.oldest, "the end of a pipe is no answer"


async def test_a_question_of_another_clients_turn_is_asked_at_the_prompt():
    async with hosted(agent) as url, at_a_terminal(url) as (terminal, process):
        await terminal.see("session ses_")
        await terminal.see("you> ")
        [session_id] = url.sessions._sessions
        for answer, said in (("y", "gone"), ("n", "kept")):
            await terminal.type("ye")  # of a message: it is no answer
            async with open_session(url, session_id=session_id) as other:
                turn = await other.send("rm")
                await terminal.see("Really? [y/n] ")
                await terminal.type(f"{answer}\n")
                assert [event.content async for event in turn][-1] == said
            await terminal.see(said)
            await terminal.see("you> ")
        async with open_session(url, session_id=session_id) as other:
            await other.send("rm")
            await terminal.see("Really? [y/n] ")
            process.send_signal(signal.SIGINT)
            with trio.fail_after(60):
                assert await process.wait() == 0
            assert url.sessions._sessions[session_id].questions.oldest, "who leaves has not answered"


async def test_a_script_is_not_asked_for_another_client():
    async with hosted(agent) as url:
        process = await trio.lowlevel.open_process(
            words("chat", url), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        try:
            with trio.fail_after(60):
                await until(lambda: url.sessions._sessions)
                [session_id] = url.sessions._sessions
                async with open_session(url, session_id=session_id) as other:
                    turn = await other.send("rm")
                    assert await read_to(process.stderr, b"\n") == b"another client is asked: Really?\n"
                    await process.stdin.send_all(b"yes\n")
                    assert await turn.answer(confirm=lambda question: False) == "kept"
                    await process.stdin.aclose()
                    assert b"".join([piece async for piece in process.stdout]) == b"kept\nyou said yes\n"
        finally:
            process.kill()
            await process.wait()


async def test_a_prompt_ends_with_the_time_for_its_answer():
    limits = SessionLimits(confirm_timeout=0.3)
    async with hosted(agent, limits=limits) as url, at_a_terminal(url) as (terminal, _):
        await terminal.see("you> ")
        await terminal.type("rm\n")
        await terminal.see("Really? [y/N] ")
        await terminal.see("no answer came in time")
        await terminal.see("kept")


async def test_a_person_at_a_terminal_is_shown_how_to_take_the_session_up_again():
    async with hosted(agent) as url:
        async with at_a_terminal(url) as (terminal, process):
            await terminal.see("you> ")
            await terminal.type("hi\n")
            await terminal.see("you said hi")
            await terminal.see("you> ")
            await terminal.type("\x04")
            await terminal.see(f"`agentmgr chat {url} --session ")
            session_id = await terminal.see("`")
            with trio.fail_after(60):
                assert await process.wait() == 0
        assert [session_id] == list(url.sessions._sessions)


async def test_an_agent_that_does_not_come_back_is_said_to_be_unreachable(monkeypatch):
    asked, noted, said = trio.Event(), trio.Event(), []

    def note(words):
        said.append(words)
        noted.set()

    async def listener(message):
        asked.set()
        return message

    async def talk(url):
        async def locate():
            return url

        screen = Screen(raw=False, quiet=False)
        await Talk(open_session, screen, yes=False).through(locate, None, never())

    monkeypatch.setattr("agentmgr.cli.talk.note", note)
    monkeypatch.setattr("agentmgr.cli.talk.RECONNECT_FOR_S", 0.1)
    reading, writing = os.pipe()
    with trio.fail_after(60), open(reading) as stdin:
        monkeypatch.setattr("sys.stdin", stdin)
        async with trio.open_nursery() as nursery:
            async with hosted(listener) as url:
                nursery.start_soon(talk, url)
                os.write(writing, b"hi\n")
                await asked.wait()
            await noted.wait()
            os.close(writing)
    assert "Connection refused; your" in said[0]


async def never():
    await trio.sleep_forever()
    yield


async def test_a_stranger_s_page_is_not_shown():
    async def answer(stream):
        await read_to(stream, b"\r\n\r\n")
        await stream.send_all(b"HTTP/1.1 404 Not Found\r\ncontent-length: 21\r\n\r\n<html>not here</html>")

    async with trio.open_nursery() as nursery:
        listener, *_ = await nursery.start(trio.serve_tcp, answer, 0)
        done = await chat(f"ws://127.0.0.1:{listener.socket.getsockname()[1]}", "--once", "hi")
        nursery.cancel_scope.cancel()
    assert done.returncode == 1
    assert b"<html>" not in done.stderr
    assert b"HTTP status 404, as no agentmgr gateway" in done.stderr


async def test_serve_says_where_it_answers_and_ends_at_ctrl_c(tmp_path):
    (tmp_path / "a.py").write_text("async def agent(message):\n    return message.upper()\n")
    process = await trio.lowlevel.open_process(
        words("serve", str(tmp_path / "a.py"), "--port", "0"), stdout=subprocess.PIPE
    )
    try:
        with trio.fail_after(60):
            line = (await read_to(process.stdout, b"\n")).decode()
            url = line.split("answers at ")[1].split(";")[0]
            assert (await chat(url, "--once", "hi")).stdout == b"HI\n"
            process.send_signal(signal.SIGINT)
            assert await process.wait() == 0
    finally:
        process.kill()
        await process.wait()


async def test_serve_says_what_is_wrong_with_a_file(tmp_path):
    (tmp_path / "a.py").write_text("def create_agent():\n    raise KeyError('API_KEY')\n")
    with trio.fail_after(60):
        done = await trio.run_process(
            words("serve", str(tmp_path / "a.py")), capture_stderr=True, check=False
        )
    assert done.returncode == 1
    assert b"raise KeyError('API_KEY')" in done.stderr


@asynccontextmanager
async def plain_server(answer):
    """A WebSocket server that is no agent: it sends `answer(message)`, and closes where that is None."""

    async def serve(request):
        websocket = await request.accept()
        with suppress(ConnectionClosed):
            while (text := answer(await websocket.get_message())) is not None:
                await websocket.send_message(text)
            await websocket.aclose(4000)

    async with trio.open_nursery() as nursery:
        server = await nursery.start(partial(serve_websocket, serve, "127.0.0.1", 0, ssl_context=None))
        yield f"ws://127.0.0.1:{server.port}"
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("answer", "heard"), [(str.upper, b"HI\n"), (str, b"hi\n"), (lambda text: text.encode(), b"hi\n")]
)
async def test_a_server_that_is_no_agent_gets_plain_text(answer, heard):
    async with plain_server(answer) as url:
        done = await chat(url, "--once", "hi")
        assert (done.returncode, done.stdout, done.stderr) == (0, heard, b"")
        done = await chat(url, stdin=b"hi\n\nhi\n")
        assert (done.returncode, done.stdout, done.stderr) == (0, heard * 2, b"")
        with pytest.raises(NotAnAgent):
            async with open_session(url):
                pass


async def test_a_server_that_is_no_agent_and_closes_is_an_error():
    async with plain_server(lambda text: "what?" if "create_session" in text else None) as url:
        done = await chat(url, "--once", "hi")
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr == f"Error: {url} closed the connection\n".encode()
