"""`apply` compares what the files of a service contain, not only what the declaration says."""

from __future__ import annotations

from typing import Any

DECLARED = """
[services.web]
agent_factory_path = "web.py"
env_file = "web.env"
restart_delay = 0
max_restart_count = 0
"""


def agent(text: str) -> str:
    return f"import os\nasync def agent(message):\n    return '{text} ' + os.environ['COLOUR']\n"


def answer(shell: Any) -> str:
    return str(shell.ok("chat", "web", "--once", "hi").strip())


def test_what_the_agent_file_and_the_env_file_contain_is_compared(shell: Any, write: Any) -> None:
    write("services.toml", DECLARED)
    write("web.py", agent("one"))
    write("web.env", "COLOUR=red\n")
    shell.ok("apply", "services.toml")
    assert answer(shell) == "one red"
    assert "nothing to do" in shell.ok("apply", "services.toml")

    write("web.py", agent("two"))
    assert "restart service web" in shell.ok("apply", "services.toml", "--dry-run")
    kept = shell("apply", "services.toml", "--no-restart")
    assert "is not live" in kept.stderr
    assert answer(shell) == "one red"
    shell.ok("apply", "services.toml")
    assert answer(shell) == "two red"
    assert "nothing to do" in shell.ok("apply", "services.toml")

    shell.ok("shutdown", "--leave-running")
    write("web.env", "COLOUR=blue\n")
    assert "restart service web" in shell.ok("apply", "services.toml")
    assert answer(shell) == "two blue"


def test_what_does_not_start_leaves_what_ran_and_fails_each_time(shell: Any, write: Any) -> None:
    write("services.toml", DECLARED)
    write("web.py", agent("one"))
    write("web.env", "COLOUR=red\n")
    shell.ok("apply", "services.toml")
    write("web.py", "async def agent(:\n")
    for _ in range(2):
        assert "SyntaxError" in shell.fails("apply", "services.toml")
        assert answer(shell) == "one red"


def test_one_that_was_given_up_is_started_when_its_file_is_mended(shell: Any, write: Any) -> None:
    write("services.toml", DECLARED)
    write("web.py", "async def agent(:\n")
    write("web.env", "COLOUR=red\n")
    shell.fails("apply", "services.toml")
    said = shell.fails("apply", "services.toml")
    assert "was given up" in said
    assert "--retry" in said
    write("web.py", agent("mended"))
    shell.ok("apply", "services.toml")
    assert answer(shell) == "mended red"
