"""Commands for several services: by pattern, by tag, all; and their logs as one."""

from __future__ import annotations

import re
import time
from typing import Any

SAYS = "import time; print('{0} begins', flush=True); time.sleep(600)"


def make(shell: Any) -> None:
    for name, tags in (("web-1", "web"), ("web-2", "web,new"), ("job", "night")):
        shell.ok("register", name, "--tags", tags, "--", "python3", "-c", SAYS.format(name))


def running(shell: Any) -> set[str]:
    return set(re.findall(r"^ *(\S+) +running", shell.ok("list"), re.MULTILINE))


def test_services_are_chosen_by_pattern_tag_or_all(shell: Any) -> None:
    make(shell)
    said = shell.ok("start", "web-*")
    assert said.endswith("2 of 2 services started\n")
    assert running(shell) == {"web-1", "web-2"}
    assert shell.ok("stop", "--tags", "new").startswith("web-2 ")
    assert running(shell) == {"web-1"}
    assert shell.ok("restart", "--all").startswith("web-1 is running"), "what was stopped stays so"
    assert running(shell) == {"web-1"}
    assert "no service that should run has one of the tags new" in shell.fails("restart", "--tags", "new")
    assert shell.ok("restart", "web-2", "job", "web-*").endswith("3 of 3 services restarted\n")
    assert running(shell) == {"web-1", "web-2", "job"}, "one that is named is started"
    assert shell.ok("stop", "web-?", "job").endswith("3 of 3 services stopped\n")
    assert running(shell) == set()


def test_what_no_service_matches_is_an_error_and_nothing_else_happens(shell: Any) -> None:
    make(shell)
    assert "no service has a name like 'db-*'" in shell.fails("start", "web-1", "db-*")
    assert "no service has one of the tags x" in shell.fails("start", "--tags", "x")
    assert "--all" in shell.fails("stop", code=2)
    assert running(shell) == set()


def test_of_several_the_summary_says_which_failed(shell: Any) -> None:
    make(shell)
    shell.ok("register", "bad", "--restart", "never", "--", "python3", "-c", "raise SystemExit(3)")
    done = shell("start", "--all")
    assert done.returncode == 1
    assert done.stdout.endswith("3 of 4 services started; failed: bad\n")
    assert running(shell) == {"job", "web-1", "web-2"}


def test_a_service_and_what_it_waits_for_start_together(shell: Any) -> None:
    shell.ok("register", "a", "--after", "b", "--", "python3", "-c", SAYS.format("a"))
    shell.ok("register", "b", "--", "python3", "-c", SAYS.format("b"))
    assert shell.ok("start", "a", "b").endswith("2 of 2 services started\n")


def test_logs_of_several_services_are_one_log(shell: Any) -> None:
    make(shell)
    for name in ("web-2", "job", "web-1"):
        shell.ok("start", name)
        while f"{name} begins" not in shell.ok("logs", name, "--since", "1h"):
            time.sleep(0.01)
    for shut in (False, True):
        if shut:
            shell.ok("shutdown")
        assert shell.ok("logs", "--all").splitlines() == [
            "[web-2] web-2 begins", "[job] job begins", "[web-1] web-1 begins"
        ]  # fmt: skip
    assert shell.ok("logs", "web-1", "job").splitlines() == ["[job] job begins", "[web-1] web-1 begins"]
    assert shell.ok("logs", "web-*", "--grep", "^web-2").splitlines() == ["[web-2] web-2 begins"]
    assert re.fullmatch(r"20\d\d-\S+Z job begins\n", shell.ok("logs", "job", "--timestamps"))
    assert shell.ok("logs", "--all", "--since", "2001-01-01", "--tail", "0") == ""
    assert "grep is not a usable pattern" in shell.fails("logs", "job", "--grep", "(")
    assert "neither a span" in shell.fails("logs", "job", "--since", "soon", code=2)
