"""`agentmgr apply services.toml` and `agentmgr export`."""

from __future__ import annotations

import json
import tomllib
from typing import Any

import pytest

FILE = """
[services.weather]
agent_factory_path = "my_agent.py"
description = "Forecasts"
tags = ["weather", "x"]
instances = "0..8"
max_sessions = 5
running = false
env = {API_KEY = "sk-secret", LANG = "zh"}
on_failure = "https://hooks.example/sk-secret"

[services."dotted.name"]
command = ["node", "server.js", "--port", "{port}"]
running = false

[rules.vip]
priority = 1
conditions = [{field = "user_agent", operator = "contains", value = "VIP", case_sensitive = false}]
target_services = ["weather"]
"""


def services(shell: Any) -> dict[str, Any]:
    return {s["name"]: s for s in json.loads(shell.ok("list", "--format", "json"))}


def test_what_is_declared_is_made_and_made_once(here: Any, write: Any) -> None:
    write("services.toml", FILE)
    shown = here.ok("apply", "services.toml", "--dry-run")
    assert "create service weather" in shown
    assert "max_sessions: 5" in shown
    assert "weight" not in shown, "what is as ever needs no word"
    assert '"operator": "contains"' in shown
    assert "sk-secret" not in shown
    assert services(here) == {}, "a dry run changes nothing"
    here.ok("apply", "services.toml")
    found = services(here)
    assert set(found) == {"weather", "dotted.name"}
    assert found["weather"]["config"]["max_sessions"] == 5
    assert found["weather"]["agent_factory_path"] == str(here.directory / "my_agent.py")
    (rule,) = json.loads(here.ok("routes", "list", "--format", "json"))
    assert (rule["name"], rule["priority"], rule["target_services"]) == ("vip", 1, ["weather"])
    second = here.ok("apply", "services.toml")
    assert "create" not in second
    assert "description" not in second


def test_what_differs_is_changed_and_nothing_else(here: Any, write: Any) -> None:
    write("services.toml", FILE.replace('API_KEY = "sk-secret", ', "").replace("/sk-secret", ""))
    here.ok("apply", "services.toml")
    assert here.ok("apply", "services.toml") == "nothing to do\n"
    changed = (
        FILE.replace('API_KEY = "sk-secret", ', "")
        .replace("/sk-secret", "")
        .replace("= 5", "= 6")
        .replace("= 1", "= 2")
    )
    write("services.toml", changed)
    shown = here.ok("apply", "services.toml")
    assert "max_sessions: 5 -> 6" in shown
    assert "priority: 1 -> 2" in shown
    assert shown.count("->") == 2
    assert services(here)["weather"]["config"]["max_sessions"] == 6
    write("services.toml", "")
    assert here.ok("apply", "services.toml") == "nothing to do\n"
    pruned = here.ok("apply", "services.toml", "--prune")
    assert pruned.count("remove") == 3
    assert services(here) == {}


def test_what_is_exported_can_be_applied(here: Any, write: Any) -> None:
    write("services.toml", FILE)
    here.ok("apply", "services.toml")
    assert here.ok("apply", "services.toml") == "nothing to do\n"
    done = here("export")
    assert "sk-secret" not in done.stdout
    assert "zh" not in done.stdout
    assert "--with-env" in done.stderr
    exported = tomllib.loads(done.stdout)
    assert exported["services"]["weather"]["max_sessions"] == 5
    assert exported["services"]["weather"]["instances"] == "0..8"
    assert "session_timeout" not in exported["services"]["weather"], "defaults are left out"
    write("exported.toml", done.stdout)
    assert here.ok("apply", "exported.toml", "--prune") == "nothing to do\n"
    assert "sk-secret" in here.ok("export", "--with-env"), "they stayed as they were"
    refused = here("--db-path", "other.db", "apply", "exported.toml")
    assert refused.returncode == 1
    assert "services.weather" in refused.stderr
    assert "API_KEY" in refused.stderr
    assert "--with-env" in refused.stderr
    assert not (here.directory / "other.db").exists()


