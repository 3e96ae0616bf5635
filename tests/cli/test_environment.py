"""A variable that a shell exports after the manager began reaches no service, and commands say so."""

from __future__ import annotations

import json
from typing import Any

import pytest

AGENT = """
import os
async def agent(message):
    return str(os.environ.get(message))
"""


@pytest.fixture
def old_manager(shell: Any, write: Any) -> Any:
    """A manager of a shell that had no key."""
    write("keyed.py", AGENT)
    shell.ok("register", "a", "keyed.py", "--auto-start")
    return shell


def said(shell: Any, *words: str, **environment: str) -> str:
    done = shell(*words, **environment)
    assert "sk-new" not in done.stdout + done.stderr, "names only"
    return str(done.stderr)


@pytest.mark.parametrize(
    "words", [("start", "a"), ("restart", "a"), ("register", "b", "keyed.py", "--auto-start")]
)
def test_what_is_started_by_an_older_manager_says_what_it_does_not_get(
    old_manager: Any, words: tuple[str, ...]
) -> None:
    note = said(old_manager, *words, OPENAI_API_KEY="sk-new", SOME_WORD="x")
    assert f"OPENAI_API_KEY of this shell did not reach {words[1]}" in note
    assert "SOME_WORD" not in note
    assert "did not reach" not in said(old_manager, "restart", "a")


def test_the_advice_helps(old_manager: Any) -> None:
    key = {"OPENAI_API_KEY": "sk-new"}
    assert "`agentmgr shutdown --leave-running`" in said(old_manager, "restart", "a", **key)
    assert "`agentmgr restart a`" in said(old_manager, "restart", "a", **key)
    old_manager.ok("shutdown", "--leave-running", **key)
    assert "did not reach" not in said(old_manager, "restart", "a", **key)
    assert old_manager.ok("chat", "a", "--once", "OPENAI_API_KEY", **key) == "sk-new\n"


def test_what_a_service_is_given_itself_is_not_missed(old_manager: Any, write: Any) -> None:
    old_manager.ok("change", "a", "--env", "OPENAI_API_KEY=own")
    assert "did not reach" not in said(old_manager, "restart", "a", OPENAI_API_KEY="sk-new")


def test_a_start_that_fails_for_the_want_of_a_key_says_so_too(old_manager: Any, write: Any) -> None:
    write("wanting.py", "import os\nos.environ['OPENAI_API_KEY']\n" + AGENT)
    words = ("register", "b", "wanting.py", "--auto-start", "--restart", "never")
    assert "OPENAI_API_KEY of this shell did not reach b" in said(
        old_manager, *words, OPENAI_API_KEY="sk-new"
    )


def test_apply_and_the_doctor_say_it_too(old_manager: Any, write: Any) -> None:
    write("services.toml", '[services.c]\nagent_factory_path = "keyed.py"\n')
    assert "did not reach c" in said(old_manager, "apply", "services.toml", OPENAI_API_KEY="sk-new")
    found = json.loads(old_manager.ok("doctor", "--format", "json", OPENAI_API_KEY="sk-new"))
    (finding,) = [finding for finding in found if finding["what"] == "environment"]
    assert (finding["result"], "OPENAI_API_KEY" in finding["found"]) == ("warning", True)
    found = json.loads(old_manager.ok("doctor", "--format", "json"))
    assert "environment" not in [finding["what"] for finding in found]


