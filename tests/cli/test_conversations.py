"""`sessions` and `questions`: with a manager, and off the journals where none runs."""

from __future__ import annotations

import json
from typing import Any

import pytest
import trio
from websockets.sync.client import connect

from agentmgr.journal.journal import Accepted, Asked, Frame, Question, SessionRecord, TurnRecord
from agentmgr.journal.sqlite import open_journal

HOSTILE = "\x1b]0;OWNED\x07"

AGENT = """
def create_agent():
    async def answer(message, session):
        if message == "ask":
            return "paid" if await session.confirm("pay", {}, message="really?\\x1b[2J") else "not paid"
        return f"echo: {message}"
    return answer
"""


@pytest.fixture
def talk(shell: Any, write: Any) -> str:
    """The endpoint of a service that runs."""
    # That long its end waits for the answer to a question.
    shell.ok("register", "talk", write("talking.py", AGENT), "--drain-timeout", "1", "--auto-start")
    return str(json.loads(shell.ok("status", "talk", "--format", "json"))["endpoint"])


def ask(client: Any, session_id: str | None, text: str, until: str) -> dict[str, Any]:
    message = {"event": "user.message", "content": text}
    client.send(json.dumps(message if session_id is None else {**message, "session_id": session_id}))
    return heard(client, until)


def heard(client: Any, until: str) -> dict[str, Any]:
    while True:
        event = json.loads(client.recv(timeout=20))
        if event["event"] == until:
            return dict(event)


def test_a_conversation_is_seen_and_steered(shell: Any, talk: str) -> None:
    with connect(talk) as client:
        first = ask(client, None, "hello " + HOSTILE, "agent.final_answer")
        session_id = first["session_id"]
        short = session_id[:12]
        table = shell.ok("sessions", "talk")
        assert short in table
        assert session_id not in table
        assert "idle" in table
        assert json.loads(shell.ok("sessions", "list", "talk", "--format", "json"))[0]["turns"] == 1
        for text in (
            shell.ok("sessions", "show", short),
            shell.ok("sessions", "watch", short, "--no-follow"),
        ):
            assert "echo: hello" in text
            assert "\x1b" not in text
        assert "\n  you> hello " in shell.ok("sessions", "show", short), (
            "each part has its own line, indented"
        )
        said = shell.ok("sessions", "watch", short, "--no-follow").splitlines()
        assert said[0].startswith("you> hello ")
        assert said[1].startswith("echo: hello ")

        shell.ok("sessions", "say", short, "from the terminal")
        assert heard(client, "agent.final_answer")["content"] == "echo: from the terminal"
        assert "no question is open" in shell("questions").stderr
        ask(client, session_id, "ask", "agent.user_confirm")
        asked = shell.ok("questions")
        assert "really?" in asked
        assert "gone" not in asked
        assert "\x1b" not in asked
        assert "asking" in shell.ok("sessions", "talk", "--state", "asking")
        assert "no such question" in shell.fails("questions", "answer", "ses_x", "yes")
        assert "answered yes" in shell.ok("questions", "answer", short, "yes")
        assert heard(client, "agent.final_answer")["content"] == "paid"
        watched = shell.ok("sessions", "watch", short, "--no-follow")
        assert watched.index("you> ask") < watched.index("? really?") < watched.index("! the answer was yes")
        assert "no turn runs" in shell.fails("sessions", "cancel", short)
        ask(client, session_id, "ask", "agent.user_confirm")
        assert "answered no" in shell.ok("sessions", "answer", short, "no")
        assert heard(client, "agent.final_answer")["content"] == "not paid"
        ask(client, session_id, "ask", "agent.user_confirm")
        shell.ok("sessions", "cancel", short)
        heard(client, "agent.interrupted")

        lines = [json.loads(line) for line in shell.ok("sessions", "export", short).splitlines()]
        assert [line["kind"] for line in lines[:2]] == ["session", "turn"]
        assert lines[-1]["event"] == "agent.interrupted"
        assert shell.ok("chat", "talk", "--session", short, "--once", "me again") == "echo: me again\n"
        assert session_id in shell.ok("sessions", "end", short)
        assert heard(client, "agent.session_end")["content"]["reason"] == "ended"
    assert "no session begins with" in shell.fails("sessions", "show", short)
    assert "no sessions that are kept" in shell("sessions", "talk").stderr


def test_the_same_is_read_and_erased_where_no_manager_runs(shell: Any, talk: str) -> None:
    with connect(talk) as client:
        session_id = ask(client, None, "hello", "agent.final_answer")["session_id"]
        ask(client, session_id, "ask", "agent.user_confirm")
    shell.ok("shutdown")
    short = session_id[:10]
    assert short in shell.ok("sessions", "talk")
    assert "echo: hello" in shell.ok("sessions", "show", short)
    assert "echo: hello" in shell.ok("sessions", "watch", short, "--no-follow")
    assert len(shell.ok("sessions", "export", short).splitlines()) > 4
    assert "agentmgr daemon" in shell.fails("sessions", "say", short, "x")
    shell.ok("sessions", "end", short)
    assert "no session begins with" in shell.fails("sessions", "show", short)
    shell.ok("start", "talk")
    assert "no sessions that are kept" in shell("sessions", "talk").stderr


