"""Links are kept as they are given, and where they lead is seen at each start; directories that are gone."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agentmgr.errors import InvalidRequest
from agentmgr.manager.factory_path import same
from agentmgr.process.paths import absolute, current_directory, reason

AGENT = "async def agent(message):\n    return 'release {}'\n"


@pytest.fixture
def current(tmp_path: Path) -> Path:
    """A link to the first of two releases."""
    for number in (1, 2):
        release = tmp_path / "releases" / str(number)
        release.mkdir(parents=True)
        (release / "app.py").write_text(AGENT.format(number))
        (release / "run.sh").write_text('#!/bin/sh\npwd -P > "$OUT"\nexit 1\n')
        (release / "run.sh").chmod(0o755)
    (tmp_path / "current").symlink_to("releases/1")
    return tmp_path / "current"


def turn(current: Path) -> None:
    new = current.with_name("new")
    new.symlink_to("releases/2")
    new.replace(current)


def answer(shell: Any, name: str) -> str:
    return str(shell.ok("chat", name, "--once", "x")).strip()


def seen(shell: Any, name: str) -> tuple[str | None, str]:
    service = json.loads(shell.ok("status", name, "--format", "json"))
    return service["agent_factory_path"], service["config"]["cwd"]


def test_a_restart_runs_what_the_link_leads_to_by_then(
    shell: Any, current: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However the link was given: in the path, by the shell's own directory, in a declaration, with `..`."""
    shell.ok("register", "path", f"{current}/app.py", "--auto-start")
    shell.environment["PWD"] = str(current)
    with monkeypatch.context() as patch:
        patch.chdir(current)
        shell.ok("register", "here", "app.py", "--auto-start", "--db-path", str(shell.paths.database))
    del shell.environment["PWD"]
    (shell.directory / "services.toml").write_text(
        f'[services.declared]\nagent_factory_path = "app.py"\ncwd = "{current}"\n'
    )
    shell.ok("apply", "services.toml")
    names = ("path", "here", "declared")
    assert [answer(shell, name) for name in names] == ["release 1"] * 3
    assert seen(shell, "path") == (f"{current}/app.py", str(shell.directory))
    assert seen(shell, "here") == seen(shell, "declared") == (f"{current}/app.py", str(current))
    turn(current)
    shell.ok("restart", *names)
    assert [answer(shell, name) for name in names] == ["release 2"] * 3
    assert shell.ok("apply", "services.toml") == "nothing to do\n"


def test_a_command_works_where_the_link_leads_by_then(shell: Any, current: Path) -> None:
    out = shell.directory / "out"
    shell.ok(
        *("register", "cmd", "--cwd", str(current), "--env", f"OUT={out}", "--no-auto-restart"),
        *("--", "./run.sh"),
    )
    for number in (1, 2):
        shell.fails("start", "cmd")
        assert out.read_text() == f"{current.parent}/releases/{number}\n"
        if number == 1:
            turn(current)


def test_dots_behind_a_link_mean_what_they_mean_to_the_system(shell: Any, current: Path) -> None:
    (current.parent / "releases" / "shared.py").write_text(AGENT.format("shared"))
    shell.ok("register", "shared", f"{current}/../shared.py", "--auto-start")
    assert answer(shell, "shared") == "release shared"


def test_a_service_that_was_registered_with_what_a_link_led_to_is_the_same(current: Path) -> None:
    release = current.parent / "releases" / "1"
    assert same(f"{release}/app.py:make", f"{current}/app.py:make")
    assert not same(f"{release}/app.py:make", f"{current}/app.py")
    assert not same(f"{release}/app.py", f"{current}/run.sh")
    assert same("package.module:make", "package.module:make")
    assert not same(None, f"{current}/app.py")


@pytest.fixture
def gone(shell: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current directory, which was removed, and made again by another program."""
    directory = shell.directory / "gone"
    directory.mkdir()
    monkeypatch.chdir(directory)
    directory.rmdir()
    directory.mkdir()
    shell.environment |= {"PWD": str(directory), "AGENTMGR_DB": str(shell.paths.database)}
    yield directory
    os.chdir(shell.directory)


def test_in_a_directory_that_was_removed_whole_paths_are_enough(shell: Any, gone: Path) -> None:
    file = str(shell.directory / "my_agent.py")
    (shell.directory / "s.toml").write_text('[services.declared]\ncommand = ["/bin/true"]\nrunning = false\n')
    said = shell("register", "mine", file, "--auto-start")
    assert said.returncode == 0
    assert f"the current directory was removed: it will run in {shell.directory}" in said.stderr
    assert seen(shell, "mine") == (file, str(shell.directory))
    assert answer(shell, "mine") == "echo: x"
    shell.ok("register", "command", "--", "/bin/sleep", "9")
    shell.ok("apply", str(shell.directory / "s.toml"))
    shell.ok("backup", str(shell.directory / "copy.db"))
    assert f"WorkingDirectory={shell.directory}\n" in shell.ok("unit")
    for words in (["doctor"], ["list"], ["info"], ["logs", "mine"], ["change", "mine", "--cwd", "/tmp"]):
        shell.ok(*words)
    shell.ok("shutdown")
    shell.ok("restore", str(shell.directory / "copy.db"))


@pytest.mark.parametrize(
    "words",
    [
        ["register", "a", "a.py"],
        ["register", "a", "package.module:agent"],
        ["register", "a", "--", "./serve"],
        ["register", "a", "/etc/hostname", "--cwd", "here"],
        ["run", "a.py"],
        ["backup", "copy.db"],
        ["restore", "copy.db"],
        ["--db-path", "a.db", "list"],
        ["serve", "a.py"],
    ],
)
def test_and_where_they_are_not_the_directory_is_named(shell: Any, gone: Path, words: list[str]) -> None:
    said = shell.fails(*words)
    advice = "change to one that exists, or give absolute paths"
    assert said == f"Error: the current directory {gone} was removed: {advice}\n"


def test_a_stale_pwd_is_not_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for stale in ("", "relative", "/", "/no/such/directory"):
        monkeypatch.setenv("PWD", stale)
        assert current_directory() == tmp_path
        assert absolute("a/../b") == tmp_path / "a/../b"
    monkeypatch.delenv("PWD")
    assert current_directory() == tmp_path
    with pytest.raises(InvalidRequest, match="the current directory was removed"):
        (tmp_path / "gone").mkdir()
        os.chdir(tmp_path / "gone")
        (tmp_path / "gone").rmdir()
        current_directory()
    os.chdir(tmp_path)


def test_an_error_of_the_system_says_what_it_is_about(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file") as caught:
        (tmp_path / "missing").read_text()
    assert reason(caught.value) == f"{tmp_path}/missing: No such file or directory"
    assert reason(OSError("odd")) == "odd"