def test_a_complete_export_has_the_secrets_and_says_so(here: Any, write: Any) -> None:
    write("services.toml", FILE)
    here.ok("apply", "services.toml")
    complete = here("export", "--with-env")
    assert "contains secrets" in complete.stderr
    assert complete.stdout.startswith("# Contains secrets")
    (here.directory / "complete.toml").write_text("readable by all, and longer than what comes" * 100)
    (here.directory / "complete.toml").chmod(0o644)
    here.ok("export", "--with-env", "--output", "complete.toml")
    assert (here.directory / "complete.toml").read_text() == complete.stdout
    assert (here.directory / "complete.toml").stat().st_mode & 0o777 == 0o600
    assert here.ok("apply", "complete.toml") == "nothing to do\n"
    before = services(here)
    here.ok("--db-path", "other.db", "apply", "complete.toml")
    after = {s["name"]: s for s in json.loads(here.ok("--db-path", "other.db", "list", "--format", "json"))}
    for name, service in before.items():
        assert after[name]["config"] == service["config"]
        assert (after[name]["tags"], after[name]["port"]) == (service["tags"], service["port"])
    assert here.ok("--db-path", "other.db", "export", "--with-env") == complete.stdout


def test_no_command_shows_the_value_of_a_variable_that_is_not_public(shell: Any) -> None:
    values = {
        "DB_PASS": "p-1",
        "PASSPHRASE": "p-2",
        "CONN": "Server=x;Pwd=p-3",
        "JWT": "p-4",
        "REGION": "eu-5",
    }
    env = [word for name, value in values.items() for word in ("--env", f"{name}={value}")]
    (shell.directory / "more.env").write_text("FROM_FILE=p-6\n")
    refused = shell.fails("register", "one", "my_agent.py", "--env-public", "REGION=eu")
    assert "must have names alone, not 'REGION=eu'; values are in `env`" in refused
    shell.ok("register", "one", "my_agent.py", *env, "--env-public", "REGION", "--env-file", "more.env")
    shell.ok("start", "one")
    shell.ok("change", "one", "--env", "SLACK_WEBHOOK=https://hooks.example/p-7")
    shell.ok("change", "one", "--on-failure", "https://me:p-8@hooks.example/p-8?key=p-8")
    assert "https://hooks.example/***" in shell.ok("status", "one")
    shell.ok("restart", "one")
    for words in (
        ("list", "--format", "json"), ("status", "one"), ("status", "one", "--format", "json"), ("export",),
        ("events", "--format", "json"), ("stats", "--format", "json"), ("info",), ("logs", "one"),
    ):  # fmt: skip
        assert "p-" not in shell.ok(*words), words
    assert "eu-5" in shell.ok("export")
    assert "p-" not in shell.paths.daemon_log.read_text()
    assert "p-7" in (complete := shell.ok("export", "--with-env"))
    assert "https://me:p-8@hooks.example/p-8?key=p-8" in complete
    assert "p-" not in shell.ok("unregister", "one")


def test_what_is_to_run_is_started_restarted_and_stopped(shell: Any, write: Any) -> None:
    text = '[services.one]\nagent_factory_path = "my_agent.py"\nmax_sessions = {}\nrunning = {}\n'
    write("services.toml", text.format(1, "true"))
    assert "start service one" in shell.ok("apply", "services.toml")
    first = services(shell)["one"]
    assert first["status"] == "running"
    write("services.toml", text.format(2, "true"))
    shell.ok("apply", "services.toml")
    second = services(shell)["one"]
    assert second["status"] == "running"
    assert second["instances"][0]["pid"] != first["instances"][0]["pid"], "it runs as declared"
    secret = text + 'env = {{API_KEY = "{}"}}\n'
    pids = []
    for key in ("sk-1", "sk-1", "sk-2"):
        write("services.toml", secret.format(2, "true", key))
        shell.ok("apply", "services.toml")
        pids.append(services(shell)["one"]["instances"][0]["pid"])
    assert pids[0] == pids[1] != pids[2], "restarted for a new secret, and not for the same one"
    write("services.toml", text.format(2, "false"))
    assert "stop service one" in shell.ok("apply", "services.toml")
    assert services(shell)["one"]["status"] == "stopped"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[services.x]\nmax_sessions = many\nx = 1", "line 2"),
        ("[services.x]\nmax_sessions = 'many'", "services.x.max_sessions"),
        ("[services.x]\ncolour = 'red'", "services.x.colour"),
        ("[services.x]\nagent_factory_path = 'nowhere.py'", "services.x.agent_factory_path"),
        ("[services.x]\nname = 'y'", "services.x.name"),
        ("[services.x]\nweight = 2", "services.x: give"),
        ("[rules.x]\nconditions = [{field = 'path', operator = 'like'}]", "rules.x.conditions[0].operator"),
        ("[service.x]", "service"),
        ("services = 3", "services"),
        ("services = " + "[" * 100_000, "nested too deep"),
        ('[services.x]\ncommand = ["x"]\ncwd = "/\\u0000"', "services.x.cwd must have no NUL characters"),
        ('[services.x]\ncommand = ["x"]\nenv_file = "\\u0000"', "services.x.env_file must have no NUL"),
        (f"[services.x]\nagent_factory_path = '{'x' * 5000}'", "File name too long"),
    ],
)
def test_a_mistake_is_named_with_the_file_and_the_line_or_key(
    here: Any, write: Any, text: str, said: str
) -> None:
    write("services.toml", text)
    (line,) = here.fails("apply", "services.toml").splitlines()
    assert "services.toml" in line
    assert said in line
    assert "none.toml" in here.fails("apply", "none.toml")