def test_a_service_with_sessions_is_not_forgotten_by_accident(shell: Any, talk: str) -> None:
    with connect(talk) as client:
        ask(client, None, "hello", "agent.final_answer")
    refused = shell.fails("unregister", "talk")
    assert "1 session of 'talk' would be erased" in refused
    assert "--force" in refused
    assert "talk" in shell.ok("list"), "it was not touched"
    assert len(list(shell.paths.sessions.glob("*.db"))) == 1
    shell.ok("unregister", "talk", "--force")
    assert not list(shell.paths.sessions.glob("*.db*"))


def test_a_copy_has_the_sessions_and_puts_them_back(shell: Any, talk: str) -> None:
    with connect(talk) as client:
        session_id = ask(client, None, "before", "agent.final_answer")["session_id"]
        shell.ok("backup", "copy.db")
        ask(client, session_id, "after the copy", "agent.final_answer")
    assert "is there already" in shell.fails("backup", "copy.db")
    assert "before" in shell.ok("sessions", "show", session_id[:12], "--db-path", "copy.db")
    shell.ok("shutdown")
    said = shell.ok("restore", "copy.db")
    (kept,) = shell.paths.directory.glob("sessions.before-restore-*")
    assert f"{kept}, until you remove it" in said.splitlines()[-1]
    shell.ok("restore", "copy.db")
    (kept_now,) = shell.paths.directory.glob("sessions.before-restore-*")
    assert kept_now != kept
    shown = shell.ok("sessions", "show", session_id[:12])
    assert "before" in shown
    assert "after the copy" not in shown
    shell.ok("start", "talk")
    endpoint = json.loads(shell.ok("status", "talk", "--format", "json"))["endpoint"]
    with connect(endpoint) as client:
        assert ask(client, session_id, "again", "agent.final_answer")["content"] == "echo: again"
    shell.ok("shutdown")
    shell.ok("backup", "offline.db")
    assert "again" in shell.ok("sessions", "show", session_id[:12], "--db-path", "offline.db")
    for file in shell.directory.glob("*.db.d/sessions"):
        assert file.stat().st_mode & 0o077 == 0
        assert all(copy.stat().st_mode & 0o077 == 0 for copy in file.iterdir())


def test_a_copy_without_sessions_leaves_those_that_are_there(shell: Any, talk: str) -> None:
    shell.ok("backup", "copy.db")
    assert not (shell.directory / "copy.db.d").exists() or list(shell.directory.glob("copy.db.d/sessions/*"))
    with connect(talk) as client:
        session_id = ask(client, None, "hello", "agent.final_answer")["session_id"]
    shell.ok("shutdown")
    for file in shell.directory.glob("copy.db.d/sessions/*"):
        file.unlink()
    shell.ok("restore", "copy.db")
    assert "hello" in shell.ok("sessions", "show", session_id[:12])


async def stock(path: Any, name: str | None = None) -> None:
    async with open_journal(path, "inst_gone") as journal:
        for session_id in ("ses_aa1" + "0" * 29, "ses_aa2" + "0" * 29):
            held = await journal.create(
                SessionRecord(session_id, "ann", 1.0, 1.0, name and name + session_id)
            )
            turn = TurnRecord(1, "turn_1", json.dumps({"content": HOSTILE, "metadata": {}}), 2.0)
            question = Question("ask_1", json.dumps({"tool": HOSTILE, "args": {}}), 3.0)
            line = json.dumps({"event": "agent.tool_call", "content": {"tool": HOSTILE, "args": {}}})
            held.write(Accepted(turn), Frame(1, 1, line.encode()), Asked(question))
            await held.settled()


def test_what_clients_and_agents_wrote_does_not_act_and_ids_are_told_apart(here: Any) -> None:
    stocked(here)
    for words in (
        ["sessions", "one"],
        ["sessions", "show", "ses_aa1"],
        ["sessions", "watch", "ses_aa1", "--no-follow"],
        ["sessions", "watch", "ses_aa1", "--no-follow", "--raw"],
        ["sessions", "export", "ses_aa1"],
        ["questions"],
        ["questions", "list", "--format", "json"],
    ):
        said = here.ok(*words)
        assert "\x1b" not in said, words
        assert "\x07" not in said, words
    assert "2 sessions begin with 'ses_aa'" in here.fails("sessions", "show", "ses_aa")
    assert here.ok("sessions", "list", "one") == here.ok("sessions", "one")
    assert here.ok("sessions") == here.ok("sessions", "one")
    assert "no such sessions" in here("sessions", "one", "--owner", "bob").stderr


def stocked(here: Any, name: str | None = None) -> None:
    here.ok("register", "one", "my_agent.py")
    service = json.loads(here.ok("list", "--format", "json"))[0]
    trio.run(stock, here.paths.sessions / f"{service['service_id']}.db", name)


def test_of_a_wide_name_a_table_shows_the_beginning(here: Any) -> None:
    stocked(here, "名前" * 100)
    head, *rows = here.ok("sessions", "one").splitlines()
    assert [row.index("…") - row.index("名") for row in rows] == [15, 15], "letters of two columns each"
    assert {row.index("ann") + 15 for row in rows} == {head.index("OWNER")}
    assert "名前" * 100 in here.ok("sessions", "list", "one", "--format", "json")


def test_a_question_whose_instance_is_gone_is_shown_as_such(here: Any) -> None:
    stocked(here)
    listed = here("questions")
    assert listed.stdout.count("(its instance is gone)") == 2
    assert "asked again where --on-crash is retry" in listed.stderr
    assert "asked again where --on-crash is retry" in here.ok("sessions", "show", "ses_aa1")
    found = json.loads(here.ok("questions", "list", "--format", "json"))
    assert [one["instance_id"] for one in found] == [None, None]