def test_a_variable_of_the_shell_is_handed_over_and_kept(old_manager: Any) -> None:
    key = {"OPENAI_API_KEY": "sk-new"}
    for words in (
        ("restart", "a", "--env-from-shell", "OPENAI_API_KEY"),
        ("restart", "a", "--update-env"),
        ("register", "b", "keyed.py", "--auto-start", "--env-from-shell", "OPENAI_API_KEY"),
    ):
        assert "did not reach" not in said(old_manager, *words, **key)
        assert old_manager.ok("chat", words[1], "--once", "OPENAI_API_KEY") == "sk-new\n"
        old_manager.ok("restart", words[1])
        assert old_manager.ok("chat", words[1], "--once", "OPENAI_API_KEY") == "sk-new\n"
        old_manager.ok("change", words[1], "--env", "OPENAI_API_KEY=")
    old_manager.ok("stop", "a")
    said(old_manager, "start", "a", "--env-from-shell", "OPENAI_API_KEY", **key)
    assert old_manager.ok("chat", "a", "--once", "OPENAI_API_KEY") == "sk-new\n"
    assert "export NOWHERE" in old_manager.fails("restart", "a", "--env-from-shell", "NOWHERE")


def test_a_variable_that_is_required_and_lacks_is_named_and_where_it_is(old_manager: Any, write: Any) -> None:
    required = ("--required-env", "COLOUR")
    failed = old_manager("register", "c", "keyed.py", "--auto-start", "--restart", "never", *required)
    assert failed.returncode == 1
    assert "COLOUR not set, which it requires" in failed.stderr
    assert "`agentmgr restart c --env-from-shell COLOUR`" in failed.stderr
    assert "--env-from-shell COLOUR" in old_manager("status", "c", COLOUR="red").stderr
    assert "--env-from-shell" not in old_manager("status", "c").stderr
    found = json.loads(old_manager("doctor", "--format", "json", COLOUR="red").stdout)
    (finding,) = [each for each in found if (each["what"], each["result"]) == ("service c", "warning")]
    assert "--env-from-shell COLOUR" in finding["advice"]
    old_manager.ok("restart", "c", "--env-from-shell", "COLOUR", COLOUR="red")
    assert old_manager.ok("chat", "c", "--once", "COLOUR") == "red\n"
    assert "--env-from-shell" not in old_manager("status", "c", COLOUR="red").stderr
    declared = '[services.c]\nagent_factory_path = "keyed.py"\nrestart = "never"\nrequired_env = ["COLOUR"]\n'
    write("services.toml", declared)
    assert old_manager.ok("apply", "services.toml") == "nothing to do\n", "the shell's value is kept"
    write("services.toml", declared + 'env = {SIZE = "XL"}\n')
    old_manager.ok("apply", "services.toml")
    assert '"COLOUR" = "red"' in old_manager.ok("export", "--with-env")
    write("colour.env", "COLOUR=blue\n")
    old_manager.ok("register", "d", "keyed.py", "--auto-start", "--env-file", "colour.env", *required)
    assert "--env-from-shell" not in old_manager("status", "d", COLOUR="red").stderr


def test_run_takes_variables_and_the_env_file_beside_the_agent(shell: Any, write: Any) -> None:
    write("keyed.py", AGENT)
    write(".env", "COLOUR=red\nSIZE=1\n")
    write("other.env", "COLOUR=blue\n")
    ports = ("--proxy-port", "0", "--api-port", "0")
    for words, colour, size in (
        (("--env", "SIZE=2"), "red", "2"), (("--env-file", "other.env"), "blue", "2"),
    ):  # fmt: skip
        with shell.background("run", "keyed.py", *words, *ports) as running:
            running.until("keyed is running")
            assert shell.ok("chat", "keyed", "--once", "COLOUR").strip() == colour
            assert shell.ok("chat", "keyed", "--once", "SIZE").strip() == size


def test_an_env_file_beside_the_agent_may_go_again(shell: Any, write: Any) -> None:
    write("keyed.py", AGENT)
    beside = shell.directory / write(".env", "COLOUR=red\n")
    for colour in ("red", "None"):
        with shell.background("run", "keyed.py", "--proxy-port", "0", "--api-port", "0") as running:
            running.until("keyed is running")
            assert shell.ok("chat", "keyed", "--once", "COLOUR").strip() == colour
        beside.unlink(missing_ok=True)
