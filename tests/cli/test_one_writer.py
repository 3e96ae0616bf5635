"""Whatever a command shows of strangers' words on a terminal, none of them acts on it.

The words come the ways they come in life: a client's close reason and path, an agent's answers, output and
errors, what a command says of itself by sd_notify, another server's refusal, a file to apply, what was typed.
"""

from __future__ import annotations

import json
import os
import pty
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
from websockets.sync.client import connect

HOSTILE = "\x1b]0;OWNED\x07\x1b[2J\x9b2J\u202e\u2066\u2028\x7f\rFORGED"

AGENT = f"""
HOSTILE = {HOSTILE!r}

def create_agent():
    async def answer(message, session):
        print("output", HOSTILE, flush=True)
        if message == "fail":
            raise ValueError(HOSTILE)
        if message == "ask":
            return await session.confirm("tool", {{HOSTILE: HOSTILE}}, message=HOSTILE)
        await session.emit("agent.thinking", HOSTILE)
        await session.emit("agent.tool_call", {{"tool": HOSTILE, "args": {{HOSTILE: HOSTILE}}}})
        return "answer " + HOSTILE + " half \\ud83d"
    return answer
"""

SAYS = f"""
import os, socket, sys
with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
    notify.connect(os.environ["NOTIFY_SOCKET"].replace("@", "\\0"))
    notify.send(b"READY=1\\nSTATUS=" + {HOSTILE.replace(chr(13), "")!r}.encode())
print("last words", {HOSTILE!r}, file=sys.stderr, flush=True)
if "fail" in sys.argv:
    sys.exit(3)
sys.stdin.read()
import signal
signal.pause()
"""

# What the commands themselves may send: styles, `--watch`'s clearing, and what rich asks for around a table.
OURS = re.compile(r"\x1b\[[0-9;]*m|\x1b\[H\x1b\[2J\x1b\[3J|\r\n")
ACTS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]")