def test_all_mistakes_are_said_at_once(here: Any, write: Any) -> None:
    write("services.toml", "[services.x]\ncomand = ['x']\n[services.y]\nweight = 2\n[rules.z]\nto = 'x'")
    said = here.fails("apply", "services.toml").splitlines()
    assert len(said) == 3
    assert "services.x.comand unknown field; command is one" in said[0]
    assert "services.y: give" in said[1]
    assert "rules.z.to unknown field" in said[2]


def test_one_that_does_not_start_keeps_no_other_from_its_turn(shell: Any, write: Any) -> None:
    write("broken.py", "agent = None\n")
    broken, first, last = (
        f'[services.{name}]\nagent_factory_path = "{file}"\n'
        for name, file in (("broken", "broken.py"), ("first", "my_agent.py"), ("last", "my_agent.py"))
    )
    write("services.toml", f'{broken}{last}after = ["first"]\n{first}')
    said = shell.fails("apply", "services.toml")
    assert "service broken failed to start" in said
    assert said.count("Error") == 1
    assert {name: service["status"] for name, service in services(shell).items()} == {
        "broken": "error",
        "first": "running",
        "last": "running",
    }


def test_a_service_that_was_given_up_is_not_nothing_to_do(shell: Any, write: Any) -> None:
    text = '[services.bad]\ncommand = ["{}"]\nrestart = "never"\n'
    write("services.toml", text.format("false"))
    shell.fails("apply", "services.toml")
    for more in ((), ("--dry-run",)):
        done = shell("apply", "services.toml", *more)
        assert (done.returncode, done.stdout) == (1, "")
        assert "bad was given up (" in done.stderr
        assert "`agentmgr apply --retry`" in done.stderr
    retried = shell("apply", "services.toml", "--retry")
    assert retried.returncode == 1, "it fails again"
    assert "start service bad" in retried.stdout
    write("services.toml", text.format("false").replace("command", "running = false\ncommand"))
    assert "stop service bad" in shell.ok("apply", "services.toml")


def test_what_should_run_and_has_no_manager_is_started(shell: Any, write: Any) -> None:
    write("services.toml", '[services.one]\nagent_factory_path = "my_agent.py"\n')
    shell.ok("apply", "services.toml")
    shell.ok("shutdown")
    assert "start service one" in shell.ok("apply", "services.toml")
    assert services(shell)["one"]["status"] == "running"
    assert shell.ok("apply", "services.toml") == "nothing to do\n"


def test_what_the_file_names_no_more_is_at_its_default_again(here: Any, write: Any) -> None:
    job = '[services.nightly]\ncommand = ["true"]\nrunning = false\n'
    write("services.toml", job + 'schedule = "0 3 * * *"\nmemory_limit_mb = 64\n')
    here.ok("apply", "services.toml")
    write("services.toml", job)
    assert "schedule: 0 3 * * * -> null" in here.ok("apply", "services.toml")
    config = services(here)["nightly"]["config"]
    assert (config["schedule"], config["memory_limit_mb"]) == (None, None)