def on_terminal(shell: Any, *words: str, typed: str = "") -> str:
    """What a command shows on a terminal of its own, however it ends."""
    ours, theirs = pty.openpty()
    process = shell.popen(
        [sys.executable, "-m", "agentmgr", *words],
        cwd=shell.directory,
        env={**shell.environment, "TERM": "xterm", "COLUMNS": "2000"},
        stdin=theirs if typed else subprocess.DEVNULL,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    shown = b""
    with process, os.fdopen(ours, "r+b", buffering=0) as terminal:
        terminal.write(typed.encode())
        try:
            while piece := terminal.read(65536):
                shown += piece
        except OSError:  # EIO: the last one who had it open has closed it
            pass
    return shown.decode("utf-8", "backslashreplace")


def check(shown: str, *, strangers: bool = True) -> None:
    if strangers:
        assert "FORGED" in shown, f"nothing of the stranger is in it: {shown}"
    assert not ACTS.search(OURS.sub("", shown)), shown
    assert not re.search(r"^FORGED", shown, re.M), shown
    assert "Traceback" not in shown
    assert "internal error" not in shown


@contextmanager
def refusing_server() -> Iterator[int]:
    """Answers one request with a refusal in a stranger's words."""
    body = json.dumps({"code": HOSTILE, "reason": HOSTILE}).encode()
    head = f"HTTP/1.1 403 Forbidden\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"

    def serve() -> None:
        client, _ = listener.accept()
        with client:
            client.recv(4096)
            client.sendall(head.encode() + body)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        yield listener.getsockname()[1]
        thread.join()


@pytest.fixture
def visited(shell: Any) -> Iterator[tuple[Any, int]]:
    """A manager, a gateway, services with strangers' words in all that they show, a client that left."""
    (shell.directory / "evil.py").write_text(AGENT)
    (shell.directory / "says.py").write_text(SAYS)
    shell.ok("register", "evil", "evil.py")
    shell.ok("register", "says", "--", sys.executable, "says.py")
    shell.ok("register", "fails", "--restart", "never", "--", sys.executable, "says.py", "fail")
    shell.ok("routes", "add", "rule", "--when", "query.x", "equals", "1", "--service", "evil")
    with shell.background("daemon", "--proxy-port", "0") as daemon:
        port = int(daemon.until("gateway at").rpartition(":")[2])
        shell.ok("start", "evil")
        shell("start", "says")
        shell("start", "fails")
        with connect(f"ws://127.0.0.1:{port}/services/evil") as client:
            client.send("hi")
            client.recv()
            client.close(1000, HOSTILE.replace("\r", "")[:100])
        yield shell, port


SHOW_STRANGERS_WORDS: list[list[str]] = [
    ["status", "fails"],
    ["logs", "evil"],
    ["logs", "fails"],
    ["events"],
    ["events", "--format", "json"],
    ["start", HOSTILE],
    [HOSTILE],
    ["list", f"--{HOSTILE}"],
    ["list", "--status", HOSTILE],
    ["register", HOSTILE, "evil.py"],
    ["register", "x", f"{HOSTILE}.py"],
    ["register", "x", "evil.py", "--cwd", HOSTILE],
    ["change", "evil", "--tags", HOSTILE],
    ["disconnect", HOSTILE],
    ["routes", "test", "--header", HOSTILE],
    ["tokens", "revoke", HOSTILE],
    ["chat", "evil", "--once", "hi"],
    ["chat", "evil", "--once", "hi", "--raw"],
    ["chat", HOSTILE],
    ["apply", "hostile.toml"],
    ["apply", f"{HOSTILE}.toml"],
    ["backup", f"/nowhere/{HOSTILE}"],
    ["serve", f"{HOSTILE}.py"],
]
OTHERS: list[list[str]] = [
    ["status", "says"],
    ["routes", "test", "--path", f"/{HOSTILE}"],
    ["routes", "add", "r", "--when", HOSTILE, "equals", "1"],
    ["chat", "evil", "--once", "fail"],
    ["chat", f"ws://127.0.0.1:1/{HOSTILE}"],
    ["restore", HOSTILE],
    ["run", f"{HOSTILE}.py"],
    ["list", "--db-path", f"/nowhere/{HOSTILE}"],
    ["export"],
]


def test_no_words_of_a_stranger_act_on_the_terminal(visited: tuple[Any, int]) -> None:
    here, _ = visited
    (here.directory / "hostile.toml").write_text(f"{json.dumps(HOSTILE)} = 1\n", "utf-8")
    wrong = {}
    tried = SHOW_STRANGERS_WORDS + OTHERS
    with ThreadPoolExecutor(4) as threads:
        for words, shown in zip(
            tried, threads.map(lambda words: on_terminal(here, *words), tried), strict=True
        ):
            try:
                check(shown, strangers=words in SHOW_STRANGERS_WORDS)
            except AssertionError as error:
                wrong[" ".join(words)] = str(error)
    assert not wrong, "\n\n".join(f"agentmgr {words}: {error[:600]}" for words, error in wrong.items())
    shown = on_terminal(here, "chat", "evil", typed="hi\nask\nn\n\x04")
    check(shown.replace("\x04", ""))
    with refusing_server() as port:
        check(on_terminal(here, "chat", f"ws://127.0.0.1:{port}", "--once", "hi"))


def test_what_the_encoding_of_the_terminal_lacks_is_escaped(here: Any) -> None:
    here.ok("register", "a", "my_agent.py", "--description", "天气")
    done = here.process("status", "a", PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stderr) == (0, "")
    assert r"\u5929\u6c14" in done.stdout


def test_open_connections_and_the_managers_own_log_neither(visited: tuple[Any, int]) -> None:
    here, port = visited
    with connect(f"ws://127.0.0.1:{port}/services/evil?session_id=%1b%5b2J&x=%E2%80%AE%9B"):
        check(on_terminal(here, "connections"), strangers=False)
        check(on_terminal(here, "connections", "--format", "json"), strangers=False)
